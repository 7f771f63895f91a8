// masked_topk for many queries: tensor cores rule out most pairs; the others are measured exactly.
//
//   distance(q, b) = |q|^2 + |b|^2 - 2 q.b over the marked columns
//
// The product is computed in float16 with float32 sums, and only decides which pairs are measured: however it rounds,
// the answer is that of topk.cuh, bit for bit. Steps, each a kernel:
//
//   centre    the mean of some bank rows becomes the origin: what all rows share would only cost precision
//   prepare   rows of queries and bank as float16, each times a power of two of its own that brings its largest value
//             to 2^14 ... 2^15; their squared lengths; and what float16 lost of them, measured
//   screen    with SAMPLE: upper bounds of the distances to a sample of the bank; the least of every few is kept
//   limit     a query's K-th of these: K rows are no further, so no row that is further is among the K nearest
//   screen    lower bounds of all distances; rows within the limit are listed, some 100 of 30,000 per query
//   recheck   their exact distances (integers, or float64 rounded to float32), and the K smallest keys
//   topk.cuh  for queries with more survivors than their list holds: all rows equal, no limit, values too large
//
// The bound. Let q', b' be the rows minus the origin, as float32, Q and B their float16 forms (with the power of two
// taken out), and rq = |q' - Q|, rb = |b' - B|, which `prepare` measures. Then, by Cauchy-Schwarz,
//   |q'.b' - Q.B| <= |q'| rb + rq |B| <= |q'| rb + rq (|b'| + rb).
// Products of float16 are exact in float32; each addition of a tensor core is assumed to keep 22 bits of its largest
// operand (they keep 24 or more: Fasi et al., Numerical behavior of NVIDIA tensor cores, 2021), so sums of D products
// are off by at most G |q'| |b'|, G = (D + 64) 2^-22. The rest (the origin's subtraction, float32 lengths, the last
// few operations) is relative to |q'|^2 or |b'|^2 and within E = 2^-20 of them. With x = rb + G |b'| and y = |b'| + rb,
//   |b'|^2 (1 - E) - 2 Q.B > limit (1 + E) - |q'|^2 (1 - E) + 2 |q'| x + 2 rq y
// implies that distance(q, b) is above the limit, and above all that rounds to it. A pair is ruled out only then; a NaN
// or an infinity rules nothing out. Squared lengths beyond 1e37 count as NaN.
//
// With a mask m for each query, |b|^2 is a product, too: the sum of m b^2, whose columns are appended to those of q.b,
// with m as float16 (exact) and b'^2 scaled by a power of two of its own; the accumulators are rescaled in between.
// What float16 loses of b'^2 is measured as a sum w, and w + (2 G + 2 E) |b'|^2 replaces the E |b'|^2
// above.
//
// With weights w the limit is one on w d: the sample's bounds of d are multiplied by w, and a row is ruled out where
// the lower bound of d is above limit / w. So |q'|^2 cannot stay on one side of the comparison: it is taken 4 E smaller
// for lower bounds and 4 E larger for upper ones, which also covers the few additional roundings. Rows with extreme
// weights (row_factor) are neither sampled nor ruled out.
//
// Tiling. A block takes 128 queries and 128 bank rows, a warp 64 x 64 of them: 128 accumulators a lane. Operands come
// by cp.async, 64 columns at a time, three stages in flight (products.cuh). In memory they are cut into parts of 32
// columns; within a part the rows, 64 bytes each, lie side by side.
// Traffic: the bank is read once as it is (twice beyond 512 columns), written and read once as float16; query tiles of
// one bank tile run together.
// Limits: D <= 8192 (half that with a mask for each query), K <= 128.

#pragma once

#include "cuda/products.cuh"
#include "cuda/screen.h"
#include "cuda/topk.cuh"

