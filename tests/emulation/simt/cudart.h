// The part of the CUDA runtime that host code here calls, on host memory; and how kernels are started.
//
// simt_use_ptx(path) makes launches go to a library of translated PTX (tests/emulation/ptx) instead of the C++
// functions; simt_set_device(...) says what the one emulated device answers about itself.

#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "runtime.h"

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInvalidDevice = 101,
    cudaErrorCooperativeLaunchTooLarge = 720,
};
enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault
};
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
    cudaDevAttrCooperativeLaunch = 95,
    cudaDevAttrL2CacheSize = 38,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
struct CUstream_st;
using cudaStream_t = CUstream_st*;

namespace simt {

struct Device {
    int arch = 80;            // compute capability times ten
    int multiprocessors = 8;  // few, so that cooperative launches stay small
    int optin_shared() const { return arch == 80 ? 166912 : arch < 90 ? 101376 : 232448; }
};
inline Device device;

inline thread_local std::vector<Range> known_ranges;  // what kernels started by this thread may touch

// run_<mangled name> of a library of translated PTX
using RunTranslated = void (*)(const void* args, std::size_t bytes, const unsigned* grid, const unsigned* shape,
                               unsigned shared, int cooperative, const Range* ranges, std::size_t count);
inline void* translated = nullptr;

inline cudaError_t resident_blocks(unsigned threads, std::size_t shared, int& blocks) {
    if (threads == 0 || threads > kMaxThreads) return cudaErrorInvalidValue;
    const std::size_t sm_shared = static_cast<std::size_t>(device.optin_shared()) + 1024;
    blocks = static_cast<int>(std::min<std::size_t>({32, 2048 / threads, sm_shared / (shared + 1024)}));
    return cudaSuccess;
}

template <class Args>
cudaError_t launch(void (*kernel)(Args), dim3 grid, dim3 shape, std::size_t shared, bool cooperative,
                   const Args& args) {
    static_assert(std::is_trivially_copyable_v<Args>, "kernels take one trivially copyable struct");
    const std::uint64_t threads = std::uint64_t{shape.x} * shape.y * shape.z;
    const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y * grid.z;
    if (threads == 0 || threads > kMaxThreads || shape.z > 64 || blocks == 0 || grid.x > 0x7fffffffu ||
        grid.y > 65535 || grid.z > 65535) {
        return cudaErrorInvalidConfiguration;
    }
    if (shared > static_cast<std::size_t>(device.optin_shared())) return cudaErrorInvalidValue;
    if (cooperative) {
        int resident = 0;
        resident_blocks(static_cast<unsigned>(threads), shared, resident);
        if (blocks > static_cast<std::uint64_t>(resident) * static_cast<unsigned>(device.multiprocessors)) {
            return cudaErrorCooperativeLaunchTooLarge;
        }
    }
    if (translated == nullptr) {
        run_grid(grid, shape, shared, cooperative, [&] { kernel(args); });
        return cudaSuccess;
    }
    Dl_info info{};
    if (dladdr(reinterpret_cast<void*>(kernel), &info) == 0 || info.dli_sname == nullptr ||
        info.dli_saddr != reinterpret_cast<void*>(kernel)) {
        die("a kernel without a name: it must have external linkage and default visibility");
    }
    const std::string name = std::string("run_") + info.dli_sname;
    const auto run = reinterpret_cast<RunTranslated>(dlsym(translated, name.c_str()));
    if (run == nullptr) die("the translated PTX has no kernel %s", info.dli_sname);
    const unsigned grid3[3] = {grid.x, grid.y, grid.z}, shape3[3] = {shape.x, shape.y, shape.z};
    run(&args, sizeof(Args), grid3, shape3, static_cast<unsigned>(shared), cooperative, known_ranges.data(),
        known_ranges.size());
    return cudaSuccess;
}

}  // namespace simt

extern "C" {
// Loads a library of translated PTX and starts kernels from it; null: the C++ functions again. 0, or 1 if it failed.
__attribute__((used, visibility("default"))) inline int simt_use_ptx(const char* path) {
    simt::translated = nullptr;
    if (path == nullptr) return 0;
    simt::translated = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (simt::translated == nullptr) std::fprintf(stderr, "simt: %s\n", dlerror());
    return simt::translated == nullptr;
}
__attribute__((used, visibility("default"))) inline void simt_set_device(int arch, int multiprocessors) {
    simt::device.arch = arch;
    simt::device.multiprocessors = multiprocessors;
}
}

inline const char* cudaGetErrorName(cudaError_t error) {
    switch (error) {
        case cudaSuccess:
            return "cudaSuccess";
        case cudaErrorInvalidValue:
            return "cudaErrorInvalidValue";
        case cudaErrorMemoryAllocation:
            return "cudaErrorMemoryAllocation";
        case cudaErrorInvalidConfiguration:
            return "cudaErrorInvalidConfiguration";
        case cudaErrorInvalidDevice:
            return "cudaErrorInvalidDevice";
        case cudaErrorCooperativeLaunchTooLarge:
            return "cudaErrorCooperativeLaunchTooLarge";
    }
    return "unrecognized error";
}
inline const char* cudaGetErrorString(cudaError_t error) {
    return cudaGetErrorName(error);
}
inline cudaError_t cudaGetLastError() {
    return cudaSuccess;
}
inline cudaError_t cudaPeekAtLastError() {
    return cudaSuccess;
}
inline cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = 13000;
    return cudaSuccess;
}
inline cudaError_t cudaDriverGetVersion(int* version) {
    return cudaRuntimeGetVersion(version);
}
inline cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* id) {
    *id = 0;
    return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int id) {
    return id == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int id) {
    if (id != 0) return cudaErrorInvalidDevice;
    switch (attribute) {
        case cudaDevAttrMultiProcessorCount:
            *value = simt::device.multiprocessors;
            return cudaSuccess;
        case cudaDevAttrComputeCapabilityMajor:
            *value = simt::device.arch / 10;
            return cudaSuccess;
        case cudaDevAttrComputeCapabilityMinor:
            *value = simt::device.arch % 10;
            return cudaSuccess;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            *value = simt::device.optin_shared();
            return cudaSuccess;
        case cudaDevAttrCooperativeLaunch:
            *value = 1;
            return cudaSuccess;
        case cudaDevAttrL2CacheSize:
            *value = 40 << 20;
            return cudaSuccess;
    }
    return cudaErrorInvalidValue;
}
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int value) {
    return value <= simt::device.optin_shared() ? cudaSuccess : cudaErrorInvalidValue;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t = nullptr) {
    std::memset(to, value, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                                   cudaStream_t = nullptr) {
    std::memcpy(to, from, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
    return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() {
    return cudaSuccess;
}
