// The compiled masked_topk kernels, and their launch.

#include <algorithm>
#include <cmath>

#include "cuda/topk.cuh"
#include "cuda/topk.h"

namespace lpkernel::cuda {

namespace {

using Kernel = void (*)(TopkArgs);

template <class Rows, bool OWN>
Kernel kernel_of(int tile) {
    switch (tile) {
        case 8:
            return masked_topk_kernel<Rows, OWN, 8>;
        case 2:
            return masked_topk_kernel<Rows, OWN, 2>;
        default:
            return nullptr;
    }
}

Kernel kernel_of(const TopkShape& shape, bool integers, bool own_mask) {
    const int warps = shape.query_warps * shape.bank_warps;
    if (shape.query_warps < 1 || shape.bank_warps < 1 || warps > MOST_TOPK_WARPS) return nullptr;
    if (integers) return own_mask ? kernel_of<Int16Rows, true>(shape.tile) : kernel_of<Int16Rows, false>(shape.tile);
    return own_mask ? kernel_of<FloatRows, true>(shape.tile) : kernel_of<FloatRows, false>(shape.tile);
}

bool multiple(const void* address, std::int64_t stride, int of) {
    return reinterpret_cast<std::uintptr_t>(address) % of == 0 && stride % of == 0;
}

}  // namespace

void plan_topk(TopkArgs& args) {
    const int rows = args.shape.rows(), value_bytes = args.integers ? 2 : 4;
    const int tiles = (args.bank_count - 1) / rows + 1;
    const int slab_tiles = (tiles - 1) / std::max(1, args.shape.slabs) + 1;
    args.shape.slabs = (tiles - 1) / slab_tiles + 1;
    args.slab_rows = slab_tiles * rows;
    const std::int64_t stride = static_cast<std::int64_t>(args.width) * value_bytes;
    args.unit = multiple(args.bank, stride, 16) ? 16 : multiple(args.bank, stride, 4) ? 4 : 2;
    // (1 + 2^-24)^n <= exp(n 2^-24): D + 2 roundings of a float32 sum, 2 of the K-th distance, 3 on the way to a
    // weighted one, and that of this factor itself
    args.slack = static_cast<float>(std::exp((args.width + (args.weights ? 12.0 : 8.0)) * 0x1p-24));
    args.tiny = args.weights ? 0x1p-120f : TINY;
    args.shared = topk_map(args.shape, args.k, value_bytes, args.own_mask);
}

cudaError_t topk_resident(const TopkShape& shape, int k, bool integers, bool own_mask, int& blocks) {
    const Kernel kernel = kernel_of(shape, integers, own_mask);
    if (!kernel) return cudaErrorInvalidValue;
    const int bytes = topk_map(shape, k, integers ? 2 : 4, own_mask).bytes;
    return resident_blocks(kernel, shape.threads(), static_cast<std::size_t>(bytes), blocks);
}

cudaError_t topk(const TopkArgs& args, cudaStream_t stream) {
    const Kernel kernel = kernel_of(args.shape, args.integers, args.own_mask);
    if (!kernel) return cudaErrorInvalidValue;
    const int queries = args.shape.queries();
    const auto tiles = static_cast<unsigned>((args.query_count - 1) / queries + 1);
    LaunchShape shape;
    shape.grid = dim3(tiles, static_cast<unsigned>(args.shape.slabs));
    shape.block = dim3(static_cast<unsigned>(args.shape.threads()));
    shape.shared = static_cast<std::size_t>(args.shared.bytes);
    shape.stream = stream;
    if (const cudaError_t error = launch(kernel, shape, args); error != cudaSuccess || args.shape.slabs == 1) {
        return error;
    }
    shape.grid = dim3(static_cast<unsigned>(args.query_count));
    shape.block = dim3(MERGE_THREADS);
    shape.shared = sizeof(std::int64_t) * static_cast<std::size_t>(MERGE_THREADS / 32 * args.k + 1 + MERGE_THREADS);
    return launch(args.integers ? Kernel{merge_slabs_kernel<Int16Rows>} : Kernel{merge_slabs_kernel<FloatRows>}, shape,
                  args);
}

}  // namespace lpkernel::cuda