namespace lpkernel::cuda {

constexpr float EDGE = 0x1p-20f;      // E above
constexpr float FAR = 3e38f;          // the distance of positions without an allowed row
constexpr float FAR_SCORE = 3.2e38f;  // scores that rule a row out are below this
constexpr float MOST_SQUARE = 1e37f;
constexpr float MORE = 1.015625f;        // covers the rounding of sums of squares in float32
constexpr float TINY_LENGTH = 0x1p-70f;  // above the root of what float32 rounds to 0
constexpr int LEAST_EXPONENT = -100;

// 2^n, -126 <= n <= 127.
__device__ __forceinline__ float power_of_two(int n) {
    return __int_as_float((n + 127) << 23);
}

// The exponent of a number >= 0, not below LEAST_EXPONENT.
__device__ __forceinline__ int exponent(float value) {
    return max((__float_as_int(value) >> 23) - 127, LEAST_EXPONENT);
}

// The largest value, and the sum, of `lanes` lanes side by side; lanes: a power of two up to 32.
__device__ __forceinline__ float largest_of(float value, int lanes) {
    for (int apart = lanes / 2; apart > 0; apart /= 2) value = fmaxf(value, __shfl_xor_sync(WARP, value, apart));
    return value;
}
template <class T>
__device__ __forceinline__ T sum_of(T value, int lanes) {
    for (int apart = lanes / 2; apart > 0; apart /= 2) value += __shfl_xor_sync(WARP, value, apart);
    return value;
}

// The mean of up to CENTRE_ROWS bank rows, 32 columns per block; rounded to whole numbers for integers, so that
// differences stay exact. A warp reads its rows all at once. Shared memory: (warps, 2, 32) floats.
template <class Rows>
__global__ void __launch_bounds__(CENTRE_THREADS) centre_kernel(const __grid_constant__ ScreenArgs args) {
    constexpr int WARPS = CENTRE_THREADS / 32, EACH = CENTRE_ROWS / WARPS;
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int width = args.topk.width, column = static_cast<int>(blockIdx.x) * 32 + lane_id();
    const auto* bank = static_cast<const typename Rows::Stored*>(args.topk.bank);
    const int used = min(CENTRE_ROWS, args.topk.bank_count), step = args.topk.bank_count / used;
    float values[EACH], sum = 0.f, count = 0.f;
#pragma unroll
    for (int r = 0; r < EACH; ++r) {
        const int i = r * WARPS + warp;
        const bool inside = i < used && column < width;
        values[r] = inside ? static_cast<float>(bank[static_cast<std::int64_t>(i) * step * width + column]) : INFINITY;
    }
#pragma unroll
    for (int r = 0; r < EACH; ++r) {
        const bool taken = fabsf(values[r]) < 1e30f;
        sum += taken ? values[r] : 0.f;
        count += taken ? 1.f : 0.f;
    }
    auto* sums = reinterpret_cast<float*>(dynamic_shared());
    sums[warp * 64 + lane_id()] = sum;
    sums[warp * 64 + 32 + lane_id()] = count;
    __syncthreads();
    if (warp > 0 || column >= width) return;
#pragma unroll 8
    for (int other = 1; other < WARPS; ++other) {
        sum += sums[other * 64 + lane_id()];
        count += sums[other * 64 + 32 + lane_id()];
    }
    const float mean = sum / fmaxf(count, 1.f);
    args.centre[column] = sizeof(typename Rows::Stored) == 2 ? rintf(mean) : mean;
}

// The bank row at a position; it may lie beyond the last.
__device__ __forceinline__ std::int64_t row_at(const ScreenPlan& plan, int position) {
    return static_cast<std::int64_t>(position % plan.class_rows) * plan.stride + position / plan.class_rows;
}

// Four float16 side by side.
__device__ __forceinline__ uint2 pack(const std::uint16_t (&bits)[4]) {
    return make_uint2(bits[0] | static_cast<unsigned>(bits[1]) << 16, bits[2] | static_cast<unsigned>(bits[3]) << 16);
}

// Whether rows can be read four columns at a time.
template <class Rows>
__device__ __forceinline__ bool in_quads(const TopkArgs& search) {
    const auto rows = reinterpret_cast<std::uintptr_t>(search.bank) | reinterpret_cast<std::uintptr_t>(search.queries);
    return search.width % 4 == 0 && rows % (4 * sizeof(typename Rows::Stored)) == 0 &&
           reinterpret_cast<std::uintptr_t>(search.patch_mask) % 4 == 0;
}

// The values of a row minus the origin; 0 where the mask hides them and beyond `width`.
template <class Rows>
struct CentredRow {
    using Stored = typename Rows::Stored;

