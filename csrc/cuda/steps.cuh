// A plan run step by step, for many images: tensor cores rule out most bank images; the others are measured exactly.
//
//   distance(q, b) = |q|^2 + |b|^2 - offset - 2 q.b over the compared cells; score(q, b) = distance - |q|^2
//
// Everything is in the latent domain, codes as their fixed-point vectors: whole numbers of at most 2048, exact in
// float16. The sums of a product in float32 are not exact, so a score only decides which images are measured. Each
// addition of a tensor core is assumed to keep 22 bits of its largest operand, as in screen.cuh; with cells of squared
// length up to m, a score of c compared cells and D = c W columns is off by at most
//   c m (2 (D + 64) 2^-22 + 2^-20) + |offset| 2^-22,
// and twice that is the step's slack. Kernels of a step, one after the other on a stream:
//
//   screen with SAMPLE   scores of some tiles of the bank, of which the least of every few bank images is kept
//   limit                the want-th smallest of an image's minima, plus slack: want bank images are no further, so
//                        none above it is among the want nearest; want is the rank that the step's draw asks for
//   screen               all scores; bank images within the limit are listed with their scores, some 100 of 30,000
//   choose               of these, those within slack of the want-th smallest score are measured, in integers; the key
//                        of rank want is chosen, its patch copied (canvas.cuh, cut.cuh). An image whose list overflowed
//                        (many equal distances, or no limit) is compared with the whole bank.
// A step that compares nothing runs `choose` alone. `enter` begins a scale.
//
// Tiling. A block takes 32 IMAGES images and 64 WARPS bank images, a warp 16 IMAGES x 64 of them. cp.async copies the
// operands from where they lie, cell by cell: 32 bytes per row and slice of 16 channels, four slices a stage, three
// stages in flight.
//
// Traffic of a step: the compared cells of the bank once from memory, 2 D bytes per bank image (image tiles of one bank
// tile run together); from L2, 2 D bytes per row of both operands for each block.
//
// Ties: keys are distance << 32 | position among the allowed images, the minimum wins.
//
// Limits: values up to 2048, K <= 128, distances and offsets below 2^31, P <= 32 where there are boundaries.

#pragma once

#include "common/philox.h"
#include "cuda/canvas.cuh"
#include "cuda/products.cuh"
#include "cuda/steps.h"

namespace lpkernel::cuda {

// 8 channels of float16.
struct HalfCell {
    uint4 bits;
};

__device__ __forceinline__ int whole(unsigned bits) {
    return static_cast<int>(half_value(static_cast<std::uint16_t>(bits)));
}

// The squared distance of 8 channels.
__device__ __forceinline__ int apart(const uint4& ours, const uint4& theirs) {
    const unsigned a[4] = {ours.x, ours.y, ours.z, ours.w}, b[4] = {theirs.x, theirs.y, theirs.z, theirs.w};
    int sum = 0;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
        const int low = whole(a[w] & 0xffffu) - whole(b[w] & 0xffffu), high = whole(a[w] >> 16) - whole(b[w] >> 16);
        sum += low * low + high * high;
    }
    return sum;
}

// The squared distance of two cells.
__device__ __forceinline__ int apart(const ScanArgs& args, const HalfCell* ours, const HalfCell* theirs) {
    int sum = 0;
#pragma unroll 1
    for (int unit = 0; unit < args.shape.width / 8; ++unit) sum += apart(ours[unit].bits, theirs[unit].bits);
    return sum;
}

// The draw of an image at this step, and the rank it asks for, from 1.
__device__ __forceinline__ std::uint32_t step_draw(const StepArgs& args, int row) {
    const int image = min(args.base + row, args.scan.image_count - 1);
    return draw(args.scan.seed, args.scan.images[image], args.scan.first_step + static_cast<unsigned>(args.step));
}
__device__ __forceinline__ int wanted(const StepArgs& args, std::uint32_t u) {
    return 1 + static_cast<int>(draw_index(u, static_cast<std::uint32_t>(args.scan.shape.k)));
}

// The canvas of a row of the launch at this scale: two alternate.
__device__ __forceinline__ std::uint16_t* canvas_of(const StepArgs& args, int row, int scale) {
    const std::int64_t values = static_cast<std::int64_t>(args.scan.side) * args.scan.side * args.scan.shape.width;
    return reinterpret_cast<std::uint16_t*>(args.scan.canvas) +
           (static_cast<std::int64_t>(row) * 2 + (scale & 1)) * values;
}

