// The compiled kernels that refine seams, and their launch.

#include "cuda/refine.cuh"

namespace lpkernel::cuda {

void plan_refine(RefineArgs& args) {
    const int cells = args.side * args.side, colour = (cells + 1) / 2;
    args.threads = (NEAR * colour + 31) / 32 * 32;
    if (args.threads > REFINE_THREADS) args.threads = REFINE_THREADS;
    const int array = align16(cells * 4);
    args.shared.labels = array;
    args.shared.counts = 2 * array;
    args.shared.next = 3 * array;
    args.shared.roots = 4 * array;
    args.shared.other = 5 * array;
    args.shared.part = 6 * array;
    args.shared.pairs = args.shared.part + align16(args.part * 4);
    args.shared.beside = args.shared.pairs + align16(NEAR * args.part * 4);
    args.shared.bytes = args.shared.beside + align16(NEAR * args.part * 4);
}

cudaError_t refine(const RefineArgs& args, cudaStream_t stream) {
    const auto bytes = static_cast<std::size_t>(args.shared.bytes);
    return launch(args.codes ? refine_kernel<true> : refine_kernel<false>,
                  linear_launch(args.image_count, args.threads, bytes, stream), args);
}

}  // namespace lpkernel::cuda
