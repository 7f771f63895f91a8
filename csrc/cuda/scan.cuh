// A whole plan in one launch.
//
// Images are cut into tiles of TQ. A group of blocks takes a tile through all scales and steps of the plan, then the
// next tile; each block of the group owns a slab of the allowed bank images. A step:
//   1. the block stages the compared cells of its canvases in shared memory (block.cuh, distance_*.cuh);
//   2. it streams its slab past them; each warp keeps the smallest keys it meets (shortlist.cuh); no distance is
//   stored;
//   3. one warp per image merges the warps' lists; the blocks of a larger group write theirs to global memory, meet at
//      a barrier, and each merges all of them;
//   4. every block copies the chosen patch into its own canvases (canvas.cuh), up to the boundaries of a step that has
//   some (cut.cuh), so one barrier per step is enough.
// Where images have offsets, their distances start at minus the offset.
// The draw is a function of (seed, image, step), so it comes first: only keys up to its rank are searched for.
//
// Three shapes of one kernel: a small bank runs with TQ = 1 and one block a tile; few images with a large bank take
// groups of blocks, in a cooperative launch; many images with a large bank take TQ = 4 and one block a tile, so that
// each code or latent that comes from L2 serves four images. lpkernel/backends/cuda_launches.py chooses and says why.
//
// Ties: keys are distance << 32 | position among the allowed images, the minimum wins.
// Limits: K <= 128, distances and offsets below 2^31, TQ * M * M * W below 2^31, P <= 32 where there are boundaries.

#pragma once

#include "common/philox.h"
#include "cuda/block.cuh"
#include "cuda/canvas.cuh"

