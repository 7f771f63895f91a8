// Distances in the latent domain: d(q, b) = sum over the compared cells and channels of (q - b)^2, int32.
//
// bank (cells, A, W) int16, W channels padded with zeros to a multiple of 8. Since d = |q|^2 + sum b * (b - 2 q), exact
// modulo 2^32 whatever the order, |b|^2 is shared by the TQ images of the tile and |q|^2 is added at the end. Shared
// memory holds -2 q as int32, [cell][W / 8][TQ][8], which all lanes of a warp read at one address.
//
// A thread owns one bank image and reads it 16 bytes (8 channels) at a time; neighbouring lanes read neighbouring
// images, so a warp's loads use whole cache lines. `split` lanes share the cells of an image when there are fewer
// images than threads. Integer multiply-adds per channel: 1 + TQ; unpacking 1; shared loads TQ / 4.
// TQ = 1 is bound by memory: 2 W bytes per bank image and cell. TQ = 4 is bound by the integer units.
//
// Ties: scan.cuh orders equal distances by the position of the bank image. Limits: distances below 2^31; the window of
// a cell, TQ * W int32, fits shared memory.

#pragma once

#include "cuda/block.cuh"

namespace lpkernel::cuda {

__device__ __forceinline__ void unpack(const int4& from, int (&to)[CELL_VALUES]) {
    const int words[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
    for (int w = 0; w < 4; ++w) {
        to[2 * w] = static_cast<std::int16_t>(words[w]);
        to[2 * w + 1] = words[w] >> 16;
    }
}

// The squared distance of two cells.
__device__ __forceinline__ int apart(const ScanArgs& args, const int4* ours, const int4* theirs) {
    int sum = 0;
#pragma unroll 1
    for (int unit = 0; unit < args.shape.width / CELL_VALUES; ++unit) {
        int a[CELL_VALUES], b[CELL_VALUES];
        unpack(ours[unit], a);
        unpack(theirs[unit], b);
#pragma unroll
        for (int c = 0; c < CELL_VALUES; ++c) sum += (a[c] - b[c]) * (a[c] - b[c]);
    }
    return sum;
}

template <int TQ>
struct Latents {
    using Unit = int4;
    static constexpr int TILE = TQ, IMAGES = 1;

    static __device__ __forceinline__ int chunk_images(const ScanArgs& args) {
        return static_cast<int>(blockDim.x) / args.shape.split;
    }

    static __device__ __forceinline__ int image(const ScanArgs& args, int chunk, int) {
        return image_of_lane(args.shape.split, chunk);
    }

    // `measure`: also adds up |q|^2, which the caller has set to 0.
    static __device__ __forceinline__ void stage(const ScanArgs& args, const Block& block, const Unit* canvas,
                                                 int image_cells, const std::int32_t* cells, int count, bool measure) {
        const int units = args.shape.width / CELL_VALUES;
        for (int i = static_cast<int>(threadIdx.x); i < count * units * TQ; i += static_cast<int>(blockDim.x)) {
            const int q = i % TQ, unit = i / TQ % units, place = i / TQ / units, cell = cells[place];
            int values[CELL_VALUES], squares = 0;
            unpack(canvas[(q * image_cells + cell) * units + unit], values);
#pragma unroll
            for (int c = 0; c < CELL_VALUES; ++c) squares += values[c] * values[c];
            int4* to = reinterpret_cast<int4*>(block.window + i * CELL_VALUES);
            to[0] = make_int4(-2 * values[0], -2 * values[1], -2 * values[2], -2 * values[3]);
            to[1] = make_int4(-2 * values[4], -2 * values[5], -2 * values[6], -2 * values[7]);
            if (measure) atomicAdd(&block.norm[q], squares);
            if (q == 0 && unit == 0) block.where[place] = cell * args.pitch * units;
        }
    }

    static __device__ __forceinline__ void add(const ScanArgs& args, const Block& block, const Unit* bank, int count,
                                               int chunk, int (&sum)[1][TQ]) {
        const int split = args.shape.split, thread = static_cast<int>(threadIdx.x);
        const int units = args.shape.width / CELL_VALUES;
        const int image = chunk + thread / split;
        if (image >= block.last) return;
        int shared_by_tile = 0;  // |b|^2
        for (int i = thread % split; i < count; i += split) {
            const int4* from = bank + block.where[i] + static_cast<std::int64_t>(image) * units;
            const int4* queries = reinterpret_cast<const int4*>(block.window) + i * units * TQ * 2;
#pragma unroll 1
            for (int unit = 0; unit < units; ++unit, queries += 2 * TQ) {
                int values[CELL_VALUES];
                unpack(from[unit], values);
#pragma unroll
                for (int c = 0; c < CELL_VALUES; ++c) shared_by_tile += values[c] * values[c];
#pragma unroll
                for (int q = 0; q < TQ; ++q) {
                    const int4 low = queries[2 * q], high = queries[2 * q + 1];
                    sum[0][q] += low.x * values[0] + low.y * values[1] + low.z * values[2] + low.w * values[3];
                    sum[0][q] += high.x * values[4] + high.y * values[5] + high.z * values[6] + high.w * values[7];
                }
            }
        }
#pragma unroll
        for (int q = 0; q < TQ; ++q) sum[0][q] += shared_by_tile;
    }

    static __device__ __forceinline__ void finish(const ScanArgs& args, const Block& block, int (&sum)[1][TQ]) {
        sum_over_lanes(args.shape.split, sum);
#pragma unroll
        for (int q = 0; q < TQ; ++q) sum[0][q] += block.norm[q];
    }
};

}  // namespace lpkernel::cuda
