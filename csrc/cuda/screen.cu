// The compiled kernels of the screened search, and their launch.

#include <algorithm>

#include "cuda/screen.cuh"

namespace lpkernel::cuda {

namespace {

using Kernel = void (*)(ScreenArgs);

int rounded(std::int64_t count, int to) {
    return static_cast<int>((count + to - 1) / to * to);
}

struct Kernels {
    Kernel centre, prepare, sample, screen, recheck;
};

template <class Rows, bool OWN, bool WEIGHTED = false>
Kernels kernels() {
    return {centre_kernel<Rows>, prepare_kernel<Rows, OWN>, screen_kernel<OWN, true, WEIGHTED>,
            screen_kernel<OWN, false, WEIGHTED>, recheck_kernel<Rows, OWN>};
}

Kernels kernels_of(const TopkArgs& args) {
    if (args.integers) return args.own_mask ? kernels<Int16Rows, true>() : kernels<Int16Rows, false>();
    if (args.weights) return kernels<FloatRows, false, true>();
    return args.own_mask ? kernels<FloatRows, true>() : kernels<FloatRows, false>();
}

}  // namespace

ScreenPlan plan_screen(const TopkArgs& args, int stride) {
    ScreenPlan plan;
    const int rows = args.bank_count, k = args.k;
    const int columns = rounded(args.width, 2 * SCREEN_COLUMNS) * (args.own_mask ? 2 : 1);
    if (columns == 0 || columns > MOST_SCREEN_WIDTH || stride < 1 || (args.own_mask && args.weights)) {
        plan.stride = 0;
        return plan;
    }
    plan.stride = stride;
    plan.class_rows = rounded((rows - 1) / stride + 1, SCREEN_TILE);
    plan.positions = stride * plan.class_rows;
    plan.query_rows = rounded(args.query_count, SCREEN_TILE);
    plan.stages = columns / SCREEN_COLUMNS;
    plan.lanes = 8;
    while (plan.lanes < 32 && plan.lanes * 4 * PREPARE_QUADS < args.width) plan.lanes *= 2;
    const int lanes = plan.class_rows / SCREEN_TILE * 8;  // groups, if each lane had one
    while (plan.parts < 8 && lanes * plan.parts < 8 * k) plan.parts *= 2;
    plan.groups = lanes * plan.parts;
    plan.most = std::max(SURVIVORS, 4 * k * stride);
    return plan;
}

std::int64_t place_screen(ScreenArgs& args, void* scratch) {
    const ScreenPlan& plan = args.plan;
    auto* base = static_cast<unsigned char*>(scratch);
    std::int64_t used = 0;
    const auto take = [&](auto*& into, std::int64_t count) {
        using T = std::remove_reference_t<decltype(*into)>;
        into = base ? reinterpret_cast<T*>(base + used) : nullptr;
        used = (used + count * static_cast<std::int64_t>(sizeof(T)) + 255) / 256 * 256;
    };
    const std::int64_t queries = args.topk.query_count, query_rows = plan.query_rows, positions = plan.positions;
    take(args.centre, args.topk.width);
    take(args.query_values, plan.stages * query_rows * 4);
    take(args.bank_values, plan.stages * positions * 4);
    take(args.query_terms, query_rows);
    take(args.query_squares, query_rows);
    take(args.row_terms, positions);
    take(args.row_scales, args.topk.own_mask || args.topk.weights ? positions : 0);
    take(args.minima, query_rows * plan.groups);
    take(args.survivors, queries * plan.most);
    take(args.redone, queries);
    take(args.counts, queries + 1);
    args.redone_count = args.counts ? args.counts + queries : nullptr;
    return used;
}

cudaError_t screen(const ScreenArgs& args, cudaStream_t stream) {
    const ScreenPlan& plan = args.plan;
    const Kernels all = kernels_of(args.topk);
    const std::int64_t queries = args.topk.query_count;
    cudaError_t error =
        cudaMemsetAsync(args.counts, 0, static_cast<std::size_t>(queries + 1) * sizeof(unsigned), stream);
    const auto start = [&](Kernel kernel, std::int64_t blocks, int threads, std::size_t shared) {
        if (error == cudaSuccess) error = launch(kernel, linear_launch(blocks, threads, shared, stream), args);
    };
    const std::size_t tile_bytes = SCREEN_STAGES * 2 * SCREEN_TILE * 2 * SCREEN_COLUMNS * 2;
    const std::int64_t query_tiles = plan.query_rows / SCREEN_TILE;
    start(all.centre, (args.topk.width + 31) / 32, CENTRE_THREADS, CENTRE_THREADS / 32 * 64 * sizeof(float));
    const int prepared = PREPARE_THREADS / plan.lanes;  // rows of a block
    start(all.prepare, (static_cast<std::int64_t>(plan.positions) + plan.query_rows + prepared - 1) / prepared,
          PREPARE_THREADS, 0);
    if (args.topk.weights) start(factor_kernel, (plan.positions + 255) / 256, 256, 0);
    start(all.sample, query_tiles * (plan.class_rows / SCREEN_TILE), SCREEN_THREADS, tile_bytes);
    const int limits = plan.groups <= WARP_GROUPS ? LIMIT_THREADS / 32 : 1;  // queries of a block
    start(limit_kernel, (queries + limits - 1) / limits, LIMIT_THREADS,
          sizeof(unsigned) * static_cast<std::size_t>(limit_words(plan.groups, args.topk.k)));
    start(all.screen, query_tiles * (plan.positions / SCREEN_TILE), SCREEN_THREADS, tile_bytes);
    start(all.recheck, queries, RECHECK_THREADS,
          RECHECK_THREADS / 32 * sizeof(std::int64_t) * static_cast<std::size_t>(args.topk.k));
    if (error != cudaSuccess) return error;
    TopkArgs rest = args.topk;
    rest.chosen = args.redone;
    rest.chosen_count = args.redone_count;
    return topk(rest, stream);
}

}  // namespace lpkernel::cuda
