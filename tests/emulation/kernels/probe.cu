// Starts the kernels of probe.cuh and operations.cuh, for ctypes.

#include "operations.cuh"
#include "probe.cuh"

namespace lpkernel::cuda {

template <int kBug>
cudaError_t start(int kernel, const SumArgs& args, unsigned threads) {
    LaunchShape shape;
    shape.grid = dim3(static_cast<unsigned>(args.rows));
    shape.block = dim3(threads);
    shape.shared = threads / 32 * sizeof(int);
    if (kernel == 0) return launch(row_sums<kBug>, shape, args);
    shape.shared = threads * 2 * sizeof(int4);
    if (kernel == 1) return launch(copied_sums<kBug>, shape, args);
    shape.cooperative = true;
    return launch(group_sums<kBug>, shape, args);
}

}  // namespace lpkernel::cuda

// kernel: 0 row_sums, 1 copied_sums, 2 group_sums. numbers (rows, columns), sums and partial (rows), one counter.
extern "C" int probe(int kernel, int bug, const int* numbers, int* sums, unsigned* counter, int* partial, int rows,
                     int columns, int threads) {
    using namespace lpkernel::cuda;
    KnownBuffers buffers;
    const std::size_t count = static_cast<std::size_t>(rows);
    buffers.add(numbers, count * static_cast<std::size_t>(columns) * sizeof(int));
    buffers.add(sums, count * sizeof(int));
    buffers.add(partial, count * sizeof(int));
    buffers.add(counter, sizeof(unsigned));
    const SumArgs args{numbers, sums, counter, partial, rows, columns};
    using Start = cudaError_t (*)(int, const SumArgs&, unsigned);
    constexpr Start kStarts[] = {
        start<kNone>,      start<kNoBarrier>,        start<kOutOfBounds>,      start<kMisaligned>,
        start<kShortWait>, start<kDivergentShuffle>, start<kDivergentBarrier>, start<kLostBarrier>,
        start<kNoArrival>, start<kNoGroupBarrier>,   start<kDeadlock>};
    return kStarts[bug](kernel, args, static_cast<unsigned>(threads));
}

// values (threads), results (threads, 64), counters (8)
extern "C" int run_operations(const std::int64_t* values, std::uint64_t* results, std::uint32_t* counters,
                              int threads) {
    using namespace lpkernel::cuda;
    KnownBuffers buffers;
    const std::size_t count = static_cast<std::size_t>(threads);
    buffers.add(values, count * sizeof(std::int64_t));
    buffers.add(results, count * kOperations * sizeof(std::uint64_t));
    buffers.add(counters, 8 * sizeof(std::uint32_t));
    LaunchShape shape;
    shape.block = dim3(static_cast<unsigned>(threads));
    return launch(operations, shape, OperationArgs{values, results, counters});
}
