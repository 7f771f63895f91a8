// The canvases of a tile, in global memory that only their block touches: (2, TQ, M * M, W), the second half for the
// next scale. Every block of a group keeps its own copy, so that a step needs one barrier, not two.

#pragma once

#include "cuda/cut.cuh"

namespace lpkernel::cuda {

// One channel of cell (y, x) of a canvas resized from side n, by the tables i0, i1, f of length `pitch` each: four
// corners times two 8-bit weights, rounded by a shift, as in lpkernel.backends.specification.resize_canvas.
// value(from[i]) is the value of a corner.
template <class From, class Value>
__device__ __forceinline__ std::int16_t resized(const From& from, int n, int width, const std::int32_t* tables,
                                                int pitch, int y, int x, Value value) {
    const int top = tables[y] * n, bottom = tables[pitch + y] * n, down = tables[2 * pitch + y];
    const int left = tables[x], right = tables[pitch + x], across = tables[2 * pitch + x];
    const auto corner = [&](int row, int column) { return static_cast<int>(value(from[(row + column) * width])); };
    const int at_left = corner(top, left) * (256 - down) + corner(bottom, left) * down;
    const int at_right = corner(top, right) * (256 - down) + corner(bottom, right) * down;
    return static_cast<std::int16_t>((at_left * (256 - across) + at_right * across + 32768) >> 16);
}

// Writes the canvases at the beginning of scale s to `to`, from those of the scale before in `from`. The first scale
// begins with its starting canvas, or zeros; the others take theirs only in cells that no step writes. Ends without a
// barrier.
template <int TQ>
__device__ __forceinline__ void enter_scale(const ScanArgs& args, const Block& block, int s, const std::int16_t* from,
                                            std::int16_t* to) {
    const std::int32_t* scale = args.scales + 5 * s;
    const int side = scale[0], width = args.shape.width, per_image = args.side * args.side * width;
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    const int starts = args.begin[2 * s + 1];
    const std::int16_t* start = args.start + static_cast<std::int64_t>(args.begin[2 * s]) * width;
    const int values = side * side * width;
    const auto started = [&](int q, int value) {
        const std::int64_t row = starts == 1 ? 0 : block.row[q];
        return start[row * values + value];
    };
    for (int q = 0; q < TQ; ++q) {
        std::int16_t* canvas = to + q * per_image;
        if (s == 0) {
            for (int i = thread; i < values; i += threads) canvas[i] = starts ? started(q, i) : std::int16_t{0};
            continue;
        }
        const int before = scale[-5];
        const std::int32_t* tables = args.resize + 3 * s * args.side;
        for (int i = thread; i < values; i += threads) {
            const int cell = i / width;
            canvas[i] = resized(from + q * per_image + i % width, before, width, tables, args.side, cell / side,
                                cell % side, [](std::int16_t corner) { return corner; });
        }
    }
    if (s > 0 && starts) {
        __syncthreads();
        const std::int32_t* kept = args.cells + scale[3];
        for (int i = thread; i < TQ * scale[4] * width; i += threads) {
            const int value = kept[i / width % scale[4]] * width + i % width, q = i / width / scale[4];
            to[q * per_image + value] = started(q, value);
        }
    }
}

// Copies the chosen patches into the canvases, except for cells that `boundaries` keeps.
template <class Unit, int TQ>
__device__ __forceinline__ void copy_patches(const ScanArgs& args, const Block& block, const Unit* bank, Unit* canvas,
                                             const std::int32_t* cells, int count, const Boundaries& boundaries) {
    const int units = args.shape.width * 2 / static_cast<int>(sizeof(Unit)), per_image = args.side * args.side * units;
    for (int i = static_cast<int>(threadIdx.x); i < TQ * count * units; i += static_cast<int>(blockDim.x)) {
        const int unit = i % units, cell = cells[i / units % count], q = i / units / count;
        if (boundaries.keep(block, q, cell)) continue;
        canvas[q * per_image + cell * units + unit] = bank[(cell * args.pitch + block.chosen[q]) * units + unit];
    }
}

// Records `value(q)` as the source of `count` cells, except those that `boundaries` keeps, for those images of the tile
// that exist.
template <int TQ, class Value>
__device__ __forceinline__ void note_sources(const ScanArgs& args, const Block& block, int first_row,
                                             const std::int32_t* cells, int count, const Boundaries& boundaries,
                                             Value value) {
    for (int i = static_cast<int>(threadIdx.x); i < TQ * count; i += static_cast<int>(blockDim.x)) {
        const int q = i / count, row = first_row + q;
        if (row < args.image_count && !boundaries.keep(block, q, cells[i % count])) {
            args.sources[static_cast<std::int64_t>(row) * args.side * args.side + cells[i % count]] = value(q);
        }
    }
}

}  // namespace lpkernel::cuda