    const Stored* values;
    const float* centre;
    const std::uint8_t* mask;
    int width;
    bool aligned;  // rows, origin and mask can be read four columns at a time

    // Reads PREPARE_QUADS times four columns, `apart` columns from one four to the next. Bit 4 i + e of the result:
    // column e of the i-th four is shown.
    __device__ __forceinline__ unsigned read(int column, int apart, float (&value)[PREPARE_QUADS][4]) const {
        return aligned ? read_quads(column, apart, value) : read_values(column, apart, value);
    }

    __device__ __forceinline__ unsigned read_quads(int column, int apart, float (&value)[PREPARE_QUADS][4]) const {
        uint4 bits[PREPARE_QUADS];
        unsigned shown = 0;
#pragma unroll
        for (int i = 0; i < PREPARE_QUADS; ++i) {  // all reads first, so that they wait for memory together
            const int at = column + i * apart;
            bits[i] = make_uint4(0, 0, 0, 0);
            if (at >= width) continue;
            if constexpr (sizeof(Stored) == 4) {
                bits[i] = *reinterpret_cast<const uint4*>(values + at);
            } else {
                const uint2 words = *reinterpret_cast<const uint2*>(values + at);
                bits[i].x = words.x;
                bits[i].y = words.y;
            }
        }
#pragma unroll
        for (int i = 0; i < PREPARE_QUADS; ++i) {
            const int at = column + i * apart;
            const bool inside = at < width;
            const float4 origin =
                inside ? *reinterpret_cast<const float4*>(centre + at) : make_float4(0.f, 0.f, 0.f, 0.f);
            const unsigned bytes = !inside ? 0 : mask ? *reinterpret_cast<const unsigned*>(mask + at) : ~0u;
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const float less = e == 0 ? origin.x : e == 1 ? origin.y : e == 2 ? origin.z : origin.w;
                const bool here = (bytes >> 8 * e & 0xffu) != 0;
                value[i][e] = here ? static_cast<float>(Rows::value(bits[i], e)) - less : 0.f;
                shown |= static_cast<unsigned>(here) << (4 * i + e);
            }
        }
        return shown;
    }

    __device__ __forceinline__ unsigned read_values(int column, int apart, float (&value)[PREPARE_QUADS][4]) const {
        unsigned shown = 0;
#pragma unroll
        for (int i = 0; i < PREPARE_QUADS; ++i) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int at = column + i * apart + e;
                const bool here = at < width && (!mask || mask[at]);
                value[i][e] = here ? static_cast<float>(values[at]) - centre[at] : 0.f;
                shown |= static_cast<unsigned>(here) << (4 * i + e);
            }
        }
        return shown;
    }
};