// The stages of both operands in shared memory, in 16-byte units.
template <int IMAGES, int WARPS>
struct StepMemory {
    static constexpr int LEFT = 32 * IMAGES, RIGHT = 64 * WARPS, THREADS = 64 * WARPS;
    static constexpr int STAGES = 3;
    static constexpr int STAGE = (LEFT + RIGHT) * STAGE_UNITS;
    static constexpr int BYTES = STAGES * STAGE * 16;
};

// What a thread copies of a stage: one unit of every TOGETHER-th row of both operands.
template <int IMAGES, int WARPS>
class StepCopies {
    using Memory = StepMemory<IMAGES, WARPS>;
    static constexpr int TOGETHER = Memory::THREADS / STAGE_UNITS;  // a multiple of 8: one place for all rows
    static constexpr int OURS = Memory::LEFT / TOGETHER, THEIRS = Memory::RIGHT / TOGETHER;

  public:
    __device__ __forceinline__ StepCopies(const StepArgs& args, uint4* shared, int first_row, int first_image)
        : args_(args),
          shared_(shared),
          row_(static_cast<int>(threadIdx.x) / STAGE_UNITS),
          unit_(static_cast<int>(threadIdx.x) % STAGE_UNITS),
          slices_(args.compared * (args.scan.shape.width / SLICE)),
          first_image_(first_image) {
        const int canvas_units = 2 * args.scan.side * args.scan.side * (args.scan.shape.width / 8);
#pragma unroll
        for (int i = 0; i < OURS; ++i) {
            canvas_[i] = min(first_row + i * TOGETHER + row_, args.rows - 1) * canvas_units;
        }
        look_up(0);
    }

    __device__ __forceinline__ int stages() const { return (slices_ + STEP_SLICES - 1) / STEP_SLICES; }

    // Begins the stage whose cell has been looked up, and looks up that of the next stage; calls of copy() must follow.
    __device__ __forceinline__ void begin(int stage) {
        const int units = args_.scan.shape.width / 8;
        to_ = shared_ + stage % Memory::STAGES * Memory::STAGE + stage_place(row_, unit_);
        // zeros in one operand, so that the other's last slice adds nothing
        zeros_ = stage * STEP_SLICES + unit_ / 2 < slices_ ? 0 : 16;
        ours_ = reinterpret_cast<const uint4*>(canvas_of(args_, 0, args_.scale)) + cell_ * units + channel_ / 8;
        theirs_ = reinterpret_cast<const uint4*>(args_.scan.bank) +
                  ((args_.first_cell + cell_) * args_.scan.pitch + first_image_ + row_) * units + channel_ / 8;
        look_up(stage + 1);
    }

    // Starts a quarter of the copies.
    __device__ __forceinline__ void copy(int quarter) const {
        const int units = args_.scan.shape.width / 8;
#pragma unroll
        for (int i = 0; i < OURS; ++i) {
            if (i * 4 / OURS != quarter) continue;
            __pipeline_memcpy_async(to_ + i * TOGETHER * STAGE_UNITS, ours_ + canvas_[i], 16, zeros_);
        }
#pragma unroll
        for (int i = 0; i < THEIRS; ++i) {
            if (i * 4 / THEIRS != quarter) continue;
            __pipeline_memcpy_async(to_ + (Memory::LEFT + i * TOGETHER) * STAGE_UNITS, theirs_ + i * TOGETHER * units,
                                    16);
        }
    }

  private:
    __device__ __forceinline__ void look_up(int stage) {
        const int of_cell = args_.scan.shape.width / SLICE;
        const int slice = min(stage * STEP_SLICES + unit_ / 2, slices_ - 1);
        cell_ = args_.compared_cells[of_cell == 1 ? slice : slice / of_cell];
        channel_ = (of_cell == 1 ? 0 : slice % of_cell * SLICE) + unit_ % 2 * 8;
    }

    const StepArgs& args_;
    uint4* shared_;
    int row_, unit_, slices_, first_image_, cell_, channel_;
    int canvas_[OURS];
    uint4* to_;
    std::size_t zeros_;
    const uint4 *ours_, *theirs_;
};

