// Cells and small parts of source maps join a neighbouring part where that makes seams cheaper: lpkernel/refine.py has
// the rule.
//
//   E(s) = sum over neighbouring cells i, j of images a = s_i != b = s_j of  d_i(a, b) + d_j(a, b)
//
// maps (n, M, M) int32, each refined in place by one block; distances d from the bank of the last scale (codes and the
// V x V table, or latents). A block keeps its map in shared memory, as labels: an image is called by the first of the
// cells that have it when the kernel begins. So counts of images are an array over cells, whatever the bank's size.
//
//   parts   roots by steps of all cells: the least root among a cell and its neighbours of the same label, then that
//           one's root, and so on, until no root changes. A root is the first cell of its part.
//   pass    warp 0, one part after the other: a lane per pair of a cell of the part and a neighbour outside, then as
//           many lanes per image as there are pairs (at most 32). Nothing else of the block works meanwhile.
//   sweep   four lanes per cell, one for each neighbour; each measures the cell's own image and all four beside it
//           against its neighbour's. Cells of one colour are not neighbours, so labels are written at once; counts are
//           those of the beginning of the half sweep.
//
// Traffic: maps are read and written once. A lane of a half sweep has 12 codes in flight, then 10 table entries, which
// L1 and L2 hold; a part waits for memory twice, one after the other. Hence several maps to a multiprocessor.
//
// Ties: own image first, then the first met; cells in raster order, each above, left, right, below. A key is
// cost * KEY_STEP + place among the images met, so the minimum is right in any order of lanes.
// Limits: M <= REFINE_SIDE, parts of up to REFINE_PART cells; distances of two cells below 2^31, so two of them fit 32
// bits unsigned; sums of more are of 64 bits: below 1024 * 2^32 for a part, keys below 2^53.

#pragma once

#include "cuda/distance_latents.cuh"
#include "cuda/refine.h"

namespace lpkernel::cuda {

constexpr int NEAR = 4;                  // neighbours of a cell: above, left, right, below
constexpr std::int64_t KEY_STEP = 2048;  // a power of two, more than the images beside a part, and its own

// The block's map, in shared memory.
struct Refining {
    int* images;  // (cells) position among the allowed images, of a label
    int *labels, *counts, *next, *roots, *other;
    int *part, *pairs, *beside;
    int side, cells;

    __device__ __forceinline__ explicit Refining(const RefineArgs& args)
        : side(args.side), cells(args.side * args.side) {
        unsigned char* shared = dynamic_shared();
        const auto at = [&](int offset) { return reinterpret_cast<int*>(shared + offset); };
        images = at(0);
        labels = at(args.shared.labels);
        counts = at(args.shared.counts);
        next = at(args.shared.next);
        roots = at(args.shared.roots);
        other = at(args.shared.other);
        part = at(args.shared.part);
        pairs = at(args.shared.pairs);
        beside = at(args.shared.beside);
    }

    // The neighbour of a cell, -1 beyond the edge.
    __device__ __forceinline__ int neighbour(int cell, int direction) const {
        const int x = cell % side;
        switch (direction) {
            case 0:
                return cell - side;  // negative in the first row
            case 1:
                return x > 0 ? cell - 1 : -1;
            case 2:
                return x + 1 < side ? cell + 1 : -1;
            default:
                return cell + side < cells ? cell + side : -1;
        }
    }