// Writes the rows as float16, each by plan.lanes lanes, and their terms: first the bank's positions, then the queries.
// A lane holds PREPARE_QUADS times four columns in registers; wider rows are read twice.
template <class Rows, bool OWN>
__global__ void __launch_bounds__(PREPARE_THREADS, 3)  // 3: allows up to 80 registers; ptxas left alone spills
    prepare_kernel(const __grid_constant__ ScreenArgs args) {
    const TopkArgs& search = args.topk;
    const ScreenPlan& plan = args.plan;
    const int half_stages = OWN ? plan.stages / 2 : plan.stages, columns = half_stages * SCREEN_COLUMNS;
    const int lanes = plan.lanes, lane = static_cast<int>(threadIdx.x) % lanes;
    const std::int64_t at =
        static_cast<std::int64_t>(blockIdx.x) * (PREPARE_THREADS / lanes) + static_cast<int>(threadIdx.x) / lanes;
    const bool of_bank = at < plan.positions, there = at < plan.positions + static_cast<std::int64_t>(plan.query_rows);
    const int place = there ? static_cast<int>(of_bank ? at : at - plan.positions) : 0;
    const std::int64_t index = of_bank ? row_at(plan, place) : place;
    const bool real = of_bank ? index < search.bank_count && (!search.candidate_mask || search.candidate_mask[index])
                              : there && index < search.query_count;
    const auto* values = static_cast<const typename Rows::Stored*>(of_bank ? search.bank : search.queries);
    const std::uint8_t* mask = search.patch_mask;
    if (OWN) mask = of_bank ? nullptr : mask + index * search.width;
    const CentredRow<Rows> row{values + index * search.width, args.centre, mask, real ? search.width : 0,
                               in_quads<Rows>(search)};

    const int apart = 4 * lanes, step = PREPARE_QUADS * apart;
    float value[PREPARE_QUADS][4], most = 0.f;
    double square = 0.0;
    unsigned shown = 0;
    for (int column = 4 * lane; column < columns; column += step) {
        shown = row.read(column, apart, value);
#pragma unroll
        for (int i = 0; i < PREPARE_QUADS; ++i) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                most = fmaxf(most, fabsf(value[i][e]));  // a NaN shows in `square`
                square += static_cast<double>(value[i][e]) * static_cast<double>(value[i][e]);
            }
        }
    }
    most = largest_of(most, lanes);
    square = sum_of(square, lanes);
    const bool finite = square < MOST_SQUARE;
    const int shift = exponent(most), own_shift = exponent(most * most);
    const float scale = power_of_two(14 - shift), own_scale = power_of_two(14 - own_shift);

    const int rows = of_bank ? plan.positions : plan.query_rows;
    auto* to = reinterpret_cast<uint2*>(of_bank ? args.bank_values : args.query_values);
    const std::int64_t beyond = static_cast<std::int64_t>(columns) * rows / 4;
    float lost = 0.f, own_lost = 0.f;
    for (int column = 4 * lane; column < columns; column += step) {
        if (columns > step) shown = row.read(column, apart, value);
#pragma unroll
        for (int i = 0; i < PREPARE_QUADS; ++i) {
            const int first = column + i * apart;
            if (!there || first >= columns) break;
            const std::int64_t cell =
                (static_cast<std::int64_t>(first / SCREEN_COLUMNS) * rows + place) * (SCREEN_COLUMNS / 4) +
                first % SCREEN_COLUMNS / 4;
            std::uint16_t bits[4], own[4];
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const float kept = finite ? value[i][e] : 0.f;
                bits[e] = half_bits(kept * scale);
                const float rest = kept * scale - half_value(bits[e]);
                lost += rest * rest;
                if constexpr (OWN) {
                    own[e] =
                        finite && (shown >> (4 * i + e) & 1u) ? std::uint16_t{0x3c00} : std::uint16_t{0};  // 1 or 0
                    if (of_bank) {
                        own[e] = half_bits(kept * kept * own_scale);
                        own_lost += fabsf(kept * kept * own_scale - half_value(own[e]));
                    }
                }
            }
            to[cell] = pack(bits);
            if constexpr (OWN) to[cell + beyond] = pack(own);
        }
    }
    lost = sum_of(lost, lanes);
    if constexpr (OWN) own_lost = sum_of(own_lost, lanes);
    if (lane != 0 || !there) return;

    const float length = sqrtf(static_cast<float>(square)) * MORE + TINY_LENGTH;
    const float residue = sqrtf(lost) * MORE * power_of_two(shift - 14);
    if (!of_bank) {
        args.query_squares[place] = finite ? static_cast<float>(square) : __int_as_float(NAN_BITS);
        args.query_terms[place] =
            make_float4(-FAR, 2.f * MORE * length, 2.f * MORE * residue, -2.f * power_of_two(shift - 14));
        return;
    }
    const float sums = static_cast<float>(search.width + 64) * (OWN ? 0x1p-21f : 0x1p-22f);  // G, 2 G
    float constant = static_cast<float>(square);
    if (OWN) constant = own_lost * MORE * power_of_two(own_shift - 14) + (sums + 2.f * EDGE) * constant;
    if (!finite) constant = __int_as_float(NAN_BITS);
    if (!real) constant = OWN ? -FAR : FAR;  // OWN: subtracted below
    args.row_terms[place] = make_float4(constant, residue + sums * length + 0x1p-100f, length + residue,
                                        OWN ? power_of_two(shift - own_shift) : power_of_two(shift - 14));
    if (OWN) args.row_scales[place] = power_of_two(own_shift - 14);
}

