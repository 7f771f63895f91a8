// A plan over a small bank, one block per image, with distances from tables.
//
//   distance(q, b) = sum over the compared cells of row(cell)[b], less the image's offset
//
// A canvas cell is either a copy of a bank image's cell, or what it began its scale with. For the first kind all
// distances are known beforehand: tables[cell][source][b] holds those of every pair of images at every cell. For the
// second kind they are measured when the scale begins. So a canvas is the number of a source for each cell, a step adds
// up one row for each cell that it compares, and images, which depend on nothing else, walk through the plan without
// waiting for each other.
//
//   measure  tables: once for a bank and its sides, one block per cell and MEASURED of its images
//   measure  what the cells of a scale begin with, resized or given: before each scale that has such cells
//   walk     all steps of a scale, or of all scales of a plan that carries; one block per image. A step:
//              1. pointers to the rows of the compared cells go to shared memory;
//              2. each thread adds up the entries of its R bank images in these rows, ROWS_AT_ONCE in flight; in a bank
//                 of few images, up to WALK_SPLIT lanes share the rows of one;
//              3. each warp takes its `want` smallest keys, one after the other, then every warp takes those of all;
//              4. boundaries (cut.cuh), whose errors are entries of the same rows; cells take their new source.
//            The draw of a step gives `want`; a warp makes the draws of 32 steps at once. What a step needs of the plan
//            is loaded during the step before.
//
// Traffic of a step and image: 4 * A bytes for each compared cell, from L2 where the tables fit it. Nothing else waits
// for memory: between one choice and the next lies only one load of rows.
//
// Ties: keys are distance << 32 | position among the allowed images, the minimum wins.
// Limits: A <= WALK_IMAGES, K <= 128, side <= WALK_SIDE, distances and offsets below 2^31, P <= 32 where there are
// boundaries.

#pragma once

#include "common/philox.h"
#include "cuda/canvas.cuh"
#include "cuda/distance_latents.cuh"
#include "cuda/walk.h"

namespace lpkernel::cuda {

// One channel of a canvas at the end of a scale, cell by cell: the source's value, or what the cell began with.
struct ScaleEnd {
    const std::int16_t *bank, *began;  // of the scale, from the channel on
    const std::int32_t* sources;
    std::int64_t pitch;
    int width;