    template <class Use>
    __device__ __forceinline__ void each_cell(Use use) const {
        for (int cell = static_cast<int>(threadIdx.x); cell < cells; cell += static_cast<int>(blockDim.x)) use(cell);
    }
};

// Adds the squared distances of some images from another one at a cell to `sums`.
template <bool CODES, int COUNT>
__device__ __forceinline__ void add_distances(const RefineArgs& args, int cell, const int (&images)[COUNT], int from,
                                              unsigned (&sums)[COUNT]) {
    const std::int64_t first = cell * args.pitch;
    if constexpr (CODES) {
        const auto* bank = reinterpret_cast<const std::uint16_t*>(args.bank) + first;
        const std::int32_t* row = args.table + (__ldg(bank + from) >> args.code_shift) * args.codes;
        int codes[COUNT];
#pragma unroll
        for (int i = 0; i < COUNT; ++i) codes[i] = __ldg(bank + images[i]) >> args.code_shift;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) sums[i] += static_cast<unsigned>(__ldg(row + codes[i]));
    } else {
        const std::int64_t units = args.width / CELL_VALUES;
        const int4* bank = reinterpret_cast<const int4*>(args.bank) + first * units;
#pragma unroll 1
        for (int unit = 0; unit < units; ++unit, ++bank) {
            int theirs[CELL_VALUES];
            unpack(__ldg(bank + from * units), theirs);
#pragma unroll
            for (int i = 0; i < COUNT; ++i) {
                int ours[CELL_VALUES];
                unpack(__ldg(bank + images[i] * units), ours);
#pragma unroll
                for (int c = 0; c < CELL_VALUES; ++c) {
                    const auto apart = static_cast<unsigned>(ours[c] - theirs[c]);
                    sums[i] += apart * apart;
                }
            }
        }
    }
}

