// The compiled kernels of a plan over a small bank, and their launches.

#include "cuda/walk.cuh"

namespace lpkernel::cuda {

namespace {

using Kernel = void (*)(WalkArgs);

int tiles(int count, int of) {
    return (count + of - 1) / of;
}

// Bank images per thread of walk_kernel.
int images_of_thread(int allowed) {
    return allowed <= WALK_THREADS ? 1 : allowed <= 2 * WALK_THREADS ? 2 : 4;
}

Kernel walk_of(int allowed) {
    switch (images_of_thread(allowed)) {
        case 1:
            return walk_kernel<1>;
        case 2:
            return walk_kernel<2>;
        default:
            return walk_kernel<4>;
    }
}

template <bool TABLE>
Kernel measure_of(const ScanShape& shape) {
    return shape.codes ? walk_measure_kernel<true, TABLE> : walk_measure_kernel<false, TABLE>;
}

// Starts a kernel that measures `images` of a scale.
cudaError_t measure(Kernel kernel, const WalkArgs& args, int side, int images, cudaStream_t stream) {
    const std::size_t shared = static_cast<std::size_t>(MEASURED) * args.scan.shape.width * sizeof(int);
    return launch(kernel, linear_launch(side * side * tiles(images, MEASURED), MEASURE_THREADS, shared, stream), args);
}

}  // namespace

void plan_walk(WalkArgs& args) {
    const int allowed = args.scan.allowed, cut = args.scan.shape.cut;
    args.threads = tiles(tiles(allowed, images_of_thread(allowed)), 32) * 32;
    args.split = 1;
    while (args.split < WALK_SPLIT && 2 * args.split * allowed <= 32) args.split *= 2;
    const int warps = args.threads / 32;
    args.shared.window = align16(2 * args.scan.side * args.scan.side * 4);
    args.shared.lists = args.shared.window + WALK_SPAN * 8;
    args.shared.paths = args.shared.lists + align16(warps > 1 ? warps * args.scan.shape.k * 8 : 0);
    args.shared.sums = args.shared.paths + align16(2 * cut * 4);
    args.shared.bytes = args.shared.sums + align16(2 * cut * cut * 4);
}

cudaError_t walk_tables(WalkArgs args, const std::int32_t* scales, cudaStream_t stream) {
    args.first_cell = 0;
    for (args.first_scale = 0; args.first_scale < args.scan.scale_count; ++args.first_scale) {
        const int side = scales[5 * args.first_scale];
        const cudaError_t error = measure(measure_of<true>(args.scan.shape), args, side, args.scan.allowed, stream);
        if (error != cudaSuccess) return error;
        args.first_cell += side * side;
    }
    return cudaSuccess;
}

cudaError_t walk(WalkArgs args, const std::int32_t* scales, const std::int32_t* begin, cudaStream_t stream) {
    const int most_rows = args.rows, count = args.scan.scale_count;
    LaunchShape shape;
    shape.block = dim3(static_cast<unsigned>(args.threads));
    shape.shared = static_cast<std::size_t>(args.shared.bytes);
    shape.stream = stream;
    for (args.base = 0; args.base < args.scan.image_count; args.base += most_rows) {
        args.rows = args.scan.image_count - args.base < most_rows ? args.scan.image_count - args.base : most_rows;
        shape.grid = dim3(static_cast<unsigned>(args.rows));
        args.first_cell = 0;
        for (int s = 0; s < count; s = args.scale_end) {
            const int side = scales[5 * s], kept = scales[5 * s + 4];
            args.first_scale = s;
            args.scale_end = args.carries ? count : s + 1;
            if (s > 0 || begin[1] > 0 || kept > 0) {
                const cudaError_t error = measure(measure_of<false>(args.scan.shape), args, side, args.rows, stream);
                if (error != cudaSuccess) return error;
            }
            const cudaError_t error = launch(walk_of(args.scan.allowed), shape, args);
            if (error != cudaSuccess) return error;
            args.first_cell += side * side;
        }
    }
    return cudaSuccess;
}

}  // namespace lpkernel::cuda