// The weights of the bank's positions as float32; 1 where there is no allowed row, which FAR rules out.
__global__ void __launch_bounds__(256) factor_kernel(const __grid_constant__ ScreenArgs args) {
    const int place = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (place >= args.plan.positions) return;
    const std::int64_t index = row_at(args.plan, place);
    const bool real = index < args.topk.bank_count && (!args.topk.candidate_mask || args.topk.candidate_mask[index]);
    args.row_scales[place] = real ? row_factor(args.topk.weights[index]) : 1.f;
}

// Starts a quarter of the copies of a stage (twice 32 columns) of the block's rows to a buffer.
__device__ __forceinline__ void fetch_stage(const ScreenArgs& args, uint4* shared, int stage, int quarter,
                                            int first_query, int first_row) {
    constexpr int TOGETHER = SCREEN_THREADS / STAGE_UNITS, OPERAND = SCREEN_TILE * STAGE_UNITS;
    const int unit = static_cast<int>(threadIdx.x) % STAGE_UNITS, row = static_cast<int>(threadIdx.x) / STAGE_UNITS;
    const std::int64_t part = 2 * stage + unit / 4;
    // rows of a thread are multiples of 8 apart
    uint4* to = shared + stage % SCREEN_STAGES * 2 * OPERAND + stage_place(row, unit);
    const uint4* queries = args.query_values + (part * args.plan.query_rows + first_query + row) * 4 + unit % 4;
    const uint4* rows = args.bank_values + (part * args.plan.positions + first_row + row) * 4 + unit % 4;
#pragma unroll
    for (int r = quarter * SCREEN_TILE / 4; r < (quarter + 1) * SCREEN_TILE / 4; r += TOGETHER) {
        __pipeline_memcpy_async(to + r * STAGE_UNITS, queries + r * 4, 16);
        __pipeline_memcpy_async(to + OPERAND + r * STAGE_UNITS, rows + r * 4, 16);
    }
}

// Appends the bank row at a position to a query's survivors; ignores rows and queries beyond the last.
__device__ __forceinline__ void list_survivor(const ScreenArgs& args, int query, int position) {
    const std::int64_t index = row_at(args.plan, position);
    if (index >= args.topk.bank_count || query >= args.topk.query_count) return;
    const unsigned at = atomicAdd(args.counts + query, 1u);
    if (at >= static_cast<unsigned>(args.plan.most)) return;
    args.survivors[static_cast<std::int64_t>(query) * args.plan.most + at] = static_cast<int>(index);
}

