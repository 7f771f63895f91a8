// Occupancy without a GPU: NVIDIA's cuda_occupancy.h, asked about devices whose figures are given here.

#include <cuda_occupancy.h>

#include <cstddef>

// Blocks that a multiprocessor holds at once, or -1; arch: compute capability times ten (80, 90 or 100).
extern "C" int blocks_per_multiprocessor(int arch, int registers, std::size_t static_shared, std::size_t dynamic_shared,
                                         int threads) {
    const std::size_t shared = (arch == 80 ? 164 : 228) << 10;
    cudaOccDeviceProp device{};
    device.computeMajor = arch / 10;
    device.computeMinor = arch % 10;
    device.warpSize = 32;
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = 2048;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.sharedMemPerBlock = 48 << 10;
    device.reservedSharedMemPerBlock = 1024;
    device.sharedMemPerMultiprocessor = shared;
    device.sharedMemPerBlockOptin = shared - 1024;
    device.numSms = arch == 80 ? 108 : arch == 90 ? 132 : 148;
    cudaOccFuncAttributes function{};
    function.maxThreadsPerBlock = 1024;
    function.numRegs = registers;
    function.sharedSizeBytes = static_shared;
    function.partitionedGCConfig = PARTITIONED_GC_OFF;
    function.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    function.maxDynamicSharedSizeBytes = device.sharedMemPerBlockOptin;
    function.numBlockBarriers = 1;
    cudaOccDeviceState state{};
    state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    state.cacheConfig = CACHE_PREFER_SHARED;
    cudaOccResult result{};
    const cudaOccError error =
        cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &function, &state, threads, dynamic_shared);
    return error == CUDA_OCC_SUCCESS ? result.activeBlocksPerMultiprocessor : -1;
}
