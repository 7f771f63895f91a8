// masked_topk: the K nearest of B bank rows for each of Q queries; used for few queries, and for those that screen.cuh
// leaves over. No (Q, B) matrix is ever stored.
//
//   distance(q, b) = sum over the marked columns of (q - b)^2, taken directly.
//
// Tiling. A warp owns TQ queries and, at a time, 128 bank rows: each lane compares 4 of them with all TQ queries, in
// 4 TQ accumulators. Query values are the same in all lanes: one broadcast load from shared memory brings four of them.
// Bank values come by 16-byte loads of a row, 8 lanes a turn without bank conflicts. So a column costs 4 TQ sums of
// squares and about (TQ + 4) / 4 loads. A block has query_warps x bank_warps such warps on one bank tile, which
// cp.async brings in 32 columns at a time into one of two buffers while the other is compared. The grid is (tiles of
// queries, slabs of the bank): with few queries the slabs fill the device.
//
// Selection. Each warp keeps the K smallest keys (distance << 32 | row) of its queries (shortlist.cuh) in shared
// memory. A lane compares its sums with the K-th, one instruction each; few pass. At the end one warp per query merges
// the lists of the bank's warps; slabs write theirs to global memory, and a second kernel, one block per query, takes
// the K smallest of those: a block that merged all queries of a tile would run on alone for longer than the search.
// Keys are all different, so the result does not depend on the tiling; ties go to the lowest row.
//
// Integers are exact in int32. Floats: the op promises the float32 rounding of the sum in float64. A float32 sum of D
// squares of differences, all >= 0, is within a factor (1 + 2^-24)^(D + 2) of the exact one, so a row whose float32 sum
// exceeds the K-th distance by more than `slack` (which covers that and the rounding of the K-th) is not among the K.
// The others, about K ln(B / K) rows per query, are measured again in float64 by the whole warp; only those sums enter
// the list. Cancellation plays no part, and rows that are ruled out cost no float64 arithmetic.
//
// Weights, float32 only: rows are ranked by the float32 rounding of w d, with w and d in float64. A float32 sum minus
// TINY, times the weight as float32, takes the place of the sum above: TINY is more than what squares lose below
// float32's normal range, and is subtracted before a large weight could magnify that loss. Rows whose weight is outside
// LEAST_WEIGHT ... MOST_WEIGHT, or whose sum overflows float32, count as 0: they are always measured.
//
// Masks. Hidden entries may be NaN or infinite: their bits are cleared, in query and bank row for a mask shared by all
// queries, in the difference for a mask for each query; they are never multiplied by 0.
//
// Traffic: the bank once for every tile of queries (from L2 when it fits there), the queries once for every 128
// bank_warps rows of the bank (from L1 or L2), K keys for every query and slab.
// Limits: K <= 128, B < 2^31, Q < 2^31; integer distances below 2^31 - 1. NaN distances sort last.

#pragma once

#include "cuda/shortlist.cuh"
#include "cuda/topk.h"

namespace lpkernel::cuda {

constexpr int NO_ROW = INT32_MAX;     // the distance of a row that is not to be taken
constexpr int ANY = INT32_MAX - 1;    // every distance is at most this
constexpr int NAN_BITS = 0x7fc00000;  // above +inf
constexpr float TINY = 1e-30f;        // more than what D squares lose below float32's normal range
constexpr double LEAST_WEIGHT = 0x1p-100, MOST_WEIGHT = 0x1p+100;  // of weights that float32 multiplies well

// How values are stored, compared and summed. Value is what a lane computes with, 32 bits.
struct FloatRows {
    using Stored = float;
    using Value = float;
    static constexpr int VALUES = 4;  // in 16 bytes