// The pairs within the limits that a block has found, in the memory of its stages.
struct Found {
    static constexpr int MOST = 4096;
    Survivor pairs[MOST];
    std::uint8_t rows[MOST];      // of the block
    std::uint8_t overflows[128];  // rows with pairs that did not fit
    int count;

    __device__ __forceinline__ void add(float score, int image, int row) {
        const int at = atomicAdd(&count, 1);
        if (at < MOST) {
            pairs[at] = Survivor{score, image};
            rows[at] = static_cast<std::uint8_t>(row);
        } else {
            overflows[row] = 1;
        }
    }
};

// Scores of a block's images and bank images. With SAMPLE, their minima go to args.minima; else bank images within an
// image's limit go to its list.
template <int IMAGES, int WARPS, bool SAMPLE>
__global__ void __launch_bounds__(64 * WARPS, WARPS == 4 ? 1 : 2)
    step_screen_kernel(const __grid_constant__ StepArgs args) {
    wait_for_kernels_before();
    using Memory = StepMemory<IMAGES, WARPS>;
    const int lane = lane_id(), warp = static_cast<int>(threadIdx.x) / 32, g = lane / 4, t = lane % 4;
    const int number = static_cast<int>(blockIdx.x) / args.image_tiles, tile = SAMPLE ? number * args.every : number;
    const int first_row = static_cast<int>(blockIdx.x) % args.image_tiles * Memory::LEFT;
    const int first_image = tile * Memory::RIGHT;
    const int warp_row = warp / WARPS * 16 * IMAGES, warp_image = warp % WARPS * 64;
    auto* shared = reinterpret_cast<uint4*>(dynamic_shared());

    float sum[IMAGES][8][4];
#pragma unroll
    for (int m = 0; m < IMAGES; ++m) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) sum[m][j][e] = 0.f;
        }
    }
    StepCopies<IMAGES, WARPS> copies(args, shared, first_row, first_image);
    const int stages = copies.stages();
    for (int stage = 0; stage < Memory::STAGES - 1; ++stage) {
        if (stage < stages) {
            copies.begin(stage);
#pragma unroll
            for (int quarter = 0; quarter < 4; ++quarter) copies.copy(quarter);
        }
        __pipeline_commit();
    }
    for (int stage = 0; stage < stages; ++stage) {
        __pipeline_wait_prior(Memory::STAGES - 2);
        __syncthreads();  // the stage has arrived, and no warp still reads the buffer filled next
        const int next = stage + Memory::STAGES - 1;
        const bool more = next < stages;
        if (more) copies.begin(next);
        const uint4* here = shared + stage % Memory::STAGES * Memory::STAGE;
        multiply_stage<IMAGES>(here, warp_row, here + Memory::LEFT * STAGE_UNITS, warp_image, sum, [&](int quarter) {
            if (more) copies.copy(quarter);
        });
        __pipeline_commit();
    }

    const int row = first_row + warp_row + g, image = first_image + warp_image + 2 * t;
    const float* constants = args.constants + static_cast<std::int64_t>(args.step) * args.scan.pitch + image;
    if constexpr (SAMPLE) {
        const int span = 8 / args.parts;
        float least[IMAGES][2];
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const float2 constant = *reinterpret_cast<const float2*>(constants + 8 * j);
            const bool begins = j % span == 0, ends = (j + 1) % span == 0;
#pragma unroll
            for (int m = 0; m < IMAGES; ++m) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const float score = fminf(__fmaf_rn(-2.f, sum[m][j][2 * h], constant.x),
                                              __fmaf_rn(-2.f, sum[m][j][2 * h + 1], constant.y));
                    least[m][h] = begins ? score : fminf(least[m][h], score);
                    const int q = row + m * 16 + h * 8, group = ((number * WARPS + warp % WARPS) * 4 + t) * args.parts;
                    if (ends && q < args.rows) {
                        args.minima[static_cast<std::int64_t>(q) * args.groups + group + j / span] = least[m][h];
                    }
                }
            }
        }
    } else {
        static_assert(sizeof(Found) <= Memory::BYTES, "stages hold what is found");
        auto& found = *reinterpret_cast<Found*>(shared);
        const int thread = static_cast<int>(threadIdx.x);
        __syncthreads();  // no warp still reads stages
        if (thread < Memory::LEFT) found.overflows[thread] = 0;
        if (thread == 0) found.count = 0;
        __syncthreads();
#pragma unroll
        for (int m = 0; m < IMAGES; ++m) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int q = row + m * 16 + h * 8;
                const float limit = q < args.rows ? args.limits[q] : -INFINITY;
#pragma unroll
                for (int j = 0; j < 8; j += 2) {  // four pairs; few are within the limit
                    const float2 even = *reinterpret_cast<const float2*>(constants + 8 * j);
                    const float2 odd = *reinterpret_cast<const float2*>(constants + 8 * j + 8);
                    const float score[4] = {
                        __fmaf_rn(-2.f, sum[m][j][2 * h], even.x), __fmaf_rn(-2.f, sum[m][j][2 * h + 1], even.y),
                        __fmaf_rn(-2.f, sum[m][j + 1][2 * h], odd.x), __fmaf_rn(-2.f, sum[m][j + 1][2 * h + 1], odd.y)};
                    if (fminf(fminf(score[0], score[1]), fminf(score[2], score[3])) > limit) continue;
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        if (score[e] <= limit) found.add(score[e], image + 8 * (j + e / 2) + e % 2, q - first_row);
                    }
                }
            }
        }
        __syncthreads();
        for (int i = thread; i < min(found.count, Found::MOST); i += Memory::THREADS) {
            const int q = first_row + found.rows[i];
            const unsigned at = atomicAdd(args.counts + q, 1u);
            if (at < MOST_LISTED) args.survivors[static_cast<std::int64_t>(q) * MOST_LISTED + at] = found.pairs[i];
        }
        if (thread < Memory::LEFT && found.overflows[thread])
            atomicAdd(args.counts + first_row + thread, MOST_LISTED + 1u);
    }
}

