// The compiled scan kernels, and their launch.

#include "cuda/distance_codes.cuh"
#include "cuda/distance_latents.cuh"
#include "cuda/scan.cuh"
#include "cuda/scan.h"

namespace lpkernel::cuda {

namespace {

using Kernel = void (*)(ScanArgs);

// The kernel of a shape, or nullptr.
Kernel kernel_of(const ScanShape& shape) {
    switch (shape.form) {
        case Form::CodeRows:
            return shape.tile == 4 ? scan_kernel<CodeRows<4>> : shape.tile == 1 ? scan_kernel<CodeRows<1>> : nullptr;
        case Form::CodeGather:
            return shape.tile == 1 ? scan_kernel<CodeGather> : nullptr;
        case Form::Latents:
            return shape.tile == 4 ? scan_kernel<Latents<4>> : shape.tile == 1 ? scan_kernel<Latents<1>> : nullptr;
    }
    return nullptr;
}

}  // namespace

cudaError_t scan_resident(const ScanShape& shape, int& blocks) {
    const Kernel kernel = kernel_of(shape);
    if (!kernel) return cudaErrorInvalidValue;
    return resident_blocks(kernel, shape.threads, static_cast<std::size_t>(shared_map(shape).bytes), blocks);
}

cudaError_t scan(const ScanArgs& args, int groups, cudaStream_t stream) {
    const Kernel kernel = kernel_of(args.shape);
    if (!kernel) return cudaErrorInvalidValue;
    LaunchShape shape = linear_launch(groups * args.shape.group, args.shape.threads,
                                      static_cast<std::size_t>(args.shared.bytes), stream);
    shape.cooperative = args.shape.group > 1;
    return launch(kernel, shape, args);
}

}  // namespace lpkernel::cuda