    static __device__ __forceinline__ float value(const uint4& bits, int i) {
        return __uint_as_float(i == 0 ? bits.x : i == 1 ? bits.y : i == 2 ? bits.z : bits.w);
    }
    static __device__ __forceinline__ float blank(float value, unsigned mask) {
        return __uint_as_float(__float_as_uint(value) & mask);
    }
    static __device__ __forceinline__ float add_square(float difference, float sum) {
        return __fmaf_rn(difference, difference, sum);
    }
    // Bits that are ordered as distances are.
    static __device__ __forceinline__ int bits(float sum) { return sum != sum ? NAN_BITS : __float_as_int(sum); }
};

struct Int16Rows {
    using Stored = std::int16_t;
    using Value = int;
    static constexpr int VALUES = 8;

    static __device__ __forceinline__ int value(const uint4& bits, int i) {
        const unsigned word = i / 2 == 0 ? bits.x : i / 2 == 1 ? bits.y : i / 2 == 2 ? bits.z : bits.w;
        return i % 2 == 0 ? static_cast<std::int16_t>(word & 0xffffu) : static_cast<int>(word) >> 16;
    }
    static __device__ __forceinline__ int blank(int value, unsigned mask) {
        return static_cast<int>(static_cast<unsigned>(value) & mask);
    }
    static __device__ __forceinline__ int add_square(int difference, int sum) {  // rows beyond the bank may wrap
        const auto d = static_cast<unsigned>(difference);
        return static_cast<int>(d * d + static_cast<unsigned>(sum));
    }
    static __device__ __forceinline__ int bits(int sum) { return sum; }
};

// How many queries a launch searches for, and the i-th of them.
__device__ __forceinline__ int query_count(const TopkArgs& args) {
    return args.chosen ? min(static_cast<int>(*args.chosen_count), args.query_count) : args.query_count;
}
__device__ __forceinline__ int query_at(const TopkArgs& args, int i) {
    return args.chosen ? args.chosen[i] : i;
}

// The 32-column stages of a block.
template <class Rows, bool OWN, int TQ>
struct Stages {
    using Stored = typename Rows::Stored;
    using Value = typename Rows::Value;

    const TopkArgs& args;
    unsigned char* shared;
    int first_query, queries_here, thread, threads;

    __device__ __forceinline__ unsigned char* bank(int buffer) const {
        return shared + args.shared.bank + buffer * args.shape.rows() * args.shared.row_bytes;
    }
    __device__ __forceinline__ Value* queries(int buffer) const {
        return reinterpret_cast<Value*>(shared + args.shared.queries + buffer * args.shared.query_bytes);
    }
    __device__ __forceinline__ unsigned* masks(int buffer) const {
        return reinterpret_cast<unsigned*>(shared + args.shared.masks + buffer * args.shared.mask_bytes);
    }

    // Starts bringing columns [column, column + 32) of rows [row, row + rows()) and of the queries into a buffer. What
    // lies beyond D or B reads as 0, up to the 16 bytes that are compared together.
    __device__ __forceinline__ void fetch(int buffer, int row, int column) const {
        if (args.unit == 16) {
            fetch_bank<16>(buffer, row, column);
        } else if (args.unit == 4) {
            fetch_bank<4>(buffer, row, column);
        } else {
            fetch_bank<2>(buffer, row, column);
        }
        __pipeline_commit();
        fetch_queries(buffer, column);
    }

    template <int UNIT>
    __device__ __forceinline__ void fetch_bank(int buffer, int row, int column) const {
        constexpr int COUNT =
            UNIT / static_cast<int>(sizeof(Stored));  // values in a unit; 0 when there are no such units
        if constexpr (COUNT > 0) {
            constexpr int UNITS = STAGE_COLUMNS / COUNT;  // of a row
            const auto* from = static_cast<const Stored*>(args.bank);
            unsigned char* to = bank(buffer);
            const int needed =
                (min(args.width - column, STAGE_COLUMNS) + Rows::VALUES - 1) / Rows::VALUES * Rows::VALUES;
            const int total = args.shape.rows() * UNITS;
            for (int e = thread; e < total; e += threads) {
                const int r = e / UNITS, c = e % UNITS * COUNT;
                if (c >= needed) continue;
                const bool inside = row + r < args.bank_count && column + c < args.width;
                const Stored* source =
                    inside ? from + static_cast<std::int64_t>(row + r) * args.width + column + c : from;
                unsigned char* target = to + r * args.shared.row_bytes + c * static_cast<int>(sizeof(Stored));
                if constexpr (UNIT >= 4) {
                    __pipeline_memcpy_async(target, source, UNIT, inside ? 0 : UNIT);
                } else {
                    *reinterpret_cast<Stored*>(target) = inside ? *source : Stored{0};
                }
            }
        }
    }