// The limit of each image, one warp each, found by repeatedly taking the next larger of its minima.
__global__ void __launch_bounds__(128) step_limit_kernel(const __grid_constant__ StepArgs args) {
    wait_for_kernels_before();
    constexpr int VALUES = MOST_GROUPS / 32, AT_ONCE = 4;
    const int row = static_cast<int>(blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32);
    if (row >= args.rows) return;
    const int want = wanted(args, step_draw(args, row)), held = (args.groups + 31) / 32;
    const float* from = args.minima + static_cast<std::int64_t>(row) * args.groups;
    unsigned own[VALUES];
#pragma unroll
    for (int i = 0; i < VALUES; ++i) {
        const int group = i * 32 + lane_id();
        own[i] = group < args.groups ? ordered(from[group]) : 0xffffffffu;
    }
    const unsigned found = smallest_in_rounds(min(want, args.groups), [&](auto take) {
#pragma unroll
        for (int i = 0; i < VALUES; i += AT_ONCE) {
            if (i >= held) break;
#pragma unroll
            for (int v = i; v < i + AT_ONCE; ++v) take(own[v]);
        }
    });
    if (lane_id() != 0) return;
    const float limit = want <= args.groups ? unordered(found) + args.slack : NO_LIMIT;
    args.limits[row] = limit < NO_LIMIT ? limit : NO_LIMIT;
}

// What a block of `choose` keeps in shared memory, after the compared cells of its canvas.
struct Chosen {
    float4 scores[MOST_LISTED / 4];
    int images[MOST_LISTED];
    Key keys[MOST_LISTED];
    float limit;
    int near, chosen, row;
};

// The distance of a bank image from the compared cells of the canvas (`own`, in shared memory); `from` and `apart_by`
// divide the units among the threads of a warp.
__device__ __forceinline__ int step_distance(const StepArgs& args, const uint4* own, const std::int32_t* cells,
                                             int image, int from, int apart_by) {
    const int of_cell = args.scan.shape.width / 8, units = args.compared * of_cell;
    const auto* bank = reinterpret_cast<const uint4*>(args.scan.bank);
    int sum = 0;
#pragma unroll 2
    for (int unit = from; unit < units; unit += apart_by) {
        const std::int64_t cell = args.first_cell + cells[unit / of_cell];
        sum += apart(own[unit], bank[(cell * args.scan.pitch + image) * of_cell + unit % of_cell]);
    }
    return sum;
}