namespace lpkernel::cuda {

// Merges ascending lists into `list`, all lanes of a warp together; load(m, rank) is an entry of list m < count.
template <class Load>
__device__ __forceinline__ void merge_lists(Key* list, int want, int count, Load load) {
    for (int rank = 0; rank < want; ++rank) {
        bool smaller = false;
        for (int base = 0; base < count; base += 32) {
            const int m = base + lane_id();
            const Key key = m < count ? load(m, rank) : EMPTY;
            smaller |= __ballot_sync(WARP, key < list[want - 1]) != 0;
            offer(list, want, key);
        }
        if (!smaller) return;  // entries of higher rank cannot be either
    }
}

// Offers the distances of a thread's bank images to the lists of its warp; INT32_MAX says that the thread has no such
// image. limit: the largest distances that may still enter the lists. Warps share their limits through block.bound, so
// that few images of later chunks are looked at twice.
template <class Distance>
__device__ __forceinline__ void take(const ScanArgs& args, const Block& block, int chunk,
                                     int (&distance)[Distance::IMAGES][Distance::TILE], int (&limit)[Distance::TILE]) {
#pragma unroll
    for (int q = 0; q < Distance::TILE; ++q) {
        int best = INT32_MAX;
#pragma unroll
        for (int r = 0; r < Distance::IMAGES; ++r) best = min(best, distance[r][q]);
        const int known = lane_id() == 0 ? atomicMin(&block.bound[q], INT32_MAX) : 0;  // an atomic read
        limit[q] = min(limit[q], __shfl_sync(WARP, known, 0));
        if (__ballot_sync(WARP, best <= limit[q]) == 0) continue;
        Key* list = block.list(args, q, static_cast<int>(threadIdx.x) / 32);
        const int want = block.want[q];
        if (limit[q] == INT32_MAX && want <= 32) limit[q] = reached_by(best, want);
#pragma unroll
        for (int r = 0; r < Distance::IMAGES; ++r) {
            const bool enters = distance[r][q] <= limit[q];
            if (__ballot_sync(WARP, enters) != 0) {
                const int image = Distance::image(args, chunk, r);
                const bool real = enters && image < block.last;
                offer(list, want, real ? make_key(distance[r][q], static_cast<unsigned>(image)) : EMPTY);
            }
        }
        limit[q] = min(limit[q], key_distance(list[want - 1]));
        if (lane_id() == 0) atomicMin(&block.bound[q], limit[q]);
    }
}

// Puts the bank image whose key has rank block.want[q] in the group in block.chosen[q]. Ends without a barrier.
template <class Distance>
__device__ __forceinline__ void search(const ScanArgs& args, const Block& block, const typename Distance::Unit* bank,
                                       const typename Distance::Unit* canvas, int image_cells,
                                       const std::int32_t* cells, int compared, int step, unsigned& round) {
    constexpr int TQ = Distance::TILE, IMAGES = Distance::IMAGES;
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    const int warp = thread / 32, warps = threads / 32, span = args.shape.span, k = args.shape.k;
    const int chunk_images = Distance::chunk_images(args);

    for (int i = thread; i < TQ * warps * args.shared.list_pitch; i += threads) block.lists[i] = EMPTY;
    int limit[TQ];
#pragma unroll
    for (int q = 0; q < TQ; ++q) limit[q] = INT32_MAX;
    for (int chunk = block.first; chunk < block.last; chunk += chunk_images) {
        int distance[IMAGES][TQ] = {};
        if (args.offsets) {  // here, where registers are free
            const std::int32_t* offsets = args.offsets + static_cast<std::int64_t>(step) * args.allowed;
#pragma unroll
            for (int r = 0; r < IMAGES; ++r) {
                const int image = Distance::image(args, chunk, r);
                const int offset = image < block.last ? offsets[image] : 0;
#pragma unroll
                for (int q = 0; q < TQ; ++q) distance[r][q] = -offset;
            }
        }
        for (int from = 0; from < compared; from += span) {
            const int count = compared - from < span ? compared - from : span;
            if (chunk == block.first || compared > span) {
                __syncthreads();  // no thread still reads what is staged, and all have seen the step begin
                Distance::stage(args, block, canvas, image_cells, cells + from, count, chunk == block.first);
                __syncthreads();
            }
            Distance::add(args, block, bank, count, chunk, distance);
        }
        Distance::finish(args, block, distance);
#pragma unroll
        for (int r = 0; r < IMAGES; ++r) {
            if (Distance::image(args, chunk, r) < block.last) continue;
#pragma unroll
            for (int q = 0; q < TQ; ++q) distance[r][q] = INT32_MAX;
        }
        take<Distance>(args, block, chunk, distance, limit);
    }
    __syncthreads();

    for (int q = warp; q < TQ; q += warps) {
        merge_lists(block.list(args, q, 0), block.want[q], warps - 1,
                    [&](int m, int rank) { return block.list(args, q, m + 1)[rank]; });
    }
    if (args.shape.group > 1) {
        const int group = args.shape.group;
        Key* partial = args.partial + (static_cast<std::int64_t>(block.group) * 2 + (round & 1)) * TQ * k * group;
        for (int q = warp; q < TQ; q += warps) {
            const Key* list = block.list(args, q, 0);
            for (int rank = lane_id(); rank < block.want[q]; rank += 32) {
                partial[(q * k + rank) * group + block.member] = list[rank];
            }
        }
        group_barrier(args.counters + block.group, static_cast<unsigned>(group), round);
        for (int q = warp; q < TQ; q += warps) {
            merge_lists(block.list(args, q, 0), block.want[q], group, [&](int m, int rank) {
                return m == block.member ? EMPTY : load_shared_by_blocks(partial + (q * k + rank) * group + m);
            });
        }
    }
    for (int q = warp; q < TQ; q += warps) {
        const Key found = block.list(args, q, 0)[block.want[q] - 1];
        if (lane_id() == 0) block.chosen[q] = static_cast<int>(static_cast<unsigned>(found));
    }
}

// Blocks per multiprocessor that the compiler aims for: with one bank image per thread, ptxas left alone takes more
// registers than it needs.
template <class Distance>
constexpr int LEAST_BLOCKS = Distance::IMAGES == 1 && Distance::TILE == 1 ? 2 : 1;

template <class Distance>
__global__ void __launch_bounds__(MOST_THREADS, LEAST_BLOCKS<Distance>)
    scan_kernel(const __grid_constant__ ScanArgs args) {
    using Unit = typename Distance::Unit;
    constexpr int TQ = Distance::TILE;
    const Block block = this_block<TQ>(args);
    const int thread = static_cast<int>(threadIdx.x);
    const int units = args.shape.width * 2 / static_cast<int>(sizeof(Unit)),
              image_units = args.side * args.side * units;
    Unit* canvases =
        reinterpret_cast<Unit*>(args.canvas) + static_cast<std::int64_t>(blockIdx.x) * 2 * TQ * image_units;
    const int groups = static_cast<int>(gridDim.x) / args.shape.group;
    unsigned round = 0;
    for (int first_row = block.group * TQ; first_row < args.image_count; first_row += groups * TQ) {
        // Rows beyond the last image repeat its work and write nothing.
        if (thread < TQ) block.row[thread] = min(first_row + thread, args.image_count - 1);
        const Unit* bank = reinterpret_cast<const Unit*>(args.bank);
        for (int s = 0; s < args.scale_count; ++s) {
            const std::int32_t* scale = args.scales + 5 * s;
            const bool notes = s + 1 == args.scale_count && block.member == 0;
            Unit* canvas = canvases + (s & 1) * TQ * image_units;
            __syncthreads();
            enter_scale<TQ>(args, block, s,
                            reinterpret_cast<const std::int16_t*>(canvases + (~s & 1) * TQ * image_units),
                            reinterpret_cast<std::int16_t*>(canvas));
            if (notes) {
                note_sources<TQ>(args, block, first_row, args.cells + scale[3], scale[4], Boundaries{},
                                 [](int) { return -1; });
            }
            for (int t = scale[1]; t < scale[1] + scale[2]; ++t) {
                const std::int32_t *step = args.steps + 4 * t, *written = args.cells + step[2];
                const int compared = step[1];
                __syncthreads();  // canvases are written, and no thread still reads the previous step's scalars
                if (thread < TQ) {
                    const std::uint32_t u =
                        draw(args.seed, args.images[block.row[thread]], args.first_step + static_cast<unsigned>(t));
                    block.want[thread] = 1 + static_cast<int>(draw_index(u, static_cast<std::uint32_t>(args.shape.k)));
                    block.chosen[thread] = static_cast<int>(draw_index(u, static_cast<std::uint32_t>(args.allowed)));
                    block.norm[thread] = 0;
                    block.bound[thread] = INT32_MAX;
                }
                __syncthreads();
                if (compared > 0) {
                    search<Distance>(args, block, bank, canvas, args.side * args.side, args.cells + step[0], compared,
                                     t, round);
                    __syncthreads();
                }
                const Boundaries boundaries(args, t, scale[0]);
                if (boundaries.some()) {
                    boundaries.find<TQ>(block, [&](int q, int cell) {
                        return apart(args, canvas + q * image_units + cell * units,
                                     bank + (cell * args.pitch + block.chosen[q]) * units);
                    });
                    __syncthreads();
                }
                copy_patches<Unit, TQ>(args, block, bank, canvas, written, step[3], boundaries);
                if (notes) {
                    note_sources<TQ>(args, block, first_row, written, step[3], boundaries,
                                     [&](int q) { return args.candidates[block.chosen[q]]; });
                }
            }
            bank += scale[0] * scale[0] * args.pitch * units;
        }
    }
}

}  // namespace lpkernel::cuda