// The position of a bank image among the allowed ones. (candidates[i] >= i, and they are equal where all before are
// allowed.)
__device__ __forceinline__ int position_of(const RefineArgs& args, int image) {
    int low = 0, high = min(image, args.allowed - 1);
    if (args.candidates[high] == image) return high;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (args.candidates[middle] < image) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

// Labels and counts of a map.
__device__ __forceinline__ void read_map(const RefineArgs& args, const Refining& map, const std::int32_t* sources) {
    map.each_cell([&](int cell) { map.images[cell] = sources[cell] < 0 ? -1 : position_of(args, sources[cell]); });
    __syncthreads();
    map.each_cell([&](int cell) {
        int label = 0;
        while (map.images[label] != map.images[cell]) ++label;
        map.labels[cell] = map.images[cell] < 0 ? -1 : label;
        map.next[cell] = 0;
    });
    __syncthreads();
    map.each_cell([&](int cell) {
        if (map.labels[cell] >= 0) atomicAdd(map.next + map.labels[cell], 1);
    });
}

// Roots of the parts, and their sizes in `other`. (Cells without an image make parts, too.)
__device__ __forceinline__ void find_parts(const Refining& map) {
    map.each_cell([&](int cell) { map.roots[cell] = cell; });
    __syncthreads();
    bool changed;
    do {
        map.each_cell([&](int cell) {
            int root = map.roots[cell];
#pragma unroll
            for (int i = 0; i < NEAR; ++i) {
                const int near = map.neighbour(cell, i);
                if (near >= 0 && map.labels[near] == map.labels[cell]) root = min(root, map.roots[near]);
            }
            map.other[cell] = root;
        });
        __syncthreads();
        changed = false;
        map.each_cell([&](int cell) {
            int root = map.other[cell];
            while (map.other[root] != root) root = map.other[root];
            changed |= root != map.roots[cell];
            map.roots[cell] = root;
        });
    } while (__syncthreads_or(changed));
    map.each_cell([&](int cell) { map.other[cell] = 0; });
    __syncthreads();
    map.each_cell([&](int cell) { atomicAdd(map.other + map.roots[cell], 1); });
}

// This lane's place among the lanes whose bits are set.
__device__ __forceinline__ int rank_in(unsigned lanes) {
    return __popc(lanes & ((1u << lane_id()) - 1));
}

// The images beside the part of `size` cells with this root, in the order in which they are met, and whose share leaves
// room for it; its cells, and pairs of neighbours in and beside it, go to shared memory. `met` holds the last part that
// met a label.
__device__ __forceinline__ int look_around(const RefineArgs& args, const Refining& map, int root, int size, int* met,
                                           int& pairs) {
    const int lane = lane_id(), own = map.labels[root];
    for (int base = root, found = 0; found < size; base += 32) {
        const bool inside = base + lane < map.cells && map.roots[base + lane] == root;
        const unsigned lanes = __ballot_sync(WARP, inside);
        if (inside) map.part[found + rank_in(lanes)] = base + lane;
        found += __popc(lanes);
    }
    __syncwarp();
    int images = 0;
    pairs = 0;
    for (int base = 0; base < NEAR * size; base += 32) {
        const int i = base + lane;
        int label = -1, pair = 0;
        if (i < NEAR * size) {
            const int cell = map.part[i / NEAR], near = map.neighbour(cell, i % NEAR);
            if (near >= 0 && map.roots[near] != root) label = map.labels[near];
            pair = cell << 16 | near;
        }
        const unsigned seams = __ballot_sync(WARP, label >= 0);
        if (label >= 0) map.pairs[pairs + rank_in(seams)] = pair;
        pairs += __popc(seams);
        const bool asks = label >= 0 && label != own && met[label] != root;
        const unsigned alike = __match_any_sync(WARP, asks ? label : -1);
        const bool first = asks && rank_in(alike) == 0, fits = first && map.next[label] + size <= args.most;
        const unsigned fitting = __ballot_sync(WARP, fits);
        if (first) met[label] = root;
        if (fits) map.beside[images + rank_in(fitting)] = label;
        images += __popc(fitting);
        __syncwarp();
    }
    return images;
}

// Moves the part with this root to the image for which its seams cost least.
template <bool CODES>
__device__ __forceinline__ void move_part(const RefineArgs& args, const Refining& map, int root, int size, int* met) {
    int pairs;
    const int images = look_around(args, map, root, size, met, pairs);
    if (images == 0) return;
    const int lane = lane_id(), own = map.labels[root];
    int share = 1;  // lanes of an image
    while (share < pairs && share < 32) share *= 2;
    std::int64_t best = EMPTY;
    for (int base = 0; base <= images; base += 32 / share) {
        const int number = base + lane / share;
        std::int64_t cost = 0;
        if (number <= images) {
            const int image[] = {map.images[number == 0 ? own : map.beside[number - 1]]};
            for (int i = lane % share; i < pairs; i += share) {
                const int cell = map.pairs[i] >> 16, near = map.pairs[i] & 0xffff;
                const int theirs = map.images[map.labels[near]];
                unsigned sum[] = {0};
                add_distances<CODES>(args, cell, image, theirs, sum);
                add_distances<CODES>(args, near, image, theirs, sum);
                cost += sum[0];
            }
        }
        for (int lanes = share / 2; lanes > 0; lanes /= 2) cost += __shfl_xor_sync(WARP, cost, lanes);
        if (number <= images) best = min(best, cost * KEY_STEP + number);
    }
    for (int lanes = 16; lanes > 0; lanes /= 2) best = min(best, __shfl_xor_sync(WARP, best, lanes));
    const int chosen = static_cast<int>(best & (KEY_STEP - 1));
    if (chosen > 0) {
        const int label = map.beside[chosen - 1];
        __syncwarp();
        for (int i = lane; i < size; i += 32) map.labels[map.part[i]] = label;
        if (lane == 0) {
            map.next[own] -= size;
            map.next[label] += size;
        }
    }
    __syncwarp();
}

// The pass over the parts, by one warp.
template <bool CODES>
__device__ __forceinline__ void move_parts(const RefineArgs& args, const Refining& map) {
    const int lane = lane_id();
    int* met = map.counts;  // which nobody needs meanwhile
    for (int cell = lane; cell < map.cells; cell += 32) met[cell] = -1;
    __syncwarp();
    for (int base = 0; base < map.cells; base += 32) {
        const int cell = base + lane;
        const bool root = cell < map.cells && map.roots[cell] == cell && map.labels[cell] >= 0;
        const int size = root ? map.other[cell] : 0;
        unsigned todo = __ballot_sync(WARP, size > 0 && size <= args.part);
        for (; todo; todo &= todo - 1) {
            const int from = __ffs(static_cast<int>(todo)) - 1;
            move_part<CODES>(args, map, base + from, __shfl_sync(WARP, size, from), met);
        }
    }
}

// Moves cells of one colour; returns whether this thread has moved any.
template <bool CODES>
__device__ __forceinline__ bool move_cells(const RefineArgs& args, const Refining& map, int colour) {
    const int thread = static_cast<int>(threadIdx.x), lane = lane_id(), direction = lane % NEAR;
    bool moved = false;
    // i counts the cells of a colour: every other one, in even rows and columns alike where rows are of odd length
    for (int base = 0; 2 * base < map.cells; base += static_cast<int>(blockDim.x) / NEAR) {
        const int i = base + thread / NEAR, row = map.side % 2 == 0 ? 2 * i / map.side : 0;
        const int cell = 2 * i + ((row + colour) & 1);
        int own = -1, label = -1, near = cell;
        if (cell < map.cells) {
            own = map.labels[cell];
            const int found = map.neighbour(cell, direction);
            if (found >= 0) near = found, label = map.labels[found];
        }
        const unsigned seams = __ballot_sync(WARP, own >= 0 && label >= 0 && label != own);
        if (seams == 0) continue;
        const bool seam = (seams >> (lane & ~(NEAR - 1)) & 15) != 0;
        int labels[NEAR + 1];
        unsigned costs[NEAR + 1] = {};
        labels[0] = own;
#pragma unroll
        for (int k = 0; k < NEAR; ++k) labels[k + 1] = __shfl_sync(WARP, label, k, NEAR);
        if (seam && label >= 0) {
            int images[NEAR + 1];
#pragma unroll
            for (int k = 0; k <= NEAR; ++k) images[k] = map.images[labels[k] < 0 ? own : labels[k]];
            const int theirs = map.images[label];
            add_distances<CODES>(args, cell, images, theirs, costs);
            add_distances<CODES>(args, near, images, theirs, costs);
        }
        int best = own;
        std::int64_t least = 0;
#pragma unroll
        for (int k = 0; k <= NEAR; ++k) {
            std::int64_t cost = costs[k];
            cost += __shfl_xor_sync(WARP, cost, 1);
            cost += __shfl_xor_sync(WARP, cost, 2);
            const bool fits = k == 0 || (labels[k] >= 0 && map.counts[labels[k]] < args.most);
            if (k == 0 || (fits && cost < least)) best = labels[k], least = cost;
        }
        if (seam && direction == 0 && best != own) {
            map.labels[cell] = best;
            atomicSub(map.next + own, 1);
            atomicAdd(map.next + best, 1);
            moved = true;
        }
    }
    return moved;
}

// All that was moved becomes known, and counted.
__device__ __forceinline__ void count_cells(const Refining& map) {
    map.each_cell([&](int cell) { map.counts[cell] = map.next[cell]; });
    __syncthreads();
}

template <bool CODES>
__global__ void __launch_bounds__(REFINE_THREADS, CODES ? 5 : 3)
    refine_kernel(const __grid_constant__ RefineArgs args) {
    const Refining map(args);
    std::int32_t* sources = args.maps + static_cast<std::int64_t>(blockIdx.x) * map.cells;
    read_map(args, map, sources);
    for (int round = 0; round < args.rounds; ++round) {
        find_parts(map);
        __syncthreads();
        if (threadIdx.x < 32) move_parts<CODES>(args, map);
        __syncthreads();
        count_cells(map);
        bool moved = true;
        for (int sweep = 0; sweep < args.sweeps && moved; ++sweep) {
            moved = false;
            for (int colour = 0; colour < 2; ++colour) {
                if (!__syncthreads_or(move_cells<CODES>(args, map, colour))) continue;
                moved = true;
                count_cells(map);
            }
        }
    }
    __syncthreads();
    map.each_cell([&](int cell) {
        const int label = map.labels[cell];
        sources[cell] = label < 0 ? -1 : args.candidates[map.images[label]];
    });
}

}  // namespace lpkernel::cuda