    __device__ __forceinline__ void fetch_queries(int buffer, int column) const {
        const auto* from = static_cast<const Stored*>(args.queries);
        Value* to = queries(buffer);
        unsigned* mask_to = masks(buffer);
        const int total = args.shape.queries() * STAGE_COLUMNS;
        for (int e = thread; e < total; e += threads) {
            const int slot = e / STAGE_COLUMNS, c = e % STAGE_COLUMNS;
            const bool inside = slot < queries_here && column + c < args.width;
            const int query = inside ? query_at(args, first_query + slot) : 0;
            const std::int64_t at = static_cast<std::int64_t>(query) * args.width + column + c;
            const bool shown =
                inside && (!args.patch_mask || args.patch_mask[OWN ? at : static_cast<std::int64_t>(column + c)]);
            const int place = (slot / TQ * STAGE_COLUMNS + c) * TQ + slot % TQ;
            to[place] = shown ? static_cast<Value>(from[at]) : Value{0};
            if (OWN) mask_to[place] = shown ? ~0u : 0u;
        }
        if (!OWN) {
            for (int c = thread; c < STAGE_COLUMNS; c += threads) {
                const bool shown = column + c < args.width && (!args.patch_mask || args.patch_mask[column + c]);
                mask_to[c] = shown ? ~0u : 0u;
            }
        }
    }
};

// Loads TQ words that are the same in all lanes.
template <int TQ, class T>
__device__ __forceinline__ void broadcast(const T* from, T (&to)[TQ]) {
    if constexpr (TQ % 4 == 0) {
#pragma unroll
        for (int i = 0; i < TQ; i += 4) {
            const uint4 words = *reinterpret_cast<const uint4*>(from + i);
            memcpy(&to[i], &words.x, 4);
            memcpy(&to[i + 1], &words.y, 4);
            memcpy(&to[i + 2], &words.z, 4);
            memcpy(&to[i + 3], &words.w, 4);
        }
    } else {
#pragma unroll
        for (int i = 0; i < TQ; ++i) to[i] = from[i];
    }
}

// Adds the squares of `groups` groups of columns. bank: the lane's first row; the others follow 32 rows apart.
template <class Rows, bool OWN, int TQ>
__device__ __forceinline__ void add_columns(const unsigned char* bank, int row_bytes,
                                            const typename Rows::Value* queries, const unsigned* masks, int groups,
                                            typename Rows::Value (&sum)[TQ][ROWS_PER_LANE]) {
    using Value = typename Rows::Value;
    for (int g = 0; g < groups; ++g) {
        uint4 rows[ROWS_PER_LANE];
#pragma unroll
        for (int j = 0; j < ROWS_PER_LANE; ++j) {
            rows[j] = *reinterpret_cast<const uint4*>(bank + j * 32 * row_bytes + g * 16);
        }
#pragma unroll
        for (int c = 0; c < Rows::VALUES; ++c) {
            const int column = g * Rows::VALUES + c;
            Value query[TQ], row[ROWS_PER_LANE];
            unsigned mask[TQ];
            broadcast<TQ>(queries + column * TQ, query);
            if constexpr (OWN) broadcast<TQ>(masks + column * TQ, mask);
#pragma unroll
            for (int j = 0; j < ROWS_PER_LANE; ++j) {
                row[j] = Rows::value(rows[j], c);
                if constexpr (!OWN) row[j] = Rows::blank(row[j], masks[column]);
            }
#pragma unroll
            for (int i = 0; i < TQ; ++i) {
#pragma unroll
                for (int j = 0; j < ROWS_PER_LANE; ++j) {
                    Value difference = query[i] - row[j];
                    if constexpr (OWN) difference = Rows::blank(difference, mask[i]);
                    sum[i][j] = Rows::add_square(difference, sum[i][j]);
                }
            }
        }
    }
}

template <class T>
__device__ __forceinline__ T sum_of_warp(T value) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(WARP, value, lanes);
    return value;
}

