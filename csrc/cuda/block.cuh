// The state of a block that all parts of the scan kernel share.

#pragma once

#include "cuda/scan.h"
#include "cuda/shortlist.cuh"

namespace lpkernel::cuda {

// A block's shared memory (see SharedMap) and its place in the launch. A tile is TQ images.
struct Block {
    int* rows;                 // CodeRows: two halves of (depth, codes, TQ)
    int* window;               // compared cells: (span, TQ) offsets of table rows, or (span, W / 8, TQ, 8) latents
    std::int64_t* where;       // (span) where these cells begin in the bank
    Key* lists;                // (TQ, warps, pitch)
    int *want, *chosen, *row;  // (TQ): rank looked for, from 1; allowed image found; row in `images`
    int* norm;                 // (TQ): squared length of the compared cells, latents only
    int* bound;                // (TQ): a distance that at least `want` images do not exceed
    int *paths, *sums;         // (TQ, 2, P) and (TQ, 2, P, P), for boundaries (cut.cuh)
    int first, last;           // the block's slab of the allowed images
    int group, member;         // which group of blocks, and which block of it

    __device__ __forceinline__ Key* list(const ScanArgs& args, int q, int warp) const {
        const int warps = static_cast<int>(blockDim.x) / 32;
        return lists + (q * warps + warp) * args.shared.list_pitch;
    }
};

template <int TQ>
__device__ __forceinline__ Block this_block(const ScanArgs& args) {
    unsigned char* shared = dynamic_shared();
    Block block;
    block.rows = reinterpret_cast<int*>(shared);
    block.window = reinterpret_cast<int*>(shared + args.shared.window);
    block.where = reinterpret_cast<std::int64_t*>(shared + args.shared.where);
    block.lists = reinterpret_cast<Key*>(shared + args.shared.lists);
    int* scalars = reinterpret_cast<int*>(shared + args.shared.scalars);
    block.want = scalars;
    block.chosen = scalars + TQ;
    block.row = scalars + 2 * TQ;
    block.norm = scalars + 3 * TQ;
    block.bound = scalars + 4 * TQ;
    block.paths = reinterpret_cast<int*>(shared + args.shared.paths);
    block.sums = reinterpret_cast<int*>(shared + args.shared.sums);
    const int group = args.shape.group;
    block.group = static_cast<int>(blockIdx.x) / group;
    block.member = static_cast<int>(blockIdx.x) % group;
    // Slabs begin at multiples of 8 images, where 16-byte loads of codes may begin.
    const int share = ((args.allowed + group - 1) / group + 7) / 8 * 8;
    block.first = min(share * block.member, args.allowed);
    block.last = min(block.first + share, args.allowed);
    return block;
}

// Adds up the partial sums of the `split` lanes of one bank image; all of them get the total.
template <int TQ>
__device__ __forceinline__ void sum_over_lanes(int split, int (&sum)[1][TQ]) {
    for (int lanes = split / 2; lanes > 0; lanes /= 2) {
#pragma unroll
        for (int q = 0; q < TQ; ++q) sum[0][q] += __shfl_xor_sync(WARP, sum[0][q], lanes);
    }
}

// The allowed image whose distance this lane keeps after sum_over_lanes(); INT32_MAX in the other lanes.
__device__ __forceinline__ int image_of_lane(int split, int chunk) {
    const int thread = static_cast<int>(threadIdx.x);
    return thread % split == 0 ? chunk + thread / split : INT32_MAX;
}

}  // namespace lpkernel::cuda