    __device__ __forceinline__ int operator[](int cell) const {
        const int source = sources[cell];
        return source < 0 ? began[cell * width] : bank[(cell * pitch + source) * width];
    }
};

// What a cell of image `row` begins scale s with: the value given, or the previous canvas, resized. (Codes have one
// scale.)
template <bool CODES>
__device__ __forceinline__ std::int16_t begun(const WalkArgs& args, int s, int row, int cell, int channel, bool given) {
    const ScanArgs& scan = args.scan;
    const std::int32_t* scale = scan.scales + 5 * s;
    const int side = scale[0], width = scan.shape.width, starts = scan.begin[2 * s + 1];
    if (given) {
        const std::int64_t start = starts == 1 ? 0 : args.base + row;
        return scan.start[(scan.begin[2 * s] + start * side * side + cell) * width + channel];
    }
    if (CODES || s == 0) return 0;
    const int before = scale[-5];
    const std::int64_t cells = scan.side * scan.side, canvas = static_cast<std::int64_t>(row) * 2 + (~s & 1);
    ScaleEnd end;
    end.bank = scan.bank + (args.first_cell - before * before) * scan.pitch * width + channel;
    end.began = scan.canvas + canvas * cells * width + channel;
    end.sources = args.state + row * cells;
    end.pitch = scan.pitch;
    end.width = width;
    return resized(end, before, 1, scan.resize + 3 * s * scan.side, scan.side, cell / side, cell % side,
                   [](int value) { return value; });
}

// Writes to `out`, in rows `stride` apart, the distances of a cell of `count` images (`values`, W apart, in shared
// memory) to all allowed images. Codes: values are where rows begin in the V x V table.
template <bool CODES>
__device__ __forceinline__ void measure_rows(const WalkArgs& args, const int* values, int count, std::int64_t cell,
                                             std::int32_t* out, std::int64_t stride) {
    const ScanArgs& scan = args.scan;
    const int width = scan.shape.width, allowed = scan.allowed;
    const std::int16_t* bank = scan.bank + cell * scan.pitch * width;
    for (int pair = static_cast<int>(threadIdx.x); pair < count * allowed; pair += MEASURE_THREADS) {
        const int q = pair / allowed, b = pair % allowed;
        int sum = 0;
        if constexpr (CODES) {
            sum = scan.table[values[q] + (static_cast<std::uint16_t>(bank[b]) >> scan.code_shift)];
        } else {
            const int4* theirs = reinterpret_cast<const int4*>(bank + static_cast<std::int64_t>(b) * width);
            const int* ours = values + q * width;
#pragma unroll 1
            for (int unit = 0; unit < width / CELL_VALUES; ++unit, ours += CELL_VALUES) {
                int their[CELL_VALUES];
                unpack(theirs[unit], their);
#pragma unroll
                for (int c = 0; c < CELL_VALUES; ++c) sum += (ours[c] - their[c]) * (ours[c] - their[c]);
            }
        }
        out[q * stride + b] = sum;
    }
}

// One block per cell of scale args.first_scale and MEASURED allowed images (TABLE) or images being made.
template <bool CODES, bool TABLE>
__global__ void __launch_bounds__(MEASURE_THREADS) walk_measure_kernel(const __grid_constant__ WalkArgs args) {
    const ScanArgs& scan = args.scan;
    const int s = args.first_scale, thread = static_cast<int>(threadIdx.x), width = scan.shape.width;
    const std::int32_t* scale = scan.scales + 5 * s;
    const int cells = scale[0] * scale[0], cell = static_cast<int>(blockIdx.x) % cells;
    const int first = static_cast<int>(blockIdx.x) / cells * MEASURED;
    const int count = min((TABLE ? scan.allowed : args.rows) - first, MEASURED);
    int* values = reinterpret_cast<int*>(dynamic_shared());  // (MEASURED, W)
    const std::int64_t bank_cell = args.first_cell + cell, canvas_cells = scan.side * scan.side;
    bool given = false;
    if (!TABLE && scan.begin[2 * s + 1] > 0) {  // after the first scale, only cells that no step writes
        bool kept = s == 0;
        for (int i = thread; i < scale[4]; i += MEASURE_THREADS) kept |= scan.cells[scale[3] + i] == cell;
        given = __syncthreads_or(kept) != 0;
    }
    for (int i = thread; i < count * width; i += MEASURE_THREADS) {
        const int q = first + i / width, channel = i % width;
        std::int16_t value;
        if constexpr (TABLE) {
            value = scan.bank[(bank_cell * scan.pitch + q) * width + channel];
        } else {
            value = begun<CODES>(args, s, q, cell, channel, given);
            scan.canvas[((static_cast<std::int64_t>(q) * 2 + (s & 1)) * canvas_cells + cell) * width + channel] = value;
        }
        values[i] =
            CODES ? (static_cast<std::uint16_t>(value) >> scan.code_shift) * scan.shape.codes : static_cast<int>(value);
    }
    __syncthreads();
    const std::int64_t pitch = args.pitch;
    if constexpr (TABLE) {
        std::int32_t* out = args.tables + (bank_cell * scan.allowed + first) * pitch;
        measure_rows<CODES>(args, values, count, bank_cell, out, pitch);
    } else {
        std::int32_t* out = args.measured + (first * canvas_cells + cell) * pitch;
        measure_rows<CODES>(args, values, count, bank_cell, out, canvas_cells * pitch);
    }
}

// What a walking block keeps in shared memory, and its rows of distances.
struct Walk {
    std::int32_t* sources;              // (M * M), -1 where a cell is as it began
    const std::int32_t** window;        // (WALK_SPAN) rows of distances
    Key* lists;                         // (warps, K)
    const std::int32_t *table, *began;  // distances of sources and of what cells began with, at this scale

    __device__ __forceinline__ const std::int32_t* row(const WalkArgs& args, int cell) const {
        const int source = sources[cell];
        if (source < 0) return began + static_cast<std::int64_t>(cell) * args.pitch;
        return table + (static_cast<std::int64_t>(cell) * args.scan.allowed + source) * args.pitch;
    }
};

// Some cells of a step; each thread holds the first HELD of its own in registers.
constexpr int HELD = 2;
struct HeldCells {
    int held[HELD];

    __device__ __forceinline__ void load(const std::int32_t* cells, int count) {
#pragma unroll
        for (int h = 0; h < HELD; ++h) {
            const int i = static_cast<int>(threadIdx.x + h * blockDim.x);
            held[h] = i < count ? cells[i] : 0;
        }
    }

