// Small kernels that test the emulation, each with the mistakes that it must find (Bug). All compute sums of int32
// numbers, modulo 2^32.

#pragma once

#include "cuda/portable.cuh"

namespace lpkernel::cuda {

enum Bug {
    kNone,
    kNoBarrier,         // the sum of the block is read before all have written theirs
    kOutOfBounds,       // one number more than the row has is read
    kMisaligned,        // an int4 at an address that is no multiple of 16
    kShortWait,         // one group of copies too many left under way
    kDivergentShuffle,  // half a warp stays away from a shuffle that names all
    kDivergentBarrier,  // odd threads stand at another barrier than even ones
    kLostBarrier,       // a thread of a block waits at a barrier for which the others do not come
    kNoArrival,         // one block of a group does not come to the barrier
    kNoGroupBarrier,    // the partial sums of the others are read before they are there
    kDeadlock,          // half a warp waits for the warp, the rest for the block
};

struct SumArgs {
    const int* numbers;  // (rows, columns)
    int* sums;           // (rows)
    unsigned* counters;  // group_sums: one, zero before
    int* partial;        // group_sums: (blocks)
    int rows, columns;
};

__device__ __forceinline__ int warp_sum(int value) {
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
    return value;
}

// The sum of `value` over the block, for thread 0.
template <int kBug>
__device__ __forceinline__ int block_sum(int value) {
    int* partial = reinterpret_cast<int*>(dynamic_shared());
    const unsigned lane = threadIdx.x % 32;
    if (kBug == kDivergentShuffle && lane >= 16) return 0;
    value = warp_sum(value);
    if (lane == 0) partial[threadIdx.x / 32] = value;
    if (kBug == kDivergentBarrier && threadIdx.x % 2 == 1) {
        __syncthreads();
        value += 1;
    } else if (kBug != kNoBarrier && (kBug != kLostBarrier || threadIdx.x != 5)) {
        __syncthreads();
    }
    if (kBug == kLostBarrier) __syncthreads();
    if (kBug == kDeadlock) {
        if (lane < 16) __syncwarp();
        __syncthreads();
    }
    int sum = 0;
    if (threadIdx.x == 0) {
        for (unsigned w = 0; w < blockDim.x / 32; ++w) sum += partial[w];
    }
    return sum;
}

// One block a row; shared: one int a warp.
template <int kBug>
__global__ void row_sums(const __grid_constant__ SumArgs args) {
    const int row = static_cast<int>(blockIdx.x), end = args.columns + (kBug == kOutOfBounds ? 1 : 0);
    int sum = 0;
    for (int c = static_cast<int>(threadIdx.x); c < end; c += static_cast<int>(blockDim.x)) {
        sum += args.numbers[static_cast<std::size_t>(row) * args.columns + c];
    }
    sum = block_sum<kBug>(sum);
    if (threadIdx.x == 0) args.sums[row] = sum;
}

// The same for columns that are a multiple of 4, through two buffers of shared memory filled by cp.async.
// shared: two int4 a thread.
template <int kBug>
__global__ void copied_sums(const __grid_constant__ SumArgs args) {
    int4* buffers = reinterpret_cast<int4*>(dynamic_shared());
    const int threads = static_cast<int>(blockDim.x), me = static_cast<int>(threadIdx.x), vectors = args.columns / 4;
    const int* row = args.numbers + static_cast<std::size_t>(blockIdx.x) * args.columns;
    const auto fetch = [&](int turn) {
        const int v = turn * threads + me;
        const bool inside = v < vectors;
        __pipeline_memcpy_async(buffers + (turn % 2) * threads + me, row + 4 * (inside ? v : 0), 16, inside ? 0 : 16);
        __pipeline_commit();
    };
    const int turns = (vectors + threads - 1) / threads;
    int sum = 0;
    if (turns > 0) fetch(0);
    for (int turn = 0; turn < turns; ++turn) {
        if (turn + 1 < turns) {
            fetch(turn + 1);
            __pipeline_wait_prior(kBug == kShortWait ? 2 : 1);
        } else {
            __pipeline_wait_prior(0);
        }
        const int4 four = buffers[(turn % 2) * threads + me];
        sum += four.x + four.y + four.z + four.w;
    }
    if (kBug == kMisaligned && vectors > 1) {
        const int4 four = *reinterpret_cast<const int4*>(row + 1);
        sum += four.x ^ four.y ^ four.z ^ four.w;
    }
    __syncthreads();
    sum = block_sum<kNone>(sum);
    if (threadIdx.x == 0) args.sums[blockIdx.x] = sum;
}

// sums[row] = sum of all rows, by a group of `rows` blocks that wait for each other; shared as row_sums.
template <int kBug>
__global__ void group_sums(const __grid_constant__ SumArgs args) {
    const unsigned blocks = gridDim.x;
    const int row = static_cast<int>(blockIdx.x);
    unsigned round = 0;
    int sum = 0;
    for (int c = static_cast<int>(threadIdx.x); c < args.columns; c += static_cast<int>(blockDim.x)) {
        sum += args.numbers[static_cast<std::size_t>(row) * args.columns + c];
    }
    sum = block_sum<kNone>(sum);
    if (threadIdx.x == 0) args.partial[row] = sum;
    if (kBug == kNoArrival && row == 1) return;
    if (kBug != kNoGroupBarrier) group_barrier(args.counters, blocks, round);
    if (threadIdx.x == 0) {
        int total = 0;
        for (unsigned b = 0; b < blocks; ++b) total += load_shared_by_blocks(args.partial + b);
        args.sums[row] = total;
    }
    group_barrier(args.counters, blocks, round);
}

}  // namespace lpkernel::cuda