// The exact distances of a query and some rows, by the whole warp, the same in all lanes: for int16 rows, integers; for
// float32 rows, the bits of the float32 rounding of the float64 sum times the row's weight. Rows are read together, so
// that they wait for memory together. WEIGHTS: whether there may be weights.
template <class Rows, bool OWN, int COUNT, bool WEIGHTS = true>
__device__ __forceinline__ void measure_rows(const TopkArgs& args, int query, const int (&rows)[COUNT],
                                             int (&distance)[COUNT]) {
    using Stored = typename Rows::Stored;
    using Sum = std::conditional_t<sizeof(Stored) == 2, int, double>;
    const auto* q = static_cast<const Stored*>(args.queries) + static_cast<std::int64_t>(query) * args.width;
    const auto* bank = static_cast<const Stored*>(args.bank);
    const std::uint8_t* mask = args.patch_mask;
    if (OWN) mask += static_cast<std::int64_t>(query) * args.width;
    Sum sum[COUNT] = {};
    for (int d = lane_id(); d < args.width; d += 32) {
        const Sum own = q[d];
        const bool shown = !mask || mask[d];
#pragma unroll
        for (int r = 0; r < COUNT; ++r) {
            const Sum difference = own - static_cast<Sum>(bank[static_cast<std::int64_t>(rows[r]) * args.width + d]);
            if (shown) sum[r] += difference * difference;
        }
    }
#pragma unroll
    for (int r = 0; r < COUNT; ++r) {
        sum[r] = sum_of_warp(sum[r]);
        if constexpr (sizeof(Stored) == 2) {
            distance[r] = sum[r];
        } else {
            const double weight = WEIGHTS && args.weights ? args.weights[rows[r]] : 1.0;
            distance[r] = FloatRows::bits(static_cast<float>(sum[r] * weight));
        }
    }
}

// A row's weight as float32; 0 for one that float32 does not multiply well.
__device__ __forceinline__ float row_factor(double weight) {
    return weight >= LEAST_WEIGHT && weight <= MOST_WEIGHT ? static_cast<float>(weight) : 0.f;
}

// A lower bound of a weighted distance, within `slack`.
__device__ __forceinline__ float weigh(float sum, float factor) {
    return sum < INFINITY ? fmaxf(sum - TINY, 0.f) * factor : sum != sum ? sum : 0.f;
}

// The float32 sum of a row at `distance` is at most this.
__device__ __forceinline__ int widen(const TopkArgs& args, int distance) {
    if (distance >= NAN_BITS) return distance;
    return __float_as_int(__int_as_float(distance) * args.slack + args.tiny);
}

// The largest sum that may still enter a list whose last key is `last`. Rows come in ascending order, so ties with it
// come too late.
template <class Rows>
__device__ __forceinline__ int bound(const TopkArgs& args, Key last) {
    if (last == EMPTY) return ANY;
    const int distance = key_distance(last);
    if (sizeof(typename Rows::Stored) == 2 || distance >= NAN_BITS) return distance - 1;
    return widen(args, distance);
}

