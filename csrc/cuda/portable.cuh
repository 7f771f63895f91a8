// The one include of the kernels: CUDA under nvcc, the test runtime (tests/emulation/simt) under g++ -DSIMT_TEST.
//
// A kernel is `__global__ void name(const __grid_constant__ Args args)`, with external linkage and one
// trivially copyable argument. Its shared memory is all dynamic, carved from dynamic_shared(). Host code starts it
// with launch() only. Blocks wait for each other only in a cooperative launch, with group_barrier(), and read what
// others wrote with load_shared_by_blocks().

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(SIMT_TEST)
#include "simt.h"
#else
#include <cuda_fp16.h>
#include <cuda_pipeline_primitives.h>
#include <cuda_runtime.h>

#include <mutex>
#endif

namespace lpkernel::cuda {

// The dynamic shared memory of the block, aligned to 16 bytes; its size is LaunchShape::shared.
__device__ __forceinline__ unsigned char* dynamic_shared() {
#if defined(SIMT_TEST)
    return reinterpret_cast<unsigned char*>(simt::block->shared);
#else
    extern __shared__ __align__(16) unsigned char lpkernel_shared[];
    return lpkernel_shared;
#endif
}

// Adds 1 with release order at device scope.
__device__ __forceinline__ void add_release(unsigned* counter) {
#if defined(SIMT_TEST)
    __atomic_fetch_add(counter, 1u, __ATOMIC_RELEASE);
#else
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
#endif
}

__device__ __forceinline__ unsigned load_acquire(const unsigned* counter) {
#if defined(SIMT_TEST)
    return __atomic_load_n(counter, __ATOMIC_ACQUIRE);
#else
    unsigned value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
    return value;
#endif
}

// All threads of `blocks` blocks of a cooperative launch wait for each other; what was written before can then be read
// with load_shared_by_blocks(). `counter` (one per group) starts at 0 and only grows; `round` (a variable of each
// thread) starts at 0 and counts the calls.
__device__ __forceinline__ void group_barrier(unsigned* counter, unsigned blocks, unsigned& round) {
    const unsigned target = ++round * blocks;
    __syncthreads();
    if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) {
        add_release(counter);
        while (static_cast<int>(load_acquire(counter) - target) < 0) __nanosleep(32);
    }
    __syncthreads();
}

// Reads global memory that other blocks write during the launch: from L2, neither reordered nor kept in a register by
// the compiler. T has 2, 4, 8 or 16 bytes and is aligned to its size.
template <class T>
__device__ __forceinline__ T load_shared_by_blocks(const T* address) {
    static_assert(std::is_trivially_copyable_v<T>, "loads copy bits");
    static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "no load of that size");
#if defined(SIMT_TEST)
    return *address;
#else
    T result;
    if constexpr (sizeof(T) == 2) {
        unsigned short bits;
        asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(bits) : "l"(address) : "memory");
        memcpy(&result, &bits, sizeof(T));
    } else if constexpr (sizeof(T) == 4) {
        unsigned bits;
        asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(bits) : "l"(address) : "memory");
        memcpy(&result, &bits, sizeof(T));
    } else if constexpr (sizeof(T) == 8) {
        unsigned long long bits;
        asm volatile("ld.global.cg.u64 %0, [%1];" : "=l"(bits) : "l"(address) : "memory");
        memcpy(&result, &bits, sizeof(T));
    } else {
        uint4 bits;
        asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)
                     : "l"(address)
                     : "memory");
        memcpy(&result, &bits, sizeof(T));
    }
    return result;
#endif
}

// The bits of the float16 nearest to a number, ties to even; and the number that such bits stand for.
__device__ __forceinline__ std::uint16_t half_bits(float value) {
#if defined(SIMT_TEST)
    return simt::to_f16(value);
#else
    return __half_as_ushort(__float2half_rn(value));
#endif
}
__device__ __forceinline__ float half_value(std::uint16_t bits) {
#if defined(SIMT_TEST)
    return simt::from_f16(bits);
#else
    return __half2float(__ushort_as_half(bits));
#endif
}

// c += A B on tensor cores, all lanes of a warp together: A 16 x 16, B 16 x 8 float16 (two per word, the first in the
// low half), c float. Lane 4 g + t holds A's rows g and g + 8 (`low`, `high`): of each, columns 2 t, 2 t + 1 in x and
// those 8 further on in y; of B's column g, rows 2 t, 2 t + 1 in x and those 8 further on in y; and of c, rows g (c[0],
// c[1]) and g + 8 (c[2], c[3]), columns 2 t and 2 t + 1.
__device__ __forceinline__ void multiply_half(float (&c)[4], const uint2& low, const uint2& high, const uint2& b) {
#if defined(SIMT_TEST)
    const unsigned a_words[] = {low.x, high.x, low.y, high.y}, b_words[] = {b.x, b.y};
    unsigned sums[4], result[4];
    memcpy(sums, c, sizeof sums);
    const auto read = [](unsigned bits) { return simt::from_f16(static_cast<std::uint16_t>(bits)); };
    simt::mma<16, 2, false, false>(result, a_words, b_words, sums, read, read, {__FILE__, __LINE__});
    memcpy(c, result, sizeof sums);
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(low.x), "r"(high.x), "r"(low.y), "r"(high.y), "r"(b.x), "r"(b.y));
#endif
}