// Bounds of the distances of 128 queries and 128 positions: with SAMPLE, upper bounds, whose minima go to args.minima;
// else lower bounds, and rows that are not above the query's threshold go to its list.
// Shared memory: SCREEN_STAGES * 32 KiB.
template <bool OWN, bool SAMPLE, bool WEIGHTED>
__global__ void __launch_bounds__(SCREEN_THREADS, 2) screen_kernel(const __grid_constant__ ScreenArgs args) {
    const ScreenPlan& plan = args.plan;
    const int lane = lane_id(), warp = static_cast<int>(threadIdx.x) / 32, g = lane / 4, t = lane % 4;
    const int query_tiles = plan.query_rows / SCREEN_TILE, tile = static_cast<int>(blockIdx.x) / query_tiles;
    const int first_query = static_cast<int>(blockIdx.x) % query_tiles * SCREEN_TILE, first_row = tile * SCREEN_TILE;
    const int warp_query = warp / 2 * 64, warp_row = warp % 2 * 64;
    auto* shared = reinterpret_cast<uint4*>(dynamic_shared());

    float sum[4][8][4];
#pragma unroll
    for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) sum[m][j][e] = 0.f;
        }
    }
    const int stages = plan.stages / 2;
    for (int stage = 0; stage < SCREEN_STAGES - 1; ++stage) {
        for (int quarter = 0; stage < stages && quarter < 4; ++quarter) {
            fetch_stage(args, shared, stage, quarter, first_query, first_row);
        }
        __pipeline_commit();
    }
    for (int stage = 0; stage < stages; ++stage) {
        __pipeline_wait_prior(SCREEN_STAGES - 2);
        __syncthreads();  // the stage has arrived, and no warp still reads the buffer filled next
        const int next = stage + SCREEN_STAGES - 1;
        if (OWN && stage == stages / 2) {  // sums of squares follow: rescale the products to theirs
#pragma unroll
            for (int m = 0; m < 4; ++m) {
#pragma unroll
                for (int j = 0; j < 8; ++j) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        const int query = first_query + warp_query + m * 16 + e / 2 * 8 + g;
                        const int row = first_row + warp_row + j * 8 + 2 * t + e % 2;
                        sum[m][j][e] *= args.query_terms[query].w * args.row_terms[row].w;
                    }
                }
            }
        }
        const uint4* here = shared + stage % SCREEN_STAGES * 2 * SCREEN_TILE * STAGE_UNITS;
        multiply_stage<4>(here, warp_query, here + SCREEN_TILE * STAGE_UNITS, warp_row, sum, [&](int quarter) {
            if (next < stages) fetch_stage(args, shared, next, quarter, first_query, first_row);
        });
        __pipeline_commit();
    }

    float4 query[4][2];
    float least[4][2], own[4][2];  // own: |q'|^2 of the query, made larger or smaller as bounds of w d need it
    unsigned within[4];            // bit h 16 + j 2 + e: the pair of row h 8 + g and column 8 j + 2 t + e
#pragma unroll
    for (int m = 0; m < 4; ++m) {
        within[m] = 0;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int q = first_query + warp_query + m * 16 + h * 8 + g;
            query[m][h] = args.query_terms[q];
            least[m][h] = INFINITY;
            if constexpr (WEIGHTED) {
                own[m][h] = __fmaf_rn(SAMPLE ? 4.f * EDGE : -4.f * EDGE, args.query_squares[q], args.query_squares[q]);
                own[m][h] += SAMPLE ? TINY : -TINY;
            }
        }
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            const int position = first_row + warp_row + j * 8 + 2 * t + e;
            const float4 row = args.row_terms[position];
            const float scale = OWN ? args.row_scales[position] : row.w;
            const float weight = WEIGHTED ? args.row_scales[position] : 1.f, inverse = 1.f / weight;
            const float constant = OWN ? (SAMPLE ? row.x : -row.x) : __fmaf_rn(SAMPLE ? EDGE : -EDGE, row.x, row.x);