// Offers the 32 sums of a warp, of rows `first` + lane, to a query's list; those above `limit` cannot enter. COUNT:
// rows that are measured at a time.
template <class Rows, bool OWN, int COUNT>
__device__ __forceinline__ void take(const TopkArgs& args, Key* list, int query, int first, int sum, int& limit) {
    const int k = args.k;
    unsigned todo = __ballot_sync(WARP, sum <= limit);
    while (todo) {
        const int taken = min(__popc(todo), COUNT);
        int rows[COUNT], distance[COUNT], row = first;
#pragma unroll
        for (int r = 0; r < COUNT; ++r) {  // repeats the last where there are fewer
            if (todo) row = first + __ffs(static_cast<int>(todo)) - 1;
            rows[r] = row;
            todo &= todo - 1;
        }
        if constexpr (sizeof(typename Rows::Stored) == 2) {
#pragma unroll
            for (int r = 0; r < COUNT; ++r) distance[r] = __shfl_sync(WARP, sum, rows[r] - first);
        } else {
            measure_rows<Rows, OWN, COUNT>(args, query, rows, distance);
        }
#pragma unroll
        for (int r = 0; r < COUNT; ++r) {
            const Key key = make_key(distance[r], static_cast<unsigned>(rows[r]));
            if (r < taken && key < list[k - 1]) {
                insert(list, k, key);
                limit = min(limit, bound<Rows>(args, list[k - 1]));
            }
        }
        todo &= __ballot_sync(WARP, sum <= limit);
    }
}

// Merges an ascending list of K keys into another, all lanes of a warp together; load(rank) is an entry.
template <class Load>
__device__ __forceinline__ void absorb(Key* list, int k, Load load) {
    for (int base = 0; base < k; base += 32) {
        const Key key = base + lane_id() < k ? load(base + lane_id()) : EMPTY;
        if (!__any_sync(WARP, key < list[k - 1])) return;  // nor can later ones be
        offer(list, k, key);
    }
}

template <class Rows>
__device__ __forceinline__ void write_neighbours(const TopkArgs& args, int query, const Key* list) {
    for (int rank = lane_id(); rank < args.k; rank += 32) {
        const Key key = list[rank];
        const std::int64_t at = static_cast<std::int64_t>(query) * args.k + rank;
        const bool empty = key == EMPTY;
        if constexpr (sizeof(typename Rows::Stored) == 2) {
            static_cast<std::int32_t*>(args.distances)[at] = empty ? INT32_MAX : key_distance(key);
        } else {
            static_cast<float*>(args.distances)[at] = __int_as_float(empty ? 0x7f800000 : key_distance(key));
        }
        args.indices[at] = empty ? -1 : static_cast<std::int64_t>(key & 0xffffffffu);
    }
}

