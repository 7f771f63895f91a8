// Distances in the code domain: d(q, b) = sum over the compared cells of table[code of q][code of b], int32.
//
// bank (cells, pitch) uint16, codes shifted left by code_shift; table (V, codes) int32. Two ways to look up:
//
// CodeRows, where a block's slab is larger than V. The TQ images of the tile have one code each at a cell, so one table
// row each; two warps of the block bring these rows to shared memory, interleaved [code][TQ], while the other warps
// work on the previous cells (two halves of `depth` cells). Each of their threads owns 8 neighbouring bank images,
// VECTORS times: one 16-byte load brings the codes of 8, and for TQ = 4 one 16-byte shared load looks up a code for all
// four images of the tile. Codes are stored times 16 (V <= 4096), so that half a word is directly the offset of that
// load.
//   PTX instructions per code: 1 to extract it from its word, 1 address, 1 lookup, TQ adds: 1.75 per distance and cell
//   for TQ = 4. An entry of the rows costs 1.5; interleaved by 4-byte cp.async in all threads it would cost 4.
//   Shared memory: the lookups of a warp hit the banks at random. A 16-byte load is served 8 lanes at a time, each lane
//   in one of 8 bank groups: about 2.6 turns, so 12 lookups per clock and SM; a 4-byte load takes about 3.5 turns for
//   32 lanes: 9 per clock. Neither comes near the 32 of a conflict-free access; wide lookups also save issue slots.
//   L2: V * 4 * TQ bytes of rows a cell for each 8 * VECTORS * threads bank images, 2 bytes a bank image and cell.
//
// CodeGather (TQ = 1), where the slab is smaller than a row, or rows do not fit: a thread owns one bank image and reads
// the table in place, through L1 and L2. `split` lanes share the cells of an image when there are fewer images than
// threads.
//
// Ties: sums are exact in any order, and scan.cuh orders equal ones by the position of the bank image. Limits: V <=
// 32768, sums below 2^31.

#pragma once

#include "cuda/block.cuh"

namespace lpkernel::cuda {

// The squared distance of two cells.
__device__ __forceinline__ int apart(const ScanArgs& args, const std::uint16_t* ours, const std::uint16_t* theirs) {
    return args.table[(*ours >> args.code_shift) * args.shape.codes + (*theirs >> args.code_shift)];
}

// Writes to shared memory the table-row offsets of `count` compared cells, and where these cells begin in the bank.
template <int TQ>
__device__ __forceinline__ void stage_codes(const ScanArgs& args, const Block& block, const std::uint16_t* canvas,
                                            int image_cells, const std::int32_t* cells, int count) {
    for (int i = static_cast<int>(threadIdx.x); i < count * TQ; i += static_cast<int>(blockDim.x)) {
        const int q = i % TQ, cell = cells[i / TQ];
        block.window[i] = (canvas[q * image_cells + cell] >> args.code_shift) * args.shape.codes;
        if (q == 0) block.where[i / TQ] = cell * args.pitch;
    }
}

template <int TQ>
struct CodeRows {
    using Unit = std::uint16_t;
    static constexpr int TILE = TQ, IMAGES = row_images(TQ), VECTORS = IMAGES / 8;

    static __device__ __forceinline__ int comparers() { return static_cast<int>(blockDim.x) - FETCHERS; }

    static __device__ __forceinline__ int chunk_images(const ScanArgs&) { return comparers() * IMAGES; }

    // A thread's vectors lie comparers() vectors apart, so that neighbouring threads load neighbouring vectors.
    static __device__ __forceinline__ int image(const ScanArgs&, int chunk, int r) {
        const int thread = static_cast<int>(threadIdx.x);
        return thread < comparers() ? chunk + (r / 8 * comparers() + thread) * 8 + r % 8 : INT32_MAX;
    }

    static __device__ __forceinline__ void stage(const ScanArgs& args, const Block& block, const Unit* canvas,
                                                 int image_cells, const std::int32_t* cells, int count, bool) {
        stage_codes<TQ>(args, block, canvas, image_cells, cells, count);
    }

    // What one load takes from a table row, and the 16 bytes that such loads at `p` make up.
    using Piece = std::conditional_t<TQ == 1, int4, std::int32_t>;
    static __device__ __forceinline__ int4 piece(const Piece* const (&row)[TQ], int p) {
        if constexpr (TQ == 1) {
            return row[0][p];
        } else {
            return make_int4(row[0][p], row[1][p], row[2][p], row[3][p]);
        }
    }

    // Brings the table rows of staged cells [from, from + depth) to one half; called by the last FETCHERS threads.
    static __device__ __forceinline__ void fetch(const ScanArgs& args, const Block& block, int from, int count,
                                                 int half) {
        constexpr int AT_ONCE = 4;
        const int depth = args.shape.depth, codes = args.shape.codes;
        const int lane = static_cast<int>(threadIdx.x) - comparers(), pieces = TQ == 1 ? codes / 4 : codes;
        int4* rows = reinterpret_cast<int4*>(block.rows) + half * depth * pieces;
        const int end = min(from + depth, count);
#pragma unroll 1
        for (int i = from; i < end; ++i, rows += pieces) {
            const Piece* row[TQ];
#pragma unroll
            for (int q = 0; q < TQ; ++q) {
                row[q] = reinterpret_cast<const Piece*>(args.table + block.window[i * TQ + q]) + lane;
            }
            int4* to = rows + lane;
            int left = (pieces - lane + FETCHERS - 1) / FETCHERS;
#pragma unroll 1
            for (; left >= AT_ONCE; left -= AT_ONCE) {
                int4 entries[AT_ONCE];
#pragma unroll
                for (int j = 0; j < AT_ONCE; ++j) entries[j] = piece(row, j * FETCHERS);
#pragma unroll
                for (int j = 0; j < AT_ONCE; ++j) to[j * FETCHERS] = entries[j];
#pragma unroll
                for (int q = 0; q < TQ; ++q) row[q] += AT_ONCE * FETCHERS;
                to += AT_ONCE * FETCHERS;
            }
#pragma unroll 1
            for (int p = 0; p < left * FETCHERS; p += FETCHERS) to[p] = piece(row, p);
        }
    }