#pragma unroll
            for (int m = 0; m < 4; ++m) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const float product = sum[m][j][2 * h + e] * scale;
                    const float score = OWN ? product + constant : __fmaf_rn(query[m][h].w, product, constant);
                    const float rounding = __fmaf_rn(query[m][h].y, row.y, query[m][h].z * row.z);
                    if constexpr (SAMPLE) {
                        float bound = score + rounding;
                        if constexpr (WEIGHTED) bound += own[m][h];
                        if (fabsf(bound) < FAR && weight > 0.f) {
                            if constexpr (WEIGHTED) bound = fmaxf(bound, 0.f) * weight;
                            least[m][h] = fminf(least[m][h], bound);
                        }
                    } else {
                        float limit = query[m][h].x;
                        if constexpr (WEIGHTED) limit = __fmaf_rn(limit, inverse, -own[m][h]);
                        const bool above = score > limit + rounding && score < FAR_SCORE;
                        within[m] |= static_cast<unsigned>(!above) << (h * 16 + j * 2 + e);
                    }
                }
            }
        }
        if constexpr (SAMPLE) {
            const int span = 8 / plan.parts;
            if ((j + 1) % span == 0) {
#pragma unroll
                for (int m = 0; m < 4; ++m) {
#pragma unroll
                    for (int h = 0; h < 2; ++h) {
                        const int q = first_query + warp_query + m * 16 + h * 8 + g;
                        const int group = ((tile * 2 + warp % 2) * 4 + t) * plan.parts + j / span;
                        args.minima[static_cast<std::int64_t>(q) * plan.groups + group] = least[m][h];
                        least[m][h] = INFINITY;
                    }
                }
            }
        }
    }
    if constexpr (!SAMPLE) {
        const int lane_query = first_query + warp_query + g, lane_row = first_row + warp_row + 2 * t;
#pragma unroll 1
        for (int m = 0; m < 4; ++m) {
            unsigned bits = m == 0 ? within[0] : m == 1 ? within[1] : m == 2 ? within[2] : within[3];
            while (bits) {
                const int bit = __ffs(static_cast<int>(bits)) - 1;
                bits &= bits - 1;
                list_survivor(args, lane_query + m * 16 + bit / 16 * 8, lane_row + bit % 16 / 2 * 8 + bit % 2);
            }
        }
    }
}

// The k-th smallest of `count` >= k numbers above 0 in shared memory, by a warp: by repeatedly taking the next larger
// minimum, or, for a large k, bit by bit.
__device__ __forceinline__ unsigned smallest(const unsigned* numbers, int count, int k) {
    if (k <= MOST_ROUNDS) {
        return smallest_in_rounds(k, [&](auto take) {
            for (int i = lane_id(); i < count; i += 32) take(numbers[i]);
        });
    }
    unsigned found = 0;
    for (int bit = 31; bit >= 0; --bit) {
        const unsigned above = found | 1u << bit;
        int below = 0;
        for (int i = lane_id(); i < count; i += 32) below += numbers[i] < above;
        if (__reduce_add_sync(WARP, below) < k) found = above;
    }
    return found;
}

// The k-th smallest of a query's minima, found by a whole block and returned in its first warp. Each thread takes the
// least of its share; the result is no larger than the k-th of these, so only numbers below that are looked at again.
// Shared memory: as limit_words.
__device__ __forceinline__ unsigned smallest_of_block(const float* minima, int groups, int k, unsigned* shared) {
    const int thread = static_cast<int>(threadIdx.x);
    unsigned *limit = shared, *count = shared + 1, *shares = shared + 2, *list = shares + LIMIT_THREADS;
    unsigned least = ~0u;
#pragma unroll 8
    for (int i = thread; i < groups; i += LIMIT_THREADS) least = min(least, ordered(minima[i]));
    shares[thread] = least;
    if (thread == 0) *count = 0;
    __syncthreads();
    if (thread < 32) {
        const unsigned found = smallest(shares, LIMIT_THREADS, k);
        if (thread == 0) *limit = found;
    }
    __syncthreads();
    const unsigned enough = *limit;
    if (least < enough) {
#pragma unroll 8
        for (int i = thread; i < groups; i += LIMIT_THREADS) {
            const unsigned number = ordered(minima[i]);
            if (number < enough) list[atomicAdd(count, 1u)] = number;
        }
    }
    __syncthreads();
    const int listed = static_cast<int>(*count);
    return thread >= 32 || listed < k ? enough : smallest(list, listed, k);
}