// Loads four 8 x 8 matrices of float16 from shared memory, all lanes of a warp together: lane 8 i + r passes the
// address of row r of matrix i (16 bytes); lane 4 g + t gets columns 2 t and 2 t + 1 of row g of each matrix.
__device__ __forceinline__ uint4 load_matrices(const uint4* row) {
#if defined(SIMT_TEST)
    const auto address = reinterpret_cast<std::uint64_t>(row);
    const int lane = static_cast<int>(threadIdx.x & 31);
    unsigned words[4];
    for (int i = 0; i < 4; ++i) {
        const auto from = __shfl_sync(0xffffffffu, address, 8 * i + lane / 4);
        words[i] = reinterpret_cast<const unsigned*>(from)[lane % 4];
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
#else
    uint4 result;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(result.x), "=r"(result.y), "=r"(result.z), "=r"(result.w)
                 : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row))));
    return result;
#endif
}

// In a launch that overlaps, waits for the kernels before this one on the stream; such a kernel calls it first.
__device__ __forceinline__ void wait_for_kernels_before() {
#if !defined(SIMT_TEST) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

struct LaunchShape {
    dim3 grid, block;
    std::size_t shared = 0;  // bytes of dynamic shared memory
    cudaStream_t stream = nullptr;
    bool cooperative = false;
    bool overlaps = false;  // may start while the previous kernel is ending, from compute capability 9.0 on
};

// A one-dimensional grid.
inline LaunchShape linear_launch(std::int64_t blocks, int threads, std::size_t shared, cudaStream_t stream) {
    LaunchShape shape;
    shape.grid = dim3(static_cast<unsigned>(blocks));
    shape.block = dim3(static_cast<unsigned>(threads));
    shape.shared = shared;
    shape.stream = stream;
    return shape;
}

#if !defined(SIMT_TEST)
// While one exists, a kernel may have so many bytes of dynamic shared memory: above 48 KiB the limit is set, and no
// other thread may set a lower one for the same kernel before it is launched.
class SharedMemory {
  public:
    SharedMemory(const void* function, std::size_t bytes) {
        if (bytes <= (48 << 10)) return;
        lock_ = std::unique_lock<std::mutex>(limits());
        error_ = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    }
    cudaError_t error() const { return error_; }

  private:
    static std::mutex& limits() {
        static std::mutex held;
        return held;
    }
    std::unique_lock<std::mutex> lock_;
    cudaError_t error_ = cudaSuccess;
};
#endif

// Whether a kernel waits for those before it in a launch that overlaps: not where it was compiled for older devices.
template <class Args>
bool waits_for_kernels_before(void (*kernel)(Args)) {
#if defined(SIMT_TEST)
    (void)kernel;
    return true;
#else
    cudaFuncAttributes compiled{};
    const cudaError_t error = cudaFuncGetAttributes(&compiled, reinterpret_cast<const void*>(kernel));
    return error == cudaSuccess && compiled.ptxVersion >= 90;
#endif
}

// Starts kernel(args) on a stream of the current device. Returns errors of the launch, not those of the kernel.
template <class Args>
cudaError_t launch(void (*kernel)(Args), const LaunchShape& shape, const Args& args) {
    static_assert(std::is_trivially_copyable_v<Args>, "kernels take one trivially copyable struct");
#if defined(SIMT_TEST)
    return simt::launch(kernel, shape.grid, shape.block, shape.shared, shape.cooperative, args);
#else
    const void* function = reinterpret_cast<const void*>(kernel);
    const SharedMemory allowed(function, shape.shared);
    if (allowed.error() != cudaSuccess) return allowed.error();
    cudaLaunchAttribute attribute{};
    if (shape.cooperative) {
        attribute.id = cudaLaunchAttributeCooperative;
        attribute.val.cooperative = 1;
    } else {
        attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute.val.programmaticStreamSerializationAllowed = 1;
    }
    cudaLaunchConfig_t config{};
    config.gridDim = shape.grid;
    config.blockDim = shape.block;
    config.dynamicSmemBytes = shape.shared;
    config.stream = shape.stream;
    config.attrs = &attribute;
    config.numAttrs = shape.cooperative || shape.overlaps ? 1 : 0;
    Args copy = args;
    void* parameters[] = {&copy};
    return cudaLaunchKernelExC(&config, function, parameters);
#endif
}

// How many blocks of this shape a multiprocessor of the current device holds at once; a cooperative launch may have
// that many times the number of multiprocessors.
template <class Args>
cudaError_t resident_blocks(void (*kernel)(Args), int threads, std::size_t shared, int& blocks) {
#if defined(SIMT_TEST)
    (void)kernel;
    return simt::resident_blocks(static_cast<unsigned>(threads), shared, blocks);
#else
    const void* function = reinterpret_cast<const void*>(kernel);
    const SharedMemory allowed(function, shared);
    if (allowed.error() != cudaSuccess) return allowed.error();
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, function, threads, shared);
#endif
}

// While one exists, kernels that this thread starts may touch the buffers added to it. The test runtime checks every
// access of a compiled kernel against them; on a GPU the class does nothing.
class KnownBuffers {
  public:
#if defined(SIMT_TEST)
    KnownBuffers() : before_(simt::known_ranges.size()) {}
    ~KnownBuffers() { simt::known_ranges.resize(before_); }
    void add(const void* address, std::size_t bytes) {
        const auto low = reinterpret_cast<std::uint64_t>(address);
        simt::known_ranges.push_back({low, low + bytes});
    }
#else
    KnownBuffers() {}
    ~KnownBuffers() {}
    void add(const void*, std::size_t) {}
#endif
    KnownBuffers(const KnownBuffers&) = delete;
    KnownBuffers& operator=(const KnownBuffers&) = delete;

#if defined(SIMT_TEST)
  private:
    std::size_t before_;
#endif
};

}  // namespace lpkernel::cuda