// The listed image of rank `want`: those within slack of the want-th smallest score are measured.
__device__ __forceinline__ void choose_listed(const StepArgs& args, Chosen& kept, const uint4* own,
                                              const std::int32_t* cells, const std::int32_t* offsets, int row,
                                              int count, int want) {
    const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
    const Survivor* list = args.survivors + static_cast<std::int64_t>(row) * MOST_LISTED;
    auto* scores = reinterpret_cast<float*>(kept.scores);
    const int quads = (count + 3) / 4;
    for (int i = thread; i < 4 * quads; i += CHOOSE_THREADS) {
        const Survivor survivor = i < count ? list[i] : Survivor{INFINITY, 0};
        scores[i] = survivor.score;
        kept.images[i] = survivor.image;
    }
    __syncthreads();
    for (int i = thread; i < count; i += CHOOSE_THREADS) {
        const float own_score = scores[i];
        int rank = 1, equal_before = 0;
        for (int other = 0; other < quads; ++other) {
            const float4 four = kept.scores[other];
            rank += (four.x < own_score) + (four.y < own_score) + (four.z < own_score) + (four.w < own_score);
            if (4 * other < i) {
                equal_before += (four.x == own_score) + (four.y == own_score && 4 * other + 1 < i) +
                                (four.z == own_score && 4 * other + 2 < i) + (four.w == own_score && 4 * other + 3 < i);
            }
        }
        if (rank + equal_before == want) kept.limit = own_score + args.slack;
    }
    __syncthreads();
    for (int i = warp; i < count; i += CHOOSE_THREADS / 32) {  // a warp an image
        if (scores[i] > kept.limit) continue;
        const int image = kept.images[i];
        int distance = step_distance(args, own, cells, image, lane_id(), 32);
        distance = __reduce_add_sync(WARP, distance) - (offsets ? offsets[image] : 0);
        if (lane_id() == 0) kept.keys[atomicAdd(&kept.near, 1)] = make_key(distance, static_cast<unsigned>(image));
    }
    __syncthreads();
    for (int i = thread; i < kept.near; i += CHOOSE_THREADS) {
        const Key key = kept.keys[i];
        int rank = 1;
        for (int other = 0; other < kept.near; ++other) rank += kept.keys[other] < key;
        if (rank == want) kept.chosen = static_cast<int>(static_cast<unsigned>(key));
    }
}

// The image of rank `want` in the whole bank. Without offsets no distance is below 0, so the search ends at the want-th
// image at distance 0.
__device__ __forceinline__ void choose_of_all(const StepArgs& args, Chosen& kept, const uint4* own,
                                              const std::int32_t* cells, const std::int32_t* offsets, int want) {
    const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, allowed = args.scan.allowed;
    Key* list = kept.keys + warp * want;
    for (int i = lane_id(); i < want; i += 32) list[i] = EMPTY;
    __syncwarp();
    int equal = 0;
    for (int base = 0; base < allowed && equal < want; base += CHOOSE_THREADS) {
        const int image = base + thread;
        Key key = EMPTY;
        bool same = false;
        if (image < allowed) {
            const int distance = step_distance(args, own, cells, image, 0, 1);
            same = distance == 0 && !offsets;
            key = make_key(distance - (offsets ? offsets[image] : 0), static_cast<unsigned>(image));
        }
        offer(list, want, key);
        equal += __syncthreads_count(same);
    }
    __syncthreads();
    if (warp > 0) return;
    for (int i = want; i < want * (CHOOSE_THREADS / 32); i += 32) {
        const int at = i + lane_id();
        offer(list, want, at < want * (CHOOSE_THREADS / 32) ? kept.keys[at] : EMPTY);
    }
    if (thread == 0) kept.chosen = static_cast<int>(static_cast<unsigned>(list[want - 1]));
}