// The threshold of each query: its K-th minimum; without weights, minus its squared length. One warp per query, or one
// block where it has more than WARP_GROUPS minima.
// Shared memory: limit_words.
__global__ void __launch_bounds__(LIMIT_THREADS) limit_kernel(const __grid_constant__ ScreenArgs args) {
    const int groups = args.plan.groups, k = min(args.topk.k, groups), warp = static_cast<int>(threadIdx.x) / 32;
    const bool by_warp = groups <= WARP_GROUPS;
    const int q = static_cast<int>(by_warp ? blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32 : blockIdx.x);
    if (q >= args.topk.query_count) return;
    const float* minima = args.minima + static_cast<std::int64_t>(q) * groups;
    auto* shared = reinterpret_cast<unsigned*>(dynamic_shared());
    unsigned found;
    if (by_warp) {
        unsigned* own = shared + warp * groups;
#pragma unroll 8
        for (int i = lane_id(); i < groups; i += 32) own[i] = ordered(minima[i]);
        found = smallest(own, groups, k);  // each lane reads what it wrote
    } else {
        found = smallest_of_block(minima, groups, k, shared);
        if (warp != 0) return;
    }
    if (lane_id() != 0) return;
    if (args.topk.weights) {
        const float bound = unordered(found);
        const bool known = args.topk.k <= groups && bound < FAR;
        args.query_terms[q].x = known ? __fmaf_rn(bound, 1.f + 4.f * EDGE, args.topk.tiny) : INFINITY;
        return;
    }
    const double square = args.query_squares[q], bound = static_cast<double>(unordered(found)) + square;
    // what rounds to the same float32 is not above it; below 1e-30 float32 is not precise
    const double limit = max(bound, 0.0) * (1.0 + 2.0 * EDGE) + 4.0 * EDGE * square + 1e-30;
    const bool none = args.topk.k > groups || !(limit < static_cast<double>(MOST_SQUARE));
    args.query_terms[q].x = none ? INFINITY : static_cast<float>(limit - square);
}

// The K nearest of a query's survivors, one block per query; a query with more than its list holds is to be redone.
// Shared memory: (warps, K) keys.
template <class Rows, bool OWN>
__global__ void __launch_bounds__(RECHECK_THREADS, 4) recheck_kernel(const __grid_constant__ ScreenArgs args) {
    constexpr int WARPS = RECHECK_THREADS / 32;
    const TopkArgs& search = args.topk;
    const int q = static_cast<int>(blockIdx.x), k = search.k, warp = static_cast<int>(threadIdx.x) / 32;
    const unsigned survivors = args.counts[q];
    if (survivors > static_cast<unsigned>(args.plan.most)) {
        if (threadIdx.x == 0) args.redone[atomicAdd(args.redone_count, 1u)] = q;
        return;
    }
    auto* lists = reinterpret_cast<Key*>(dynamic_shared());
    Key* list = lists + warp * k;
    for (int rank = lane_id(); rank < k; rank += 32) list[rank] = EMPTY;
    __syncwarp();
    const int* from = args.survivors + static_cast<std::int64_t>(q) * args.plan.most;
    const int count = static_cast<int>(survivors);
    // A warp takes every WARPS-th survivor, and measures 32 of them before it offers their keys.
    for (int first = warp; first < count; first += 32 * WARPS) {
        const int taken = min(32, (count - first + WARPS - 1) / WARPS);
        const int own = from[first + min(lane_id(), taken - 1) * WARPS];
        Key key = EMPTY;
        for (int i = 0; i < taken; i += RECHECK_ROWS) {
            int rows[RECHECK_ROWS], distance[RECHECK_ROWS];
#pragma unroll
            for (int r = 0; r < RECHECK_ROWS; ++r) rows[r] = __shfl_sync(WARP, own, min(i + r, taken - 1));
            measure_rows<Rows, OWN, RECHECK_ROWS>(search, q, rows, distance);
#pragma unroll
            for (int r = 0; r < RECHECK_ROWS; ++r) {
                if (lane_id() == i + r) key = make_key(distance[r], static_cast<unsigned>(rows[r]));
            }
        }
        const bool allowed = lane_id() < taken && (!search.candidate_mask || search.candidate_mask[own]);
        offer(list, k, allowed ? key : EMPTY);
    }
    close_lists<Rows>(search, q, lists);
}

}  // namespace lpkernel::cuda
