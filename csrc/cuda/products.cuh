// Products of float16 rows in shared memory, by one warp on tensor cores.
//
// A stage of an operand is 64 columns of its rows, 128 bytes each: 8 units of 16 bytes, unit u of row r at place
// u ^ (r % 8) (`stage_place`), so that one unit of eight rows lies in different banks, and so do the units of a row.
// ldmatrix brings fragments to the registers where mma expects them; 32 products of 16 columns take 8 such loads.

#pragma once

#include "cuda/shortlist.cuh"

namespace lpkernel::cuda {

constexpr int STAGE_UNITS = 8;  // 16-byte units of a row in a stage: 64 columns

// Where a unit of a row lies in its stage.
__device__ __forceinline__ int stage_place(int row, int unit) {
    return row * STAGE_UNITS + (unit ^ (row % STAGE_UNITS));
}

// Adds the products of a stage of 16 BLOCKS left and 64 right rows to a warp's sums, as multiply_half lays them out;
// `left` and `right` are the stages; the first rows are multiples of 8. between(i), i < 4, runs in between: it copies
// the next stage, which would otherwise keep the tensor cores waiting.
template <int BLOCKS, class Between>
__device__ __forceinline__ void multiply_stage(const uint4* left, int first_left, const uint4* right, int first_right,
                                               float (&sum)[BLOCKS][8][4], Between between) {
    const int lane = static_cast<int>(threadIdx.x & 31), row = lane % 8, matrix = lane / 8;
    const uint4* left_row = left + (first_left + matrix % 2 * 8 + row) * STAGE_UNITS;
    const uint4* right_row = right + (first_right + matrix / 2 * 8 + row) * STAGE_UNITS;
#pragma unroll
    for (int unit = 0; unit < STAGE_UNITS; unit += 2) {
        const int left_unit = (unit + matrix / 2) ^ row, right_unit = (unit + matrix % 2) ^ row;
        uint4 own[BLOCKS];
#pragma unroll
        for (int m = 0; m < BLOCKS; ++m) own[m] = load_matrices(left_row + m * 16 * STAGE_UNITS + left_unit);
        between(unit / 2);
#pragma unroll
        for (int j = 0; j < 8; j += 2) {
            const uint4 pair = load_matrices(right_row + j * 8 * STAGE_UNITS + right_unit);
#pragma unroll
            for (int m = 0; m < BLOCKS; ++m) {
                const uint2 upper = make_uint2(own[m].x, own[m].z), lower = make_uint2(own[m].y, own[m].w);
                multiply_half(sum[m][j], upper, lower, make_uint2(pair.x, pair.y));
                multiply_half(sum[m][j + 1], upper, lower, make_uint2(pair.z, pair.w));
            }
        }
    }
}

// Maps floats to unsigned numbers of the same order, and back.
__device__ __forceinline__ unsigned ordered(float value) {
    const unsigned bits = __float_as_uint(value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float unordered(unsigned bits) {
    return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

// The k-th smallest of at least k numbers above 0 (ordered() gives no 0), by a warp: by repeatedly taking the next
// larger one. each(take) calls take(number) for all numbers of a lane.
template <class Each>
__device__ __forceinline__ unsigned smallest_in_rounds(int k, Each each) {
    unsigned found = 0;
    for (int reached = 0; reached < k;) {
        unsigned next = ~0u;
        int equal = 0;
        each([&](unsigned number) {
            if (number <= found) return;
            equal = number < next ? 1 : equal + (number == next);
            next = min(next, number);
        });
        found = __reduce_min_sync(WARP, next);
        reached += __reduce_add_sync(WARP, next == found ? equal : 0);
    }
    return found;
}

}  // namespace lpkernel::cuda
