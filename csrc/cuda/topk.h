// masked_topk on the device: what the host passes to the kernel. No Python.

#pragma once

#include <cstdint>

#include "common/limits.h"
#include "cuda/portable.cuh"

namespace lpkernel::cuda {

constexpr int ROWS_PER_LANE = 4;  // bank rows that a lane compares at a time
constexpr int WARP_ROWS = 32 * ROWS_PER_LANE;
constexpr int STAGE_COLUMNS = 32;   // columns of a row in shared memory at a time
constexpr int MOST_TOPK_WARPS = 8;  // of a block
constexpr int MERGE_THREADS = 512;  // of a block that merges slabs

// The shape of a launch: a block has query_warps * bank_warps warps; each compares `tile` queries with its own part of
// the bank_warps * WARP_ROWS rows that are in shared memory. The bank is cut into `slabs` parts.
struct TopkShape {
    int tile = 8, query_warps = 1, bank_warps = 1, slabs = 1;

    __host__ __device__ constexpr int threads() const { return 32 * query_warps * bank_warps; }
    __host__ __device__ constexpr int queries() const { return tile * query_warps; }
    __host__ __device__ constexpr int rows() const { return WARP_ROWS * bank_warps; }
};

// Byte offsets of what a block keeps in its shared memory, each a multiple of 16. Stages are double-buffered.
struct TopkMap {
    int bank = 0;     // (2, rows, pitch bytes)
    int queries = 0;  // (2, query warps, columns, tile) words
    int masks = 0;    // (2, columns) words; with a mask for each query, as `queries`
    int lists = 0;    // (queries, bank warps, K) keys
    int bytes = 0;
    int row_bytes = 0, query_bytes = 0, mask_bytes = 0;  // of a row, and of one stage
};

constexpr TopkMap topk_map(const TopkShape& shape, int k, int value_bytes, bool own_mask) {
    TopkMap map;
    map.row_bytes = STAGE_COLUMNS * value_bytes + 16;  // an odd number of 16-byte units: no bank conflicts
    map.query_bytes = shape.queries() * STAGE_COLUMNS * 4;
    map.mask_bytes = own_mask ? map.query_bytes : STAGE_COLUMNS * 4;
    map.queries = 2 * shape.rows() * map.row_bytes;
    map.masks = map.queries + 2 * map.query_bytes;
    map.lists = map.masks + 2 * map.mask_bytes;
    map.bytes = map.lists + (shape.queries() * shape.bank_warps * k * 8 + 15) / 16 * 16;
    return map;
}

// The argument of the kernel.
struct TopkArgs {
    const void* queries;                 // (Q, D) float or int16
    const void* bank;                    // (B, D), the same type
    const std::uint8_t* patch_mask;      // (D) or (Q, D), or nullptr
    const std::uint8_t* candidate_mask;  // (B), or nullptr
    const double* weights;               // (B) finite and above 0, or nullptr; for float only
    void* distances;                     // (Q, K) float or int32
    std::int64_t* indices;               // (Q, K)
    std::int64_t* partial;               // (Q, slabs, K) keys; unused when slabs is 1
    const int* chosen;                   // the queries to search for, or nullptr for all
    const unsigned* chosen_count;        // how many these are
    int query_count, bank_count, width, k;
    int slab_rows;  // bank rows of a slab, a multiple of shape.rows()
    int unit;       // bytes per read of a bank row: 16 or 4 (asynchronous), or 2
    bool own_mask;  // patch_mask is (Q, D)
    bool integers;  // int16
    float slack;    // see topk.cuh; unused for integers, as is `tiny`
    float tiny;
    TopkShape shape;
    TopkMap shared;
};

// Fills in slab_rows, unit, slack, tiny and shared from the rest; shape.slabs is lowered where the bank has fewer.
void plan_topk(TopkArgs& args);

// Blocks of this shape that one multiprocessor of the current device holds. cudaErrorInvalidValue when there is no
// kernel of this shape.
cudaError_t topk_resident(const TopkShape& shape, int k, bool integers, bool own_mask, int& blocks);

// Starts a search on a stream of the current device: one kernel, or two where the bank is cut into slabs. Q, B >= 1.
cudaError_t topk(const TopkArgs& args, cudaStream_t stream);

}  // namespace lpkernel::cuda