template <class Rows, bool OWN, int TQ>
__global__ void __launch_bounds__(32 * MOST_TOPK_WARPS, 2)  // 2: allows up to 128 registers; ptxas left alone spills
    masked_topk_kernel(const __grid_constant__ TopkArgs args) {
    using Value = typename Rows::Value;
    const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, k = args.k;
    const int query_warp = warp % args.shape.query_warps, bank_warp = warp / args.shape.query_warps;
    const int first_query = static_cast<int>(blockIdx.x) * args.shape.queries();
    const int slab = static_cast<int>(blockIdx.y);
    unsigned char* shared = dynamic_shared();
    const int count = query_count(args);
    if (first_query >= count) return;
    const Stages<Rows, OWN, TQ> stages{
        args, shared, first_query, count - first_query, thread, static_cast<int>(blockDim.x)};
    auto* lists = reinterpret_cast<Key*>(shared + args.shared.lists);  // (queries, bank warps, K)
    const auto list_of = [&](int slot, int part) { return lists + (slot * args.shape.bank_warps + part) * k; };

    for (int e = thread; e < args.shape.queries() * args.shape.bank_warps * k; e += static_cast<int>(blockDim.x)) {
        lists[e] = EMPTY;
    }
    int limit[TQ];
#pragma unroll
    for (int i = 0; i < TQ; ++i) limit[i] = ANY;

    const int rows = args.shape.rows(), chunks = max(1, (args.width + STAGE_COLUMNS - 1) / STAGE_COLUMNS);
    const auto begin =
        min(static_cast<std::int64_t>(slab) * args.slab_rows, static_cast<std::int64_t>(args.bank_count));
    const int end = static_cast<int>(min(begin + args.slab_rows, static_cast<std::int64_t>(args.bank_count)));
    const int first = static_cast<int>(begin);
    if (first < end) stages.fetch(0, first, 0);
    int buffer = 0;
    // Rows fit int32 up to the end of the last tile, below 2^31 as the binding allows 2^30 rows.
    for (int tile = first; tile < end; tile += rows) {
        Value sum[TQ][ROWS_PER_LANE];
#pragma unroll
        for (int i = 0; i < TQ; ++i) {
#pragma unroll
            for (int j = 0; j < ROWS_PER_LANE; ++j) sum[i][j] = 0;
        }
        for (int chunk = 0; chunk < chunks; ++chunk) {
            const bool turn = chunk + 1 == chunks;
            const int next_tile = turn ? tile + rows : tile;
            if (next_tile < end) {
                stages.fetch(buffer ^ 1, next_tile, turn ? 0 : (chunk + 1) * STAGE_COLUMNS);
                __pipeline_wait_prior(1);
            } else {
                __pipeline_wait_prior(0);
            }
            __syncthreads();
            const int columns = min(args.width - chunk * STAGE_COLUMNS, STAGE_COLUMNS);
            add_columns<Rows, OWN, TQ>(
                stages.bank(buffer) + (bank_warp * WARP_ROWS + lane_id()) * args.shared.row_bytes,
                args.shared.row_bytes, stages.queries(buffer) + query_warp * STAGE_COLUMNS * TQ,
                stages.masks(buffer) + (OWN ? query_warp * STAGE_COLUMNS * TQ : 0),
                (columns + Rows::VALUES - 1) / Rows::VALUES, sum);
            __syncthreads();
            buffer ^= 1;
        }

        const int warp_row = tile + bank_warp * WARP_ROWS, own_row = warp_row + lane_id();
        bool valid[ROWS_PER_LANE];
#pragma unroll
        for (int j = 0; j < ROWS_PER_LANE; ++j) {
            const int row = own_row + 32 * j;
            valid[j] = row < end && (!args.candidate_mask || args.candidate_mask[row]);
            if constexpr (sizeof(typename Rows::Stored) == 4) {
                if (!args.weights || !valid[j]) continue;
                const float factor = row_factor(args.weights[row]);
#pragma unroll
                for (int i = 0; i < TQ; ++i) sum[i][j] = weigh(sum[i][j], factor);
            }
        }
        unsigned passing = 0;  // queries whose list some row may enter
        int bits[TQ][ROWS_PER_LANE];
#pragma unroll
        for (int i = 0; i < TQ; ++i) {
            int least = NO_ROW;
#pragma unroll
            for (int j = 0; j < ROWS_PER_LANE; ++j) {
                bits[i][j] = valid[j] ? Rows::bits(sum[i][j]) : NO_ROW;
                least = min(least, bits[i][j]);
            }
            const bool there = first_query + query_warp * TQ + i < count;
            if (there && __any_sync(WARP, least <= limit[i])) passing |= 1u << i;
        }
        while (passing) {
            const int chosen = __ffs(static_cast<int>(passing)) - 1;
            passing &= passing - 1;
            int own[ROWS_PER_LANE] = {}, own_limit = 0;
#pragma unroll
            for (int i = 0; i < TQ; ++i) {  // no indexing of registers by a variable
                own_limit = i == chosen ? limit[i] : own_limit;
#pragma unroll
                for (int j = 0; j < ROWS_PER_LANE; ++j) own[j] = i == chosen ? bits[i][j] : own[j];
            }
            const int slot = query_warp * TQ + chosen;
            const int query = query_at(args, first_query + slot);
            Key* list = list_of(slot, bank_warp);
            // K rows lie within what K lanes reach, so the list begins with a limit. Not with weights: a lower bound
            // does not tell how far a row may be.
            if (own_limit == ANY && k <= 32 && !args.weights) {
                const int reach = reached_by(min(min(own[0], own[1]), min(own[2], own[3])), k);
                if constexpr (sizeof(typename Rows::Stored) == 2) {
                    own_limit = min(own_limit, reach);
                } else {
                    if (reach < NAN_BITS) own_limit = widen(args, widen(args, reach));
                }
            }
            for (int j = 0; j < ROWS_PER_LANE; ++j) {
                const int now = j == 0 ? own[0] : j == 1 ? own[1] : j == 2 ? own[2] : own[3];
                take<Rows, OWN, TQ == 2 ? 4 : 2>(args, list, query, warp_row + 32 * j, now, own_limit);
            }
#pragma unroll
            for (int i = 0; i < TQ; ++i) limit[i] = i == chosen ? own_limit : limit[i];
        }
    }

    __syncthreads();
    const int warps = static_cast<int>(blockDim.x) / 32, slabs = args.shape.slabs;
    for (int slot = warp; slot < args.shape.queries(); slot += warps) {
        const int i = first_query + slot;
        if (i >= count) continue;
        Key* list = list_of(slot, 0);
        for (int part = 1; part < args.shape.bank_warps; ++part) {
            const Key* other = list_of(slot, part);
            absorb(list, k, [&](int rank) { return other[rank]; });
        }
        if (slabs == 1) {
            write_neighbours<Rows>(args, query_at(args, i), list);
        } else {
            Key* to = args.partial + (static_cast<std::int64_t>(i) * slabs + slab) * k;
            for (int rank = lane_id(); rank < k; rank += 32) to[rank] = list[rank];
        }
    }
}

