// Distances in the code domain: d(q, b) = sum over the compared cells of table[code of q][code of b], int32.
//
// bank (cells, pitch) int16 codes, table (V, codes) int32. Two ways to look up:
//
// CodeRows, where a block's slab is larger than V. The TQ images of the tile have one code each at a cell, so one table
// row each; the block brings these rows to shared memory, interleaved [code][TQ], while it works on the cells before
// (cp.async, two halves of `depth` cells). A thread owns 8 neighbouring bank images: one 16-byte load brings their
// codes, and for TQ = 4 one 16-byte shared load answers a code for all four images.
//   Instructions a bank image, cell and tile: 1/8 load, 1 to take the code out of its word, 2 for the address, 1 lookup,
//   TQ adds: 2.0 a lookup-and-add pair for TQ = 4 (PTX; SASS folds an address step), 5.1 for TQ = 1.
//   Shared memory: lookups of a warp meet in banks at random. A 16-byte load is served 8 lanes at a time, each lane in
//   one of 8 bank groups: about 2.6 turns, so 12 lookups a clock and SM; a 4-byte load takes about 3.5 turns for 32
//   lanes: 9 a clock. Neither comes near the 32 of a conflict-free access; wide lookups also save issue slots.
//   L2: V * 4 * TQ bytes of rows a cell for each `8 * threads` bank images, 2 bytes of codes a bank image and cell.
//
// CodeGather (TQ = 1), where the slab is smaller than a row, or rows do not fit: a thread owns one bank image and reads
// the table where it is, in L1 and L2. `split` lanes share the cells of an image when images are fewer than threads.

#pragma once

#include "cuda/block.cuh"

namespace lpkernel::cuda {

// Puts the offsets of the table rows of `count` compared cells, and their numbers, into shared memory.
template <int TQ>
__device__ __forceinline__ void stage_codes(const ScanArgs& args, const Block& block, const std::int16_t* canvas,
                                            int image_cells, const std::int32_t* cells, int count) {
    for (int i = static_cast<int>(threadIdx.x); i < count * TQ; i += static_cast<int>(blockDim.x)) {
        const int q = i % TQ, cell = cells[i / TQ];
        block.window[i] = canvas[q * image_cells + cell] * args.shape.codes;
        if (q == 0) block.where[i / TQ] = cell;
    }
}

template <int TQ>
struct CodeRows {
    using Unit = std::int16_t;
    static constexpr int TILE = TQ, VECTORS = 2, IMAGES = 8 * VECTORS;

    // A thread's vectors lie a block's width of vectors apart, so that neighbouring threads load neighbouring ones.
    static __device__ __forceinline__ int image(const ScanArgs&, int chunk, int r) {
        return chunk + (r / 8 * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * 8 + r % 8;
    }

    static __device__ __forceinline__ void finish(const ScanArgs&, const Block&, int (&)[IMAGES][TQ]) {}

    static __device__ __forceinline__ void stage(const ScanArgs& args, const Block& block, const Unit* canvas,
                                                 int image_cells, const std::int32_t* cells, int count, bool) {
        stage_codes<TQ>(args, block, canvas, image_cells, cells, count);
    }

    // Starts the copy of the rows of staged cells [from, from + depth) to one half.
    static __device__ __forceinline__ void fetch(const ScanArgs& args, const Block& block, int from, int count,
                                                 int half) {
        const int depth = args.shape.depth, codes = args.shape.codes;
        const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
        const int end = from + depth < count ? from + depth : count;
        int* rows = block.rows + half * depth * codes * TQ;
        for (int i = from; i < end; ++i, rows += codes * TQ) {
            if constexpr (TQ == 1) {
                const std::int32_t* row = args.table + block.window[i];
                for (int code = 4 * thread; code < codes; code += 4 * threads) {
                    __pipeline_memcpy_async(rows + code, row + code, 16);
                }
            } else {
                const int q = thread % TQ;
                const std::int32_t* row = args.table + block.window[i * TQ + q];
                int* to = rows + thread;
#pragma unroll 2
                for (int code = thread / TQ; code < codes; code += threads / TQ, to += threads) {
                    __pipeline_memcpy_async(to, row + code, 4);
                }
            }
        }
        __pipeline_commit();
    }

    static __device__ __forceinline__ void look_up(const int* row, unsigned code, int (&sum)[TQ]) {
        if constexpr (TQ == 4) {
            const int4 entry = reinterpret_cast<const int4*>(row)[code];
            sum[0] += entry.x;
            sum[1] += entry.y;
            sum[2] += entry.z;
            sum[3] += entry.w;
        } else {
            static_assert(TQ == 1, "rows of 1 or 4 images");
            sum[0] += row[code];
        }
    }

    static __device__ __forceinline__ void add(const ScanArgs& args, const Block& block, const Unit* bank, int count,
                                               int chunk, int (&sum)[IMAGES][TQ]) {
        const int depth = args.shape.depth, codes = args.shape.codes;
        const bool mine[VECTORS] = {image(args, chunk, 0) < block.last, image(args, chunk, 8) < block.last};
        int4 ahead[VECTORS];
        const auto load = [&](int i) {
#pragma unroll
            for (int v = 0; v < VECTORS; ++v) {
                const Unit* from = bank + block.where[i] * args.pitch + image(args, chunk, 8 * v);
                ahead[v] = mine[v] ? *reinterpret_cast<const int4*>(from) : make_int4(0, 0, 0, 0);
            }
        };
        __syncthreads();  // no thread reads rows of the search before
        fetch(args, block, 0, count, 0);
        load(0);
        int half = 0;
        for (int from = 0; from < count; from += depth, half ^= 1) {
            __pipeline_wait_prior(0);
            __syncthreads();  // this half is here, and no thread reads the other
            if (from + depth < count) fetch(args, block, from + depth, count, half ^ 1);
            const int* row = block.rows + half * depth * codes * TQ;
            const int end = from + depth < count ? from + depth : count;
            if (!mine[0]) continue;
            for (int i = from; i < end; ++i, row += codes * TQ) {
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
};

struct CodeGather {
    using Unit = std::int16_t;
    static constexpr int TILE = 1, IMAGES = 1;

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
            sum[0][0] += args.table[block.window[i] + bank[block.where[i] * args.pitch + image]];
        }
    }

    static __device__ __forceinline__ void finish(const ScanArgs& args, const Block&, int (&sum)[1][1]) {
        sum_over_lanes(args.shape.split, sum);
    }
};

}  // namespace lpkernel::cuda