// Finds the patch that an image takes, and copies it; one block per image.
__global__ void __launch_bounds__(CHOOSE_THREADS) step_choose_kernel(const __grid_constant__ StepArgs args) {
    wait_for_kernels_before();
    const ScanArgs& scan = args.scan;
    const int row = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
    unsigned char* shared = dynamic_shared();
    auto& kept = *reinterpret_cast<Chosen*>(shared);
    const std::int32_t* cells = args.compared_cells;
    auto* canvas = reinterpret_cast<HalfCell*>(canvas_of(args, row, args.scale));
    const int units = scan.shape.width / 8;
    Block block{};
    block.chosen = &kept.chosen;
    block.row = &kept.row;
    block.paths = reinterpret_cast<int*>(shared + sizeof(Chosen));
    block.sums = block.paths + 2 * scan.shape.cut;
    auto* own =
        reinterpret_cast<uint4*>(shared + (sizeof(Chosen) + 8 * scan.shape.cut * (scan.shape.cut + 1) + 15) / 16 * 16);

    const std::uint32_t u = step_draw(args, row);
    if (args.compared > 0) {
        const int count = static_cast<int>(min(args.counts[row], static_cast<unsigned>(MOST_LISTED) + 1u));
        const std::int32_t* offsets = scan.offsets;
        if (offsets) offsets += static_cast<std::int64_t>(args.step) * scan.allowed;
        if (thread == 0) kept.near = 0;
        for (int i = thread; i < args.compared * units; i += CHOOSE_THREADS) {
            own[i] = canvas[cells[i / units] * units + i % units].bits;
        }
        __syncthreads();
        if (thread == 0) args.counts[row] = 0;
        if (count <= MOST_LISTED) {
            choose_listed(args, kept, own, cells, offsets, row, count, wanted(args, u));
        } else {
            choose_of_all(args, kept, own, cells, offsets, wanted(args, u));
        }
    } else if (thread == 0) {
        kept.chosen = static_cast<int>(draw_index(u, static_cast<std::uint32_t>(scan.allowed)));
    }
    __syncthreads();
    const HalfCell* bank = reinterpret_cast<const HalfCell*>(scan.bank) + args.first_cell * scan.pitch * units;
    const Boundaries boundaries(scan, args.step, args.scale_side);
    if (boundaries.some()) {
        boundaries.find<1>(block, [&](int, int cell) {
            return apart(scan, canvas + cell * units, bank + (cell * scan.pitch + kept.chosen) * units);
        });
        __syncthreads();
    }
    copy_patches<HalfCell, 1>(scan, block, bank, canvas, args.written_cells, args.written, boundaries);
    if (args.scale + 1 == scan.scale_count) {
        note_sources<1>(scan, block, args.base + row, args.written_cells, args.written, boundaries,
                        [&](int) { return scan.candidates[kept.chosen]; });
    }
}

// Canvases at the beginning of a scale, as enter_scale of canvas.cuh; one block per image. In the last scale, cells
// that no step writes have no source.
__global__ void __launch_bounds__(CHOOSE_THREADS) step_enter_kernel(const __grid_constant__ StepArgs args) {
    wait_for_kernels_before();
    const ScanArgs& scan = args.scan;
    const int row = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x), s = args.scale;
    const std::int32_t* scale = scan.scales + 5 * s;
    const int side = scale[0], width = scan.shape.width, values = side * side * width;
    const int starts = scan.begin[2 * s + 1];
    const auto* start =
        reinterpret_cast<const std::uint16_t*>(scan.start) +
        (scan.begin[2 * s] + (starts == 1 ? 0 : static_cast<std::int64_t>(args.base + row) * side * side)) * width;
    std::uint16_t* canvas = canvas_of(args, row, s);
    if (s == 0) {
        for (int i = thread; i < values; i += CHOOSE_THREADS) canvas[i] = starts ? start[i] : std::uint16_t{0};
    } else {
        const std::uint16_t* from = canvas_of(args, row, s - 1);
        const std::int32_t* tables = scan.resize + 3 * s * scan.side;
        for (int i = thread; i < values; i += CHOOSE_THREADS) {
            const int cell = i / width;
            const int value =
                resized(from + i % width, scale[-5], width, tables, scan.side, cell / side, cell % side, whole);
            canvas[i] = half_bits(static_cast<float>(value));
        }
        if (starts) {
            __syncthreads();
            const std::int32_t* unwritten = scan.cells + scale[3];
            for (int i = thread; i < scale[4] * width; i += CHOOSE_THREADS) {
                const int at = unwritten[i / width] * width + i % width;
                canvas[at] = start[at];
            }
        }
    }
    if (s + 1 < scan.scale_count) return;
    Block block{};
    note_sources<1>(scan, block, args.base + row, scan.cells + scale[3], scale[4], Boundaries{},
                    [](int) { return -1; });
}

}  // namespace lpkernel::cuda