    // Adds the table entries of a code, which is given times 16.
    static __device__ __forceinline__ void look_up(const char* row, unsigned code, int (&sum)[TQ]) {
        if constexpr (TQ == 4) {
            const int4 entry = *reinterpret_cast<const int4*>(row + code);
            sum[0] += entry.x;
            sum[1] += entry.y;
            sum[2] += entry.z;
            sum[3] += entry.w;
        } else {
            static_assert(TQ == 1, "rows of 1 or 4 images");
            sum[0] += *reinterpret_cast<const int*>(row + code / 4);
        }
    }

    static __device__ __forceinline__ void add(const ScanArgs& args, const Block& block, const Unit* bank, int count,
                                               int chunk, int (&sum)[IMAGES][TQ]) {
        const int depth = args.shape.depth, row_bytes = args.shape.codes * TQ * 4;
        const bool mine = image(args, chunk, 0) < block.last;
        const Unit* from_image = bank + image(args, chunk, 0);
        int further[VECTORS];  // a vector beyond the slab repeats the first; its sums are discarded
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) {
            further[v] = image(args, chunk, 8 * v) < block.last ? 8 * v * comparers() : 0;
        }
        int4 ahead[VECTORS] = {};
        const auto load = [&](int i) {
#pragma unroll
            for (int v = 0; v < VECTORS; ++v) {
                ahead[v] = *reinterpret_cast<const int4*>(from_image + block.where[i] + further[v]);
            }
        };
        __syncthreads();  // no thread still reads rows of the previous search
        const bool fetches = static_cast<int>(threadIdx.x) >= comparers();
        if (fetches) fetch(args, block, 0, count, 0);
        if (mine) load(0);
        int half = 0;
#pragma unroll 1
        for (int from = 0; from < count; from += depth, half ^= 1) {
            __syncthreads();  // this half has arrived, and no thread still reads the other
            if (fetches && from + depth < count) fetch(args, block, from + depth, count, half ^ 1);
            if (!mine) continue;
            const char* row = reinterpret_cast<const char*>(block.rows) + half * depth * row_bytes;
            const int end = min(from + depth, count);
#pragma unroll 1
            for (int i = from; i < end; ++i, row += row_bytes) {
                unsigned words[4 * VECTORS];
#pragma unroll
                for (int v = 0; v < VECTORS; ++v) {
                    words[4 * v] = static_cast<unsigned>(ahead[v].x);
                    words[4 * v + 1] = static_cast<unsigned>(ahead[v].y);
                    words[4 * v + 2] = static_cast<unsigned>(ahead[v].z);
                    words[4 * v + 3] = static_cast<unsigned>(ahead[v].w);
                }
                if (i + 1 < count) load(i + 1);
#pragma unroll
                for (int w = 0; w < 4 * VECTORS; ++w) {
                    look_up(row, words[w] & 0xffffu, sum[2 * w]);
                    look_up(row, words[w] >> 16, sum[2 * w + 1]);
                }
            }
        }
    }

    static __device__ __forceinline__ void finish(const ScanArgs&, const Block&, int (&)[IMAGES][TQ]) {}
};

struct CodeGather {
    using Unit = std::uint16_t;
    static constexpr int TILE = 1, IMAGES = 1;

    static __device__ __forceinline__ int chunk_images(const ScanArgs& args) {
        return static_cast<int>(blockDim.x) / args.shape.split;
    }

    static __device__ __forceinline__ int image(const ScanArgs& args, int chunk, int) {
        return image_of_lane(args.shape.split, chunk);
    }

    static __device__ __forceinline__ void stage(const ScanArgs& args, const Block& block, const Unit* canvas,
                                                 int image_cells, const std::int32_t* cells, int count, bool) {
        stage_codes<1>(args, block, canvas, image_cells, cells, count);
    }

    static __device__ __forceinline__ void add(const ScanArgs& args, const Block& block, const Unit* bank, int count,
                                               int chunk, int (&sum)[1][1]) {
        const int split = args.shape.split, thread = static_cast<int>(threadIdx.x);
        const int image = chunk + thread / split;
        if (image >= block.last) return;
#pragma unroll 4
        for (int i = thread % split; i < count; i += split) {
            sum[0][0] += args.table[block.window[i] + (bank[block.where[i] + image] >> args.code_shift)];
        }
    }

    static __device__ __forceinline__ void finish(const ScanArgs& args, const Block&, int (&sum)[1][1]) {
        sum_over_lanes(args.shape.split, sum);
    }
};

}  // namespace lpkernel::cuda