    // Calls use(i, cell) for the thread's cells from `from`, a multiple of WALK_SPAN, up to `end`.
    template <class Use>
    __device__ __forceinline__ void each(const std::int32_t* cells, int from, int end, Use use) const {
        const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
        int i = from + thread;
        if (from == 0) {
#pragma unroll
            for (int h = 0; h < HELD; ++h, i += threads) {
                if (i < end) use(i, held[h]);
            }
        }
        for (; i < end; i += threads) use(i, cells[i]);
    }
};

// Rows that a thread of R bank images has in flight.
template <int R>
constexpr int ROWS_AT_ONCE = R == 1   ? 18
                             : R == 2 ? 12
                                      : 9;

// Adds the entries of the thread's bank images `image` in the `rows` staged rows, a multiple of those in flight.
template <int R>
__device__ __forceinline__ void add_rows(const WalkArgs& args, const Walk& walk, int rows, const int (&image)[R],
                                         int (&sum)[R]) {
    constexpr int CELLS = ROWS_AT_ONCE<R>;
    const int split = args.split, part = static_cast<int>(threadIdx.x) % split;
#pragma unroll 1
    for (int from = part; from < rows; from += CELLS * split) {
        int entries[CELLS][R];
#pragma unroll
        for (int c = 0; c < CELLS; ++c) {
            const std::int32_t* row = walk.window[from + c * split];
#pragma unroll
            for (int r = 0; r < R; ++r) entries[c][r] = __ldg(row + image[r]);
        }
#pragma unroll
        for (int c = 0; c < CELLS; ++c) {
#pragma unroll
            for (int r = 0; r < R; ++r) sum[r] += entries[c][r];
        }
    }
}

// The least key of a warp, in all lanes.
__device__ __forceinline__ Key least_of_warp(Key key) {
    const int distance = __reduce_min_sync(WARP, key_distance(key));
    const unsigned index = key_distance(key) == distance ? static_cast<unsigned>(key) : 0xffffffffu;
    return make_key(distance, __reduce_min_sync(WARP, index));
}

// The key of rank `want`, from 1, among those of all threads of the block; all of them get it.
template <int R>
__device__ __forceinline__ Key key_of_rank(Key (&keys)[R], int want, Key* lists) {
    const int warp = static_cast<int>(threadIdx.x) / 32, warps = static_cast<int>(blockDim.x) / 32;
    Key found = EMPTY;
#pragma unroll 1
    for (int rank = 0; rank < want; ++rank) {
        Key least = keys[0];
#pragma unroll
        for (int r = 1; r < R; ++r) least = keys[r] < least ? keys[r] : least;
        found = least_of_warp(least);
#pragma unroll
        for (int r = 0; r < R; ++r) keys[r] = keys[r] == found ? EMPTY : keys[r];
        if (warps > 1 && lane_id() == 0) lists[warp * want + rank] = found;
    }
    if (warps == 1) return found;
    __syncthreads();
    int taken = 0;  // from this lane's list: one lane per warp
#pragma unroll 1
    for (int rank = 0; rank < want; ++rank) {
        const Key next = lane_id() < warps && taken < want ? lists[lane_id() * want + taken] : EMPTY;
        found = least_of_warp(next);
        taken += next == found;
    }
    return found;
}

// The position of the image that a step copies: that of rank `want` by its compared cells.
template <int R>
__device__ __forceinline__ int nearest(const WalkArgs& args, const Walk& walk, const HeldCells& held,
                                       const std::int32_t* cells, int compared, int step, int want) {
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x), split = args.split;
    const int allowed = args.scan.allowed, together = ROWS_AT_ONCE<R> * split;
    int image[R], sum[R];
    const std::int32_t* offsets = args.scan.offsets;
    if (offsets) offsets += static_cast<std::int64_t>(step) * allowed;
#pragma unroll
    for (int r = 0; r < R; ++r) {
        image[r] = min(thread / split + r * threads, allowed - 1);
        sum[r] = offsets && thread % split == 0 ? -offsets[image[r]] : 0;
    }
    for (int from = 0; from < compared; from += WALK_SPAN) {
        const int count = min(compared - from, WALK_SPAN), rows = (count + together - 1) / together * together;
        if (from > 0) __syncthreads();  // no thread still reads what was staged
        held.each(cells, from, from + count, [&](int i, int cell) { walk.window[i - from] = walk.row(args, cell); });
        for (int i = count + thread; i < rows; i += threads) walk.window[i] = args.tables + args.zeros;
        __syncthreads();
        add_rows<R>(args, walk, rows, image, sum);
    }
    for (int lanes = split / 2; lanes > 0; lanes /= 2) sum[0] += __shfl_xor_sync(WARP, sum[0], lanes);
    Key keys[R];
#pragma unroll
    for (int r = 0; r < R; ++r) {
        const bool mine = thread % split == 0 && thread / split + r * threads < allowed;
        keys[r] = mine ? make_key(sum[r], static_cast<unsigned>(image[r])) : EMPTY;
    }
    return static_cast<int>(static_cast<unsigned>(key_of_rank<R>(keys, want, walk.lists)));
}

