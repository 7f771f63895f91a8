// The screened masked_topk on the device: what the host passes to the kernels. No Python.

#pragma once

#include <cstdint>

#include "cuda/portable.cuh"
#include "cuda/topk.h"

namespace lpkernel::cuda {

constexpr int SCREEN_TILE = 128;         // queries, and bank rows, of a block
constexpr int SCREEN_THREADS = 128;      // four warps of 64 x 64 pairs
constexpr int SCREEN_STAGES = 3;         // stages of 64 columns in shared memory at a time
constexpr int SCREEN_COLUMNS = 32;       // columns of a row that lie side by side: 64 bytes of float16
constexpr int MOST_SCREEN_WIDTH = 8192;  // D up to which the bound on rounding holds; 2 D with a mask for each query
constexpr int SURVIVORS = 1024;          // kept of a query, at least; a query with more is redone by topk.cuh
constexpr int RECHECK_THREADS = 256;
constexpr int RECHECK_ROWS = 4;  // rows that a warp measures at a time
constexpr int PREPARE_THREADS = 256;
constexpr int PREPARE_QUADS = 4;  // times four columns that a lane of `prepare` holds in registers
constexpr int CENTRE_ROWS = 256;  // bank rows whose mean is the origin
constexpr int CENTRE_THREADS = 1024;
constexpr int LIMIT_THREADS = 256;  // of a block: one query of more than WARP_GROUPS minima, or a query per warp
constexpr int WARP_GROUPS = 512;
constexpr int MOST_ROUNDS = 24;  // K up to which the K-th number is found by repeatedly taking the next larger

// Sizes of a screened search. Bank row r lies at position (r % stride) * class_rows + r / stride, so that the first
// class_rows positions are a sample of the bank.
struct ScreenPlan {
    int stride = 1, class_rows = 0;  // class_rows: a multiple of SCREEN_TILE
    int positions = 0;               // stride * class_rows
    int query_rows = 0;              // Q, a multiple of SCREEN_TILE
    int stages = 0;  // parts of 32 columns of an operand, an even number; twice that with a mask for each query
    int parts = 1;   // groups of sampled rows that a lane takes the minima of: 1, 2, 4 or 8
    int groups = 0;  // minima of a query
    int lanes = 32;  // of a warp that prepare a row: 8, 16 or 32
    int most = 0;    // survivors of a query that are kept
};

// Words of shared memory of a block that finds thresholds: the minima of its warps' queries; or, for one query, a
// limit, a count, the least of each thread's share, and the shares of fewer than K threads.
constexpr int limit_words(int groups, int k) {
    if (groups <= WARP_GROUPS) return LIMIT_THREADS / 32 * groups;
    return 2 + LIMIT_THREADS + (k - 1) * ((groups + LIMIT_THREADS - 1) / LIMIT_THREADS);
}

// The argument of the kernels. P = positions, R = query_rows.
struct ScreenArgs {
    TopkArgs topk;
    ScreenPlan plan;
    float* centre;           // (D)
    uint4* query_values;     // (stages, R, 4): float16, 32 a row
    uint4* bank_values;      // (stages, P, 4)
    float4* query_terms;     // (R): threshold, two factors of the rounding, factor of the product
    float* query_squares;    // (R): squared length
    float4* row_terms;       // (P): constant, two factors of the rounding, factor of the product
    float* row_scales;       // (P) with a mask for each query: factor of the sum; with weights: their `row_factor`
    float* minima;           // (R, groups)
    unsigned* counts;        // (Q) survivors; zero
    int* survivors;          // (Q, most)
    int* redone;             // (Q): queries with more survivors than are kept
    unsigned* redone_count;  // zero; lies right after `counts`
};

// The sizes of the screened search of `args`; the stride is 0 where there is none: D is too large or 0, or there are
// both weights and a mask for each query, for which a block has no registers left.
ScreenPlan plan_screen(const TopkArgs& args, int stride);

// Places the buffers of `args` in a scratch that begins at a multiple of 256 bytes, and returns how many bytes they
// take (nullptr: only that).
std::int64_t place_screen(ScreenArgs& args, void* scratch);

// Starts the search of args.topk by args.plan on a stream of the current device. Q, B >= 1; args.topk is planned, its
// `chosen` null.
cudaError_t screen(const ScreenArgs& args, cudaStream_t stream);

}  // namespace lpkernel::cuda