// Writes the K smallest keys of all warps' lists, (warps, K) in shared memory, as a query's neighbours.
template <class Rows>
__device__ __forceinline__ void close_lists(const TopkArgs& args, int query, Key* lists) {
    __syncthreads();
    if (threadIdx.x >= 32) return;
    const int warps = static_cast<int>(blockDim.x) / 32, k = args.k;
    for (int part = 1; part < warps; ++part) {
        const Key* other = lists + part * k;
        absorb(lists, k, [&](int rank) { return other[rank]; });
    }
    write_neighbours<Rows>(args, query, lists);
}

// The K smallest keys of a query's slabs, one block per query. Lists of slabs ascend, so each thread first takes the
// smallest first key of its slabs, and nothing beyond the K-th of those is taken; then warps go down the lists of their
// slabs, one lane each, as far as some key can still enter. Shared memory: (warps, K) keys, a limit, and a key per
// thread.
template <class Rows>
__global__ void __launch_bounds__(MERGE_THREADS) merge_slabs_kernel(const __grid_constant__ TopkArgs args) {
    constexpr int WARPS = MERGE_THREADS / 32;
    const int i = static_cast<int>(blockIdx.x), k = args.k, slabs = args.shape.slabs;
    const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
    if (i >= query_count(args)) return;
    auto* lists = reinterpret_cast<Key*>(dynamic_shared());
    Key *list = lists + warp * k, *limit = lists + WARPS * k, *heads = limit + 1;
    const Key* from = args.partial + static_cast<std::int64_t>(i) * slabs * k;
    Key head = EMPTY;
    for (int slab = thread; slab < slabs; slab += MERGE_THREADS) {
        const Key key = from[static_cast<std::int64_t>(slab) * k];
        head = key < head ? key : head;
    }
    heads[thread] = head;
    if (thread == 0) *limit = EMPTY;
    for (int rank = lane_id(); rank < k; rank += 32) list[rank] = EMPTY;
    __syncthreads();
    const int there = min(slabs, MERGE_THREADS);
    if (head != EMPTY) {
        int below = 0;
#pragma unroll 8
        for (int other = 0; other < there; ++other) below += heads[other] < head;
        if (below == k - 1) *limit = head;  // one thread at most: keys are all different
    }
    __syncthreads();
    const Key last = *limit;
    for (int first = warp; first < slabs; first += MERGE_THREADS) {
        const int slab = first + lane_id() * WARPS;
        for (int rank = 0; rank < k; ++rank) {
            Key key = slab < slabs ? from[static_cast<std::int64_t>(slab) * k + rank] : EMPTY;
            if (key > last) key = EMPTY;
            if (!__any_sync(WARP, key < list[k - 1])) break;  // nor can later ones be
            offer(list, k, key);
        }
    }
    close_lists<Rows>(args, query_at(args, i), lists);
}

}  // namespace lpkernel::cuda