template <int R>
__global__ void __launch_bounds__(WALK_THREADS, R == 1 ? 2 : 1) walk_kernel(const __grid_constant__ WalkArgs args) {
    const ScanArgs& scan = args.scan;
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    const int image = args.base + static_cast<int>(blockIdx.x), canvas_cells = scan.side * scan.side;
    unsigned char* shared = dynamic_shared();
    auto* sources = reinterpret_cast<std::int32_t*>(shared);
    Walk walk;
    walk.window = reinterpret_cast<const std::int32_t**>(shared + args.shared.window);
    walk.lists = reinterpret_cast<Key*>(shared + args.shared.lists);
    walk.table = args.tables + args.first_cell * scan.allowed * args.pitch;
    walk.began = args.measured + static_cast<std::int64_t>(blockIdx.x) * canvas_cells * args.pitch;
    Block block{};
    block.paths = reinterpret_cast<int*>(shared + args.shared.paths);
    block.sums = reinterpret_cast<int*>(shared + args.shared.sums);
    const std::uint32_t number = scan.images[image];
    const int4* steps = reinterpret_cast<const int4*>(scan.steps);  // first and number of compared, of written cells

    for (int s = args.first_scale; s < args.scale_end; ++s) {
        const std::int32_t* scale = scan.scales + 5 * s;
        const int side = scale[0], first = scale[1], end = scale[1] + scale[2];
        const std::int32_t* before = sources + (~s & 1) * canvas_cells;
        walk.sources = sources + (s & 1) * canvas_cells;
        for (int cell = thread; cell < side * side; cell += threads) {
            int source = -1;
            if (s > args.first_scale) {
                const int from = scale[-5], y = (2 * (cell / side) + 1) * from / (2 * side);
                source = before[y * from + (2 * (cell % side) + 1) * from / (2 * side)];
            }
            walk.sources[cell] = source;
        }
        HeldCells compared, written;
        int4 step = first < end ? steps[first] : int4{}, next = first + 1 < end ? steps[first + 1] : int4{};
        compared.load(scan.cells + step.x, step.y);
        written.load(scan.cells + step.z, step.w);
        std::uint32_t draws = 0;  // lane l: that of the l-th of 32 steps
        __syncthreads();
        for (int t = first; t < end; ++t) {
            const HeldCells ours = compared, copied = written;
            compared.load(scan.cells + next.x, next.y);
            written.load(scan.cells + next.z, next.w);
            const int4 further = t + 2 < end ? steps[t + 2] : int4{};
            if ((t - first) % 32 == 0)
                draws = draw(scan.seed, number, scan.first_step + static_cast<unsigned>(t + lane_id()));
            const std::uint32_t u = __shfl_sync(WARP, draws, (t - first) % 32);
            int chosen = static_cast<int>(draw_index(u, static_cast<std::uint32_t>(scan.allowed)));
            if (step.y > 0) {
                const int want = 1 + static_cast<int>(draw_index(u, static_cast<std::uint32_t>(scan.shape.k)));
                chosen = nearest<R>(args, walk, ours, scan.cells + step.x, step.y, t, want);
            }
            const Boundaries boundaries(scan, t, side);
            if (boundaries.some()) {
                boundaries.find<1>(block, [&](int, int cell) { return walk.row(args, cell)[chosen]; });
                __syncthreads();
            }
            copied.each(scan.cells + step.z, 0, step.w, [&](int, int cell) {
                if (!boundaries.keep(block, 0, cell)) walk.sources[cell] = chosen;
            });
            __syncthreads();
            step = next;
            next = further;
        }
        walk.table += static_cast<std::int64_t>(side) * side * scan.allowed * args.pitch;
    }
    const std::int32_t* scale = scan.scales + 5 * (args.scale_end - 1);
    const bool last = args.scale_end == scan.scale_count;
    std::int32_t* out = last ? scan.sources + static_cast<std::int64_t>(image) * canvas_cells
                             : args.state + static_cast<std::int64_t>(blockIdx.x) * canvas_cells;
    for (int cell = thread; cell < scale[0] * scale[0]; cell += threads) {
        const int source = walk.sources[cell];
        out[cell] = last && source >= 0 ? scan.candidates[source] : source;
    }
}

}  // namespace lpkernel::cuda
