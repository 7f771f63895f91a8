// The kernels of kernels.h, written on the vectors of simd.h. Included once by each kernels_*.cpp, which defines
// LPKERNEL_TABLE (the name of its table) and LPKERNEL_ISA_NAME, and is compiled for its instruction set.
//
// Formulas, shapes and limits stand in kernels.h, above the argument of each kernel. GroupNorm and the widening of
// 16-bit numbers are in norm_body.h.
//
// Tiling: Q queries times U vectors of bank images are summed in registers over all cells, so a block's data is
// read once for up to GROUP queries. Memory traffic: 4 * pairs + 4 bytes a cell and image for each GROUP queries.
//
// Ties: kernels that filter report every lane at or below a limit, equal ones too, and leave the choice to the keys of
// smallest.h; `ranked` and `ranks` order equal values by their index.

#include <type_traits>

#include "common/philox.h"
#include "cpu/kernels.h"
#include "cpu/norm_body.h"
#include "cpu/simd.h"

namespace {

using namespace lpkernel;

// The first `lanes` bits of a block's mask.
std::uint64_t real_lanes(int lanes) {
    return lanes == BLOCK ? ~std::uint64_t{0} : (std::uint64_t{1} << lanes) - 1;
}

constexpr int CHECK = 48;  // channel pairs between two checks of the limits

// PAIRS: the number of channel pairs where it is known, or 0.
template <int Q, int U, int PAIRS>
void latent_part(const LatentBlock& a, int first) {
    constexpr int CHAINS = Q * U < 4 ? 4 : 1;  // independent sums, so that multiply-adds do not wait for each other
    const int pairs = PAIRS ? PAIRS : a.pairs;
    Ints dot[CHAINS][Q][U], norm[U];
    std::uint32_t own[Q];
    std::uint64_t below[Q];
    for (int u = 0; u < U; ++u) norm[u] = sub(zero(), load(a.less + first + u * LANES));
    for (int q = 0; q < Q; ++q) {
        own[q] = 0;
        below[q] = 0;
        for (int u = 0; u < U; ++u) {
            for (int c = 0; c < CHAINS; ++c) dot[c][q][u] = zero();
        }
    }
    const int check = pairs > 0 && pairs < CHECK ? CHECK / pairs : 1;
    for (int done = 0; done < a.count;) {
        const int stop = a.count - done > check ? done + check : a.count;
        for (int i = done; i < stop; ++i) {
            const std::int64_t cell = a.cells[i];
            const std::int16_t* bank = a.bank + (cell * pairs * BLOCK + first) * 2;
            const std::int32_t* norms = a.norms + cell * BLOCK + first;
            for (int u = 0; u < U; ++u) norm[u] = add(norm[u], load(norms + u * LANES));
            for (int q = 0; q < Q; ++q) own[q] += static_cast<std::uint32_t>(a.own_norms[q][i]);
            const auto add_pair = [&](int p, int chain) __attribute__((always_inline)) {
                Ints values[U];
                for (int u = 0; u < U; ++u) values[u] = load(bank + (p * BLOCK + u * LANES) * 2);
                for (int q = 0; q < Q; ++q) {
                    const Ints wanted = fill(pair_at(a.query[q] + (i * pairs + p) * 2));
                    for (int u = 0; u < U; ++u) dot[chain][q][u] = add_products(dot[chain][q][u], values[u], wanted);
                }
            };
            int p = 0;
            for (; p + CHAINS <= pairs; p += CHAINS) {
                for (int c = 0; c < CHAINS; ++c) add_pair(p + c, c);
            }
            for (; p < pairs; ++p) add_pair(p, 0);
        }
        done = stop;
        std::uint64_t any = 0;
        for (int q = 0; q < Q; ++q) {
            below[q] = 0;
            const Ints whole = fill(static_cast<std::int32_t>(own[q]));
            for (int u = 0; u < U; ++u) {
                Ints products = dot[0][q][u];
                for (int c = 1; c < CHAINS; ++c) products = add(products, dot[c][q][u]);
                const Ints sum = sub(add(norm[u], whole), add(products, products));
                below[q] |= std::uint64_t{at_most(sum, fill(a.limits[q]))} << (u * LANES);
                if (done == a.count) store(a.out + q * BLOCK + first + u * LANES, sum);
            }
            any |= below[q];
        }
        if (!any) break;
    }
    for (int q = 0; q < Q; ++q) a.found[q] |= below[q] << first;
}

template <int Q, int PAIRS>
void latent_queries(const LatentBlock& a) {
    constexpr int WIDE = LANES == 16 ? 4 : 2;  // registers: 32 in AVX-512, at least 16 elsewhere
    for (int q = 0; q < Q; ++q) a.found[q] = 0;
    int first = 0;
    while (first < a.lanes) {
        const int left = a.lanes - first;
        if (left > LANES * (WIDE / 2)) {
            latent_part<Q, WIDE, PAIRS>(a, first);
            first += WIDE * LANES;
        } else {
            latent_part<Q, 1, PAIRS>(a, first);
            first += LANES;
        }
    }
    const std::uint64_t real = real_lanes(a.lanes);
    for (int q = 0; q < Q; ++q) a.found[q] &= real;
}

template <int PAIRS>
void latent_pairs(const LatentBlock& a) {
    switch (a.queries) {
        case 1:
            return latent_queries<1, PAIRS>(a);
        case 2:
            return latent_queries<2, PAIRS>(a);
        case 3:
            return latent_queries<3, PAIRS>(a);
        default:
            return latent_queries<4, PAIRS>(a);
    }
}

void latent_block(const LatentBlock& a) {
    a.pairs == COARSE / 2 ? latent_pairs<COARSE / 2>(a) : latent_pairs<0>(a);
}

constexpr int SCORED = 6;                           // queries whose sums are held together; registers as below
constexpr int SCORE_VECTORS = LANES == 16 ? 4 : 2;  // vectors of rows
constexpr int SCORE_STEP = LANES * SCORE_VECTORS;
#if defined(LPKERNEL_AVX2) || defined(LPKERNEL_SSE2)
constexpr int HELD = 10;  // registers for what a loop over rows keeps of queries
#else
constexpr int HELD = 24;
#endif

// How many of `lanes` rows' lanes are scored, whole vectors: one, two, or SCORE_VECTORS at a time.
constexpr int scored(int lanes) {
    const int left = lanes % SCORE_STEP;
    if (left == 0) return lanes;
    return lanes - left + (left <= LANES ? LANES : left <= 2 * LANES ? 2 * LANES : SCORE_STEP);
}

// Calls run(first lane, constant number of vectors) for these.
template <class Run>
inline __attribute__((always_inline)) void for_scored(int lanes, const Run& run) {
    lanes = scored(lanes);
    int first = 0;
    for (; first + SCORE_STEP <= lanes; first += SCORE_STEP) run(first, std::integral_constant<int, SCORE_VECTORS>());
    if (lanes - first == 2 * LANES) run(first, std::integral_constant<int, 2>());
    if (lanes - first == LANES) run(first, std::integral_constant<int, 1>());
}

std::uint64_t scores_within(const float* scores, int lanes, float limit) {
    std::uint64_t found = 0;
    const Floats most = fill(limit);
    const auto within = [&](int first) __attribute__((always_inline)) {
        found |= std::uint64_t{not_above(load(scores + first), most)} << first;
    };
    if (lanes == BLOCK) {
#pragma GCC unroll 16
        for (int first = 0; first < BLOCK; first += LANES) within(first);
        return found;
    }
    for (int first = 0; first < lanes; first += LANES) within(first);
    return found & real_lanes(lanes);
}

// Scores of Q queries and U vectors of rows of a block, from `bank` and `norms` on. WIDTH: the number of columns where
// it is known, or 0.
template <int Q, int WIDTH, int U>
inline __attribute__((always_inline)) void score(const float* bank, const float* norms, const float* const* wanted,
                                                 std::int64_t columns, Floats (&sum)[Q][U]) {
    const std::int64_t width = WIDTH ? WIDTH : columns;
    for (int u = 0; u < U; ++u) {
        const Floats norm = load(norms + u * LANES);
        for (int q = 0; q < Q; ++q) sum[q][u] = norm;
    }
    for (std::int64_t i = 0; i < width; ++i) {
        Floats values[U];
        for (int u = 0; u < U; ++u) values[u] = load(bank + i * BLOCK + u * LANES);
        for (int q = 0; q < Q; ++q) {
            const Floats own = fill(wanted[q][i]);
            for (int u = 0; u < U; ++u) sum[q][u] = add_product(sum[q][u], values[u], own);
        }
    }
}

// Lowers a query's limit, given its least score.
template <class Blocks>
void lower(const Blocks& a, int query, float least) {
    const float lower = least + (a.reach[query] * a.reach_scale + a.reach_more);
    a.limits[query] = lower < a.limits[query] ? lower : a.limits[query];
}

// Which scores are within the limits of Q queries, given their least ones.
template <int Q>
void find(const FloatBlock& a, int query, const Floats (&least)[Q]) {
    for (int q = 0; q < Q; ++q) {
        a.found[query + q] = 0;
        if (!not_above(least[q], fill(a.limits[query + q]))) continue;
        if (a.reach) lower(a, query + q, least_lane(least[q]));
        a.found[query + q] = scores_within(a.scores + (query + q) * BLOCK, a.lanes, a.limits[query + q]);
    }
}

template <int Q, int WIDTH>
void float_queries(const FloatBlock& a, int query) {
    const float* wanted[Q];
    Floats least[Q];
    for (int q = 0; q < Q; ++q) {
        wanted[q] = a.query + (query + q) * a.width;
        least[q] = fill(__builtin_inff());
    }
    for_scored(a.lanes, [&](int first, auto count) __attribute__((always_inline)) {
        constexpr int U = count.value;
        Floats sum[Q][U];
        score<Q, WIDTH>(a.bank + first, a.norms + first, wanted, a.width, sum);
        for (int q = 0; q < Q; ++q) {
            for (int u = 0; u < U; ++u) {
                store(a.scores + (query + q) * BLOCK + first + u * LANES, sum[q][u]);
                least[q] = lesser(least[q], sum[q][u]);
            }
        }
    });
    find<Q>(a, query, least);
}

template <int Q>
void rounded_queries(const RoundedBlock& a, int query) {
    constexpr int U = SCORE_VECTORS;
    const FloatBlock& of = a.floats;
    const std::int16_t* wanted[Q];
    Floats least[Q];
    for (int q = 0; q < Q; ++q) {
        wanted[q] = a.query + (query + q) * of.width * 2;
        least[q] = fill(__builtin_inff());
    }
    for (int first = 0; first < of.lanes; first += SCORE_STEP) {
        Ints sum[Q][U];
#pragma GCC unroll 6
        for (int q = 0; q < Q; ++q) {
#pragma GCC unroll 4
            for (int u = 0; u < U; ++u) sum[q][u] = zero();
        }
        const std::int16_t* bank = a.bank + first * 2;
        for (std::int64_t p = 0; p < of.width; ++p, bank += BLOCK * 2) {
            Ints values[U];
#pragma GCC unroll 4
            for (int u = 0; u < U; ++u) values[u] = load(bank + u * LANES * 2);
#pragma GCC unroll 6
            for (int q = 0; q < Q; ++q) {
                const Ints own = fill(pair_at(wanted[q] + p * 2));
#pragma GCC unroll 4
                for (int u = 0; u < U; ++u) accumulate_products(sum[q][u], values[u], own);
            }
        }
#pragma GCC unroll 6
        for (int q = 0; q < Q; ++q) {
            const Floats own = fill(a.query_scales[query + q]);
#pragma GCC unroll 4
            for (int u = 0; u < U; ++u) {
                const Floats product = multiply(to_floats(sum[q][u]), load(a.scales + first + u * LANES));
                const Floats score = add_product(load(of.norms + first + u * LANES), product, own);
                store(of.scores + (query + q) * BLOCK + first + u * LANES, score);
                least[q] = lesser(least[q], score);
            }
        }
    }
    find<Q>(of, query, least);
}

// Calls run(a constant, q) for queries from q on, that many at a time, up to MOST.
template <int MOST = SCORED, class Run>
void in_groups(int queries, const Run& run) {
    int q = 0;
    for (; q + MOST <= queries; q += MOST) run(std::integral_constant<int, MOST>(), q);
    if constexpr (MOST > 4) {
        for (; q + 4 <= queries; q += 4) run(std::integral_constant<int, 4>(), q);
    }
    for (; q + 2 <= queries; q += 2) run(std::integral_constant<int, 2>(), q);
    if (q < queries) run(std::integral_constant<int, 1>(), q);
}

// Calls run(a constant) for the number of columns, or for 0 where it is not one of those that loops are made for.
template <class Run>
void with_width(int width, const Run& run) {
    switch (width) {
        case 2:
            return run(std::integral_constant<int, 2>());
        case 3:
            return run(std::integral_constant<int, 3>());
        case HELD_COLUMNS:
            return run(std::integral_constant<int, HELD_COLUMNS>());
        case 16:
            return run(std::integral_constant<int, 16>());
        default:
            return run(std::integral_constant<int, 0>());
    }
}

void rounded_block(const RoundedBlock& a) {
    in_groups(a.floats.queries, [&](auto group, int q) { rounded_queries<group.value>(a, q); });
}

// 1.5 * 2^23: adding it rounds a number of less than 2^22 to an integer, which is then in the sum's last bits.
constexpr float TO_INTEGER = 12582912.0f;

inline __attribute__((always_inline)) std::uint32_t rounded(float value) {
    value += TO_INTEGER;
    std::uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return bits & 0xFFFFu;
}

void round_row(const float* __restrict values, float scale, std::int64_t width, std::int16_t* __restrict out) {
    for (std::int64_t i = 0; i < width; ++i) out[i] = static_cast<std::int16_t>(rounded(values[i] * scale));
    if (width % 2) out[width] = 0;
}

void round_block(const RoundBlock& a) {
    const float* __restrict scales = a.scales;
    for (std::int64_t i = 0; i < a.width; i += 2) {
        const float* __restrict low = a.values + i * BLOCK;
        const float* __restrict high = low + BLOCK;
        std::int16_t* __restrict out = a.out + i * BLOCK;
        std::uint32_t pairs[BLOCK];
        if (i + 1 < a.width) {
            for (int b = 0; b < BLOCK; ++b) pairs[b] = rounded(low[b] * scales[b]) | rounded(high[b] * scales[b]) << 16;
        } else {
            for (int b = 0; b < BLOCK; ++b) pairs[b] = rounded(low[b] * scales[b]);
        }
        __builtin_memcpy(out, pairs, sizeof pairs);
    }
}

// The least scores of Q queries and a block's rows, lane by lane.
template <int Q, int WIDTH>
inline __attribute__((always_inline)) void least_scores(const FloatBlocks& a, const float* bank, const float* norms,
                                                        int lanes, const float* const* wanted, Floats (&least)[Q]) {
    for_scored(lanes, [&](int first, auto count) __attribute__((always_inline)) {
        constexpr int U = count.value;
        Floats sum[Q][U];
        score<Q, WIDTH>(bank + first, norms + first, wanted, a.width, sum);
        for (int q = 0; q < Q; ++q) {
            for (int u = 0; u < U; ++u) least[q] = lesser(least[q], sum[q][u]);
        }
    });
}

// The same where all of the queries' values are held in registers, `own`.
template <int Q, int WIDTH>
inline __attribute__((always_inline)) void least_scores(const float* bank, const float* norms, int lanes,
                                                        const Floats (&own)[Q][WIDTH], Floats (&least)[Q]) {
    for (int first = 0; first < lanes; first += LANES) {
        const Floats norm = load(norms + first);
        Floats values[WIDTH];
        for (int i = 0; i < WIDTH; ++i) values[i] = load(bank + i * BLOCK + first);
        for (int q = 0; q < Q; ++q) {
            Floats sum = norm;
            for (int i = 0; i < WIDTH; ++i) sum = add_product(sum, values[i], own[q][i]);
            least[q] = lesser(least[q], sum);
        }
    }
}

// The rows of a block whose scores of one query are not above a limit.
template <int WIDTH>
inline __attribute__((always_inline)) std::uint64_t rows_within(const float* bank, const float* norms, int lanes,
                                                                const float* wanted, std::int64_t width, Floats limit) {
    std::uint64_t within = 0;
    for_scored(lanes, [&](int first, auto count) __attribute__((always_inline)) {
        constexpr int U = count.value;
        Floats sum[1][U];
        score<1, WIDTH>(bank + first, norms + first, &wanted, width, sum);
        for (int u = 0; u < U; ++u) within |= std::uint64_t{not_above(sum[0][u], limit)} << (first + u * LANES);
    });
    return within & real_lanes(lanes);
}

// The position of the only row of the blocks `found` that is within a query's limit, or -1 if there are more.
template <int WIDTH>
std::int32_t only_row(const FloatBlocks& a, int query, std::uint32_t found) {
    const float* const wanted = a.query + query * a.width;
    const Floats limit = fill(a.limits[query]);
    std::int32_t only = -1;
    for (; found; found &= found - 1) {
        const int b = __builtin_ctz(found), lanes = b + 1 < a.count ? BLOCK : a.lanes;
        const std::uint64_t within =
            rows_within<WIDTH>(a.bank + b * a.width * BLOCK, a.norms + b * BLOCK, lanes, wanted, a.width, limit);
        if (only >= 0 || (within & (within - 1))) return -1;
        only = b * BLOCK + __builtin_ctzll(within);
    }
    return only;
}

template <int Q, int WIDTH>
void blocks_queries(const FloatBlocks& a, int query) {
    const float* wanted[Q];
    Floats least[Q];
    float each[Q][MOST_BLOCKS * LANES];  // least scores of each block
    for (int q = 0; q < Q; ++q) {
        wanted[q] = a.query + (query + q) * a.width;
        least[q] = fill(__builtin_inff());
    }
    const auto blocks = [&](const auto& least_of) __attribute__((always_inline)) {
        const float *bank = a.bank, *norms = a.norms;
        for (int b = 0; b < a.count; ++b, bank += a.width * BLOCK, norms += BLOCK) {
            Floats scores[Q];
            for (int q = 0; q < Q; ++q) scores[q] = fill(__builtin_inff());
            least_of(bank, norms, b + 1 < a.count ? BLOCK : a.lanes, scores);
            for (int q = 0; q < Q; ++q) {
                store(each[q] + b * LANES, scores[q]);
                least[q] = lesser(least[q], scores[q]);
            }
        }
    };
    if constexpr (WIDTH > 0 && WIDTH <= HELD_COLUMNS) {
        Floats own[Q][WIDTH];
        for (int q = 0; q < Q; ++q) {
            for (int i = 0; i < WIDTH; ++i) own[q][i] = fill(wanted[q][i]);
        }
        blocks([&](const float* bank, const float* norms, int lanes, Floats(&scores)[Q])
                   __attribute__((always_inline)) { least_scores<Q, WIDTH>(bank, norms, lanes, own, scores); });
    } else {
        blocks([&](const float* bank, const float* norms, int lanes, Floats(&scores)[Q])
                   __attribute__((always_inline)) { least_scores<Q, WIDTH>(a, bank, norms, lanes, wanted, scores); });
    }
    for (int q = 0; q < Q; ++q) {
        a.found[query + q] = 0;
        if (!not_above(least[q], fill(a.limits[query + q]))) continue;
        a.least[query + q] = least_lane(least[q]);
        lower(a, query + q, a.least[query + q]);
        const Floats limit = fill(a.limits[query + q]);
        const int count = a.count;
        std::uint32_t found = 0;
        for (int b = 0; b < count; ++b) {
            const std::uint32_t any = not_above(load(each[q] + b * LANES), limit);
            found |= std::uint32_t{any != 0} << b;
        }
        a.found[query + q] = found;
        a.only[query + q] = only_row<WIDTH>(a, query + q, found);
    }
}

// The width is made known where there are many queries.
template <int GROUP_SIZE, int WIDTH>
constexpr int KNOWN = GROUP_SIZE == SCORED ? WIDTH : 0;

template <int WIDTH>
void columns_of(const FloatBlock& a) {
    in_groups(a.queries, [&](auto group, int q) { float_queries<group.value, KNOWN<group.value, WIDTH>>(a, q); });
}

template <int WIDTH>
void columns_of(const FloatBlocks& a) {
    if constexpr (WIDTH > 0 && WIDTH <= HELD_COLUMNS) {
        constexpr int MOST = HELD / (WIDTH + 1);  // with their least scores
        in_groups<MOST>(a.queries, [&](auto group, int q) { blocks_queries<group.value, WIDTH>(a, q); });
    } else {
        in_groups(a.queries, [&](auto group, int q) { blocks_queries<group.value, KNOWN<group.value, WIDTH>>(a, q); });
    }
}

template <class Blocks>
void by_width(const Blocks& a) {
    with_width(a.width, [&](auto width) { columns_of<width.value>(a); });
}

// What differs between the two element types.
inline Floats load_values(const float* p) {
    return load(p);
}
inline Ints load_values(const std::int16_t* p) {
    return load(p);
}
inline Floats apart(Floats a, Floats b) {
    return sub(a, b);
}
inline Ints apart(Ints a, Ints b) {
    return sub16(a, b);
}
inline Floats add_square(Floats sum, Floats a) {
    return add_product(sum, a, a);
}
inline Ints add_square(Ints sum, Ints a) {
    return add_products(sum, a, a);
}
inline std::uint32_t not_above(Ints a, Ints limit) {
    return at_most(a, limit);
}

constexpr int TOGETHER = 4;                 // bank rows, for four_sums
constexpr int SHARE = LANES == 16 ? 4 : 2;  // queries; registers: 32 in AVX-512, at least 16 elsewhere

// Asks for what lies `ahead` bytes after p, or for nothing where no such memory is.
inline void fetch(const void* p, std::int64_t ahead) {
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(p) + ahead));
}

// Distances of Q queries to TOGETHER rows.
template <int Q, bool MASKED, class T, class Sum>
void row_tile(const RowBlock<T, Sum>& a, int row, int query) {
    using Vector = decltype(load_values(a.query));
    constexpr int STEP = static_cast<int>(sizeof(Vector) / sizeof(T));
    const T *bank[TOGETHER], *wanted[Q], *mask[Q];
    Vector sums[Q][TOGETHER];
    for (int r = 0; r < TOGETHER; ++r) bank[r] = a.rows[row + r];
    for (int q = 0; q < Q; ++q) {
        wanted[q] = a.query + (query + q) * a.stride;
        mask[q] = MASKED ? a.mask + (query + q) * a.mask_stride : nullptr;
        for (int r = 0; r < TOGETHER; ++r) sums[q][r] = fill(Sum{0});
    }
    const auto step = [&](const T* const* from, std::int64_t start, std::int64_t i) __attribute__((always_inline)) {
        Vector values[TOGETHER];
        for (int r = 0; r < TOGETHER; ++r) values[r] = load_values(from[r] + start);
        for (int q = 0; q < Q; ++q) {
            const Vector own = load_values(wanted[q] + i);
            for (int r = 0; r < TOGETHER; ++r) {
                Vector difference = apart(values[r], own);
                if (MASKED) difference = both(difference, load_values(mask[q] + i));
                sums[q][r] = add_square(sums[q][r], difference);
            }
        }
    };
    std::int64_t i = 0;
    for (; i + STEP <= a.width; i += STEP) {
        if (query == 0) {  // later queries find the rows in the cache
            for (int r = 0; r < TOGETHER; ++r) fetch(bank[r] + i, a.ahead);
        }
        step(bank, i, i);
    }
    if (i < a.width) {
        T rest[TOGETHER][STEP] = {};
        const T* from[TOGETHER];
        for (int r = 0; r < TOGETHER; ++r) {
            for (std::int64_t j = i; j < a.width; ++j) rest[r][j - i] = bank[r][j];
            from[r] = rest[r];
        }
        step(from, 0, i);
    }
    for (int q = 0; q < Q; ++q) {
        four_sums(sums[q][0], sums[q][1], sums[q][2], sums[q][3], a.out + (query + q) * ROWS + row);
    }
}

template <int Q, bool MASKED, class T, class Sum>
void row_queries(const RowBlock<T, Sum>& a, int query) {
    for (int row = 0; row < a.lanes; row += TOGETHER) row_tile<Q, MASKED>(a, row, query);
    for (int q = query; q < query + Q; ++q) {
        std::uint64_t found = 0;
        for (int row = 0; row < ROWS; row += LANES) {
            found |= std::uint64_t{not_above(load(a.out + q * ROWS + row), fill(a.limits[q]))} << row;
        }
        a.found[q] = found & ((std::uint64_t{1} << a.lanes) - 1);
    }
}

template <bool MASKED, class T, class Sum>
void row_block(const RowBlock<T, Sum>& a) {
    int q = 0;
    for (; q + SHARE <= a.queries; q += SHARE) row_queries<SHARE, MASKED>(a, q);
    for (; q < a.queries; ++q) row_queries<1, MASKED>(a, q);
}

template <class T, class Sum>
void rows(const RowBlock<T, Sum>& a) {
    a.mask ? row_block<true>(a) : row_block<false>(a);
}

// WIDTH: the number of channels where it is known, or 0.
template <int WIDTH>
void rows_of_cells(const CellRows& a) {
    const int width = WIDTH ? WIDTH : a.width, whole = width / 2, pairs = (width + 1) / 2;
    for (int i = 0; i < a.count; ++i) {
        const std::int16_t* bank = a.bank + std::int64_t{a.cells[i]} * pairs * BLOCK * 2;
        const std::int16_t* value = a.values + std::int64_t{i} * width;
        std::uint32_t square = 0;
        for (int c = 0; c < width; ++c) square += static_cast<std::uint32_t>(value[c] * value[c]);
        for (int first = 0; first < a.lanes; first += LANES) {
            Ints products[2] = {zero(), zero()};  // two sums, which do not wait for each other
            const auto add_pair = [&](int p, int sum, std::int32_t pair) __attribute__((always_inline)) {
                products[sum] = add_products(products[sum], fill(pair), load(bank + (p * BLOCK + first) * 2));
            };
            int p = 0;
            for (; p + 2 <= whole; p += 2) {
                add_pair(p, 0, pair_at(value + 2 * p));
                add_pair(p + 1, 1, pair_at(value + 2 * p + 2));
            }
            if (p < whole) add_pair(p, 0, pair_at(value + 2 * p));
            if (pairs > whole) add_pair(whole, 1, static_cast<std::uint16_t>(value[2 * whole]));
            const Ints product = add(products[0], products[1]);
            const Ints norms = load(a.norms + std::int64_t{a.cells[i]} * BLOCK + first);
            const Ints squares = add(norms, fill(static_cast<std::int32_t>(square)));
            store(a.out + std::int64_t{i} * a.lanes + first, sub(squares, add(product, product)));
        }
    }
}

void cell_rows(const CellRows& a) {
    a.width == 16 ? rows_of_cells<16>(a) : rows_of_cells<0>(a);
}

void small_step(const SmallStep& a) {
    const std::int64_t corner = std::int64_t{a.images} * a.lanes;
    for (int first = 0; first < a.lanes; first += LANES) {
        Ints more = zero(), less = load(a.less + first);
        for (int i = 0; i < a.box_count; ++i) {
            const Box& box = a.boxes[i];
            const std::int32_t* rows = a.tables + std::int64_t{a.chosen[box.writer]} * a.lanes + first;
            more = add(more, add(load(rows + box.low_right * corner), load(rows + box.top_left * corner)));
            less = add(less, add(load(rows + box.top_right * corner), load(rows + box.low_left * corner)));
        }
        for (int i = 0; i < a.carried_count; ++i) {
            more = add(more, load(a.own + std::int64_t{a.carried[i]} * a.lanes + first));
        }
        store(a.out + first, sub(more, less));
    }
}

void row_sums(const RowSums& a) {
    constexpr int U = 16 / LANES;
    for (int first = 0; first < a.lanes; first += 16) {
        Ints sums[U];
        for (int u = 0; u < U; ++u) sums[u] = sub(zero(), load(a.less + first + u * LANES));
        for (int i = 0; i < a.count; ++i) {
            const std::int32_t* row = a.rows[a.cells[i]] + first;
            for (int u = 0; u < U; ++u) sums[u] = add(sums[u], load(row + u * LANES));
        }
        for (int u = 0; u < U; ++u) store(a.out + first + u * LANES, sums[u]);
    }
}

void least_sums(const LeastSums& a) {
    constexpr int U = NEAR / LANES;
    const std::int32_t* const* cell = a.rows;
    std::int32_t* out = a.sums + std::int64_t{a.side + 1} * NEAR;
    for (int y = 0; y < a.side; ++y) {
        Ints row[U];  // the sums of this row of cells so far
        for (int u = 0; u < U; ++u) row[u] = zero();
        out += NEAR;
        const std::int32_t* above = out - std::int64_t{a.side + 1} * NEAR;
        for (int x = 0; x < a.side; ++x, out += NEAR, above += NEAR, ++cell) {
            for (int u = 0; u < U; ++u) {
                row[u] = add(row[u], load(*cell + u * LANES));
                store(out + u * LANES, add(row[u], load(above + u * LANES)));
            }
        }
    }
    const std::uint32_t all = (1u << a.lanes) - 1, real = a.left_out < 0 ? all : all & ~(1u << a.left_out);
    std::int32_t distances[NEAR];
    std::int32_t* least = a.least;
    for (int s = 0, b = 0; s < a.steps; ++s, least += a.nearest) {
        Ints more[U], less[U];
        for (int u = 0; u < U; ++u) more[u] = less[u] = zero();
        for (; b < a.ends[s]; ++b) {
            const Box& box = a.boxes[b];
            const auto at = [&](std::int32_t corner, int u) __attribute__((always_inline)) {
                return load(a.sums + std::int64_t{corner} * NEAR + u * LANES);
            };
            for (int u = 0; u < U; ++u) {
                more[u] = add(more[u], add(at(box.low_right, u), at(box.top_left, u)));
                less[u] = add(less[u], add(at(box.top_right, u), at(box.low_left, u)));
            }
        }
        std::uint32_t found = 0;
        const Ints limit = fill(least[a.nearest - 1]);
        for (int u = 0; u < U; ++u) {
            const Ints distance = sub(more[u], less[u]);
            store(distances + u * LANES, distance);
            found |= at_most(distance, limit) << (u * LANES);
        }
        for (found &= real; found; found &= found - 1) {
            const std::int32_t distance = distances[__builtin_ctz(found)];
            int i = a.nearest - 1;
            if (distance >= least[i]) continue;
            for (; i > 0 && least[i - 1] > distance; --i) least[i] = least[i - 1];
            least[i] = distance;
        }
    }
}

// Where the order depends on the index too.
int ranked_among_ties(const std::int32_t* values, int count, int rank) {
    for (int i = 0; i + 1 < count; ++i) {
        int before = 0;
        for (int j = 0; j < count; ++j) before += values[j] < values[i] || (values[j] == values[i] && j < i);
        if (before == rank) return i;
    }
    return count - 1;
}

int ranked(const std::int32_t* values, int count, int rank) {
    std::uint64_t found = 0;  // values with `rank` others below them: the first of equal ones is the answer
    for (int first = 0; first < count; first += LANES) {
        const Ints mine = load(values + first);
        Ints below = zero();
#pragma GCC unroll 4
        for (int j = 0; j < count; ++j) below = count_less(below, fill(values[j]), mine);
        const Ints wanted = fill(rank);
        found |= std::uint64_t{at_most(below, wanted) & at_most(wanted, below)} << first;
    }
    if (count < BLOCK) found &= (std::uint64_t{1} << count) - 1;
    return found ? __builtin_ctzll(found) : ranked_among_ties(values, count, rank);
}

void ranks(const std::int32_t* values, int count, std::int32_t* out) {
    std::int32_t total = 0;
    for (int first = 0; first < count; first += LANES) {
        const Ints mine = load(values + first);
        Ints below = zero();
#pragma GCC unroll 4
        for (int j = 0; j < count; ++j) below = count_less(below, fill(values[j]), mine);
        store(out + first, below);
    }
    for (int i = 0; i < count; ++i) total += out[i];
    if (total == count * (count - 1) / 2) return;
    for (int i = 0; i < count; ++i) {  // there are equal ones
        for (int j = 0; j < i; ++j) out[i] += values[j] == values[i];
    }
}

template <int GROUPS>
float reached_of(const float* scores, int count, int need) {
    constexpr int VECTORS = GROUPS / LANES, CHAINS = VECTORS < 4 ? 4 : VECTORS;  // at least as many as hide latency
    Floats minima[CHAINS];
    for (Floats& least : minima) least = fill(__builtin_inff());
    int first = 0;
    for (; first + CHAINS * LANES <= count; first += CHAINS * LANES) {
        for (int c = 0; c < CHAINS; ++c) minima[c] = lesser(minima[c], load(scores + first + c * LANES));
    }
    for (int c = 0; first < count; first += LANES, ++c) minima[c] = lesser(minima[c], load(scores + first));
    for (int c = VECTORS; c < CHAINS; ++c) minima[c % VECTORS] = lesser(minima[c % VECTORS], minima[c]);
    float least[GROUPS];
    std::int32_t order[GROUPS];
    for (int v = 0; v < VECTORS; ++v) store(least + v * LANES, minima[v]);
    __builtin_memcpy(order, least, sizeof least);
    for (int i = 0; i < GROUPS; ++i) order[i] ^= (order[i] >> 31) & 0x7FFFFFFF;  // integers of the same order
    return least[ranked(order, GROUPS, need - 1)];
}

float reached(const float* scores, int count, int need) {
    if (need <= 12) return reached_of<16>(scores, count, need);
    return need <= 24 ? reached_of<32>(scores, count, need) : __builtin_inff();
}

void words(std::uint64_t seed, std::uint32_t image, std::uint32_t first, int count, std::uint32_t* out) {
    for (int i = 0; i < count; ++i) out[i] = draw(seed, image, first + static_cast<std::uint32_t>(i));
}

std::uint64_t at_most_of(const std::int32_t* values, std::int32_t limit) {
    std::uint64_t found = 0;
    for (int b = 0; b < BLOCK; b += LANES) found |= std::uint64_t{at_most(load(values + b), fill(limit))} << b;
    return found;
}

// As |a|^2 + |b|^2 - 2 a.b, since differences may leave int16; neighbouring cells are one run of values.
std::int32_t image_apart(const std::int16_t* image, const std::int32_t* cells, const std::int16_t* values, int count,
                         int width) {
    Ints squares = zero(), products = zero();
    std::uint32_t rest = 0;
    for (int i = 0; i < count;) {
        int next = i + 1;
        while (next < count && cells[next] == cells[next - 1] + 1) ++next;
        const std::int16_t* theirs = image + std::int64_t{cells[i]} * width;
        const std::int16_t* ours = values + std::int64_t{i} * width;
        const std::int64_t length = std::int64_t{next - i} * width;
        std::int64_t j = 0;
        for (; j + 2 * LANES <= length; j += 2 * LANES) {
            const Ints a = load(theirs + j), b = load(ours + j);
            squares = add_products(add_products(squares, a, a), b, b);
            products = add_products(products, a, b);
        }
        for (; j < length; ++j) {
            const auto apart = static_cast<std::uint32_t>(theirs[j] - ours[j]);
            rest += apart * apart;
        }
        i = next;
    }
    std::int32_t sums[4];
    four_sums(squares, products, zero(), zero(), sums);
    return static_cast<std::int32_t>(static_cast<std::uint32_t>(sums[0]) - 2 * static_cast<std::uint32_t>(sums[1]) +
                                     rest);
}

void scaled_bytes(const std::int32_t* values, float scale, float most, int count, std::uint8_t* out) {
    for (int i = 0; i < count; ++i) {
        const float scaled = static_cast<float>(values[i]) * scale;
        out[i] = static_cast<std::uint8_t>(static_cast<std::int32_t>(scaled < most ? scaled : most));
    }
}

#if defined(LPKERNEL_AVX512)

// sum += b, in place: see accumulate_products.
inline void accumulate16(__m512i& sum, __m512i b) {
    asm("vpaddw %1, %0, %0" : "+v"(sum) : "v"(b));
}

template <bool HALVES>
void group_sums(const GroupTile& a) {
    constexpr int VECTORS = GROUPED / 64;
    __m512i both[VECTORS], high[VECTORS];  // of two images side by side: their sums as one number; that of the second
#pragma GCC unroll 8
    for (int j = 0; j < VECTORS; ++j) both[j] = high[j] = _mm512_setzero_si512();
    for (int i = 0; i < a.count; ++i) {
        const std::uint8_t* groups = a.groups + std::int64_t{a.cells[i]} * GROUPED;
        constexpr int PARTS = HALVES ? 4 : 2;
        __m512i rows[PARTS];
#pragma GCC unroll 4
        for (int part = 0; part < PARTS; ++part) rows[part] = _mm512_loadu_si512(a.rows + 64 * (i * PARTS + part));
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; ++j) {
            const __m512i group = _mm512_loadu_si512(groups + 64 * j);
            __m512i bytes = _mm512_permutex2var_epi8(rows[0], group, rows[1]);
            if constexpr (HALVES) {
                const __m512i second = _mm512_permutex2var_epi8(rows[2], group, rows[3]);
                bytes = _mm512_mask_mov_epi8(bytes, _mm512_movepi8_mask(group), second);
            }
            accumulate16(both[j], bytes);
            accumulate16(high[j], _mm512_srli_epi16(bytes, 8));
        }
    }
    const __m512 limit = _mm512_set1_ps(a.limit), scale = _mm512_set1_ps(a.scale), one = _mm512_set1_ps(1.0f);
#pragma GCC unroll 8
    for (int j = 0; j < VECTORS; ++j) {  // unrolled, so that all sums stay in registers
        if (64 * j >= a.lanes) break;
        const __m512i low = _mm512_sub_epi16(both[j], _mm512_slli_epi16(high[j], 8));
        _mm512_storeu_si512(a.sums + 64 * j, low);
        _mm512_storeu_si512(a.sums + 64 * j + 32, high[j]);
        const __m256i parts[4] = {_mm512_castsi512_si256(low), _mm512_extracti64x4_epi64(low, 1),
                                  _mm512_castsi512_si256(high[j]), _mm512_extracti64x4_epi64(high[j], 1)};
        std::uint64_t found = 0;
#pragma GCC unroll 4
        for (int part = 0; part < 4; ++part) {
            __m512 most = limit;
            if (a.less) {
                most = _mm512_add_ps(most, _mm512_cvtepi32_ps(_mm512_loadu_si512(a.less + 64 * j + 16 * part)));
            }
            most = _mm512_add_ps(_mm512_mul_ps(most, scale), one);
            const __m512 sum = _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(parts[part]));
            found |= std::uint64_t{_mm512_cmp_ps_mask(sum, most, _CMP_LE_OQ)} << (16 * part);
        }
        a.found[j] = found & real_lanes(a.lanes - 64 * j < BLOCK ? a.lanes - 64 * j : BLOCK);
    }
}

void group_tile(const GroupTile& a) {
    a.halves ? group_sums<true>(a) : group_sums<false>(a);
}

#else

constexpr void (*group_tile)(const GroupTile&) = nullptr;

#endif

#if defined(LPKERNEL_BYTES)

// Codes are read four at a time where they lie side by side: loads are what bounds this.
template <int N, int AT_ONCE, bool LISTED>
void byte_images(const ByteTile& a, int b) {
    Bytes<N> sums[AT_ONCE];
    for (int j = 0; j < AT_ONCE; ++j) sums[j] = a.first ? Bytes<N>::zero() : Bytes<N>::load(a.sums + (b + j) * N);
    const std::uint16_t* const listed = LISTED ? a.listed + b : nullptr;
    const std::uint8_t* rows = a.rows;
    const std::int64_t tile = a.tile, row_bytes = std::int64_t{a.padded_codes} * N;
    for (int i = 0; i < a.count; ++i, rows += row_bytes) {
        const std::uint16_t* codes = a.codes + a.cells[i] * tile + (LISTED ? 0 : b);
        std::uint64_t four = 0;
#pragma GCC unroll 16
        for (int j = 0; j < AT_ONCE; ++j) {
            std::uint16_t code;
            if (LISTED || AT_ONCE % 4) {
                code = codes[LISTED ? listed[j] : j];
            } else {
                if (j % 4 == 0) __builtin_memcpy(&four, codes + j, sizeof four);
                code = static_cast<std::uint16_t>(four >> (16 * (j % 4)));
            }
            sums[j].add_saturated(Bytes<N>::load(rows + std::int64_t{code} * N));
        }
    }
#pragma GCC unroll 16
    for (int j = 0; j < AT_ONCE; ++j) sums[j].store(a.sums + (b + j) * N);
}

template <int N, int AT_ONCE, bool LISTED>
void byte_queries(const ByteTile& a) {
    int b = 0;
    for (; b + AT_ONCE <= a.lanes; b += AT_ONCE) byte_images<N, AT_ONCE, LISTED>(a, b);
    for (; b < a.lanes; ++b) byte_images<N, 1, LISTED>(a, b);
}

template <bool LISTED>
void byte_lanes(const ByteTile& a) {
    if (a.queries == 16) return byte_queries<16, 16, LISTED>(a);
    if (a.queries == 32) return byte_queries<32, 8, LISTED>(a);
    byte_queries<64, 4, LISTED>(a);
}

void byte_tile(const ByteTile& a) {
    a.listed ? byte_lanes<true>(a) : byte_lanes<false>(a);
}

template <int N>
void byte_within(const ByteLimits& a) {
    for (int b = 0; b < a.lanes; ++b) {
        a.found[b] = Bytes<N>::load(a.sums + b * N).at_most(Bytes<N>::load(a.limits + std::int64_t{a.levels[b]} * N));
    }
}

void byte_limits(const ByteLimits& a) {
    if (a.queries == 16) return byte_within<16>(a);
    if (a.queries == 32) return byte_within<32>(a);
    byte_within<64>(a);
}

void byte_rows(const std::int32_t* const* rows, const float* scales, int codes, int padded_codes, std::uint8_t* bytes,
               std::uint8_t* out, int stride) {
    for (int q = 0; q < 16; ++q) {
        std::uint8_t* to = bytes + std::int64_t{q} * padded_codes;
        scaled_bytes(rows[q], scales[q], 255.0f, codes, to);
        for (int code = codes; code < padded_codes; ++code) to[code] = 0;
    }
    for (int code = 0; code < padded_codes; code += 16) {
        transpose_bytes(bytes + code, padded_codes, out + std::int64_t{code} * stride, stride);
    }
}

#else

constexpr void (*byte_tile)(const ByteTile&) = nullptr;
constexpr void (*byte_limits)(const ByteLimits&) = nullptr;
constexpr void (*byte_rows)(const std::int32_t* const*, const float*, int, int, std::uint8_t*, std::uint8_t*,
                            int) = nullptr;

#endif

void norms(const std::int16_t* values, int count, int width, std::int32_t* out) {
    for (int i = 0; i < count; ++i, values += width) {
        std::uint32_t sum = 0;
        for (int c = 0; c < width; ++c) sum += static_cast<std::uint32_t>(values[c] * values[c]);
        out[i] = static_cast<std::int32_t>(sum);
    }
}

// WIDTH: the number of channels where it is known, or 0.
template <int WIDTH>
void resized_row(const std::int16_t* top, const std::int16_t* low, std::int32_t fy, int from, int side, int channels,
                 const std::int32_t* i0, const std::int32_t* i1, const std::int32_t* f, std::int32_t* rows,
                 std::int16_t* out) {
    const int width = WIDTH ? WIDTH : channels;
    for (int i = 0; i < from * width; ++i) rows[i] = top[i] * (256 - fy) + low[i] * fy;
    for (int x = 0; x < side; ++x, out += width) {
        const std::int32_t *left = rows + i0[x] * width, *right = rows + i1[x] * width;
        const std::int32_t fx = f[x];
        for (int c = 0; c < width; ++c) {
            out[c] = static_cast<std::int16_t>((left[c] * (256 - fx) + right[c] * fx + 32768) >> 16);
        }
    }
}

void resize_row(const std::int16_t* top, const std::int16_t* low, std::int32_t fy, int from, int side, int width,
                const std::int32_t* i0, const std::int32_t* i1, const std::int32_t* f, std::int32_t* rows,
                std::int16_t* out) {
    const auto run = width == 16 ? resized_row<16> : resized_row<0>;
    run(top, low, fy, from, side, width, i0, i1, f, rows, out);
}

// Sums in float64, in vectors that fit one register.
constexpr int PER_SUM = LANES < 4 ? 2 : LANES / 2;
using Singles = float __attribute__((vector_size(4 * PER_SUM)));
using Doubles = double __attribute__((vector_size(8 * PER_SUM)));

inline __attribute__((always_inline)) void read(const float* p, Singles& values) {
    __builtin_memcpy(&values, p, sizeof values);
}
// By a single instruction where there is one; compilers do not always find it.
inline __attribute__((always_inline)) void widen(Singles values, Doubles& wide) {
#if defined(LPKERNEL_AVX512)
    wide = reinterpret_cast<Doubles>(_mm512_cvtps_pd(reinterpret_cast<__m256>(values)));
#elif defined(LPKERNEL_AVX2)
    wide = reinterpret_cast<Doubles>(_mm256_cvtps_pd(reinterpret_cast<__m128>(values)));
#else
    wide = __builtin_convertvector(values, Doubles);
#endif
}
inline __attribute__((always_inline)) void widen(const float* p, Doubles& wide) {
    Singles values;
    read(p, values);
    widen(values, wide);
}

template <bool WEIGHTED>
double direct_sum(const float* a, const float* b, const float* weight, std::int64_t width) {
    constexpr int SUMS = 16, U = SUMS / PER_SUM;
    const Doubles none = {};
    Doubles sums[U], left, right, used;
    for (int u = 0; u < U; ++u) sums[u] = none;
    std::int64_t i = 0;
    for (; i + SUMS <= width; i += SUMS) {
        for (int u = 0; u < U; ++u) {
            widen(a + i + u * PER_SUM, left);
            widen(b + i + u * PER_SUM, right);
            Doubles apart = left - right;
            if (WEIGHTED) {
                widen(weight + i + u * PER_SUM, used);
                apart = used != none ? apart : none;
            }
            sums[u] += apart * apart;
        }
    }
    double each[SUMS], sum = 0.0;
    __builtin_memcpy(each, sums, sizeof each);
    for (int u = 0; i < width; ++i, ++u) {
        const double apart = static_cast<double>(a[i]) - static_cast<double>(b[i]);
        if (!WEIGHTED || weight[i] != 0.0f) each[u] += apart * apart;
    }
    for (int u = 0; u < SUMS; ++u) sum += each[u];
    return sum;
}

double direct(const float* a, const float* b, const float* weight, std::int64_t width) {
    if (width > NARROW) return weight ? direct_sum<true>(a, b, weight, width) : direct_sum<false>(a, b, weight, width);
    // each of the sixteen sums is at most one square, so they are added directly
    double squares[NARROW], sum = 0.0;
    std::int64_t done = 0;
    for (; done + PER_SUM <= width; done += PER_SUM) {
        Doubles left, right;
        widen(a + done, left);
        widen(b + done, right);
        const Doubles apart = left - right, square = apart * apart;
        __builtin_memcpy(squares + done, &square, sizeof square);
    }
    for (std::int64_t i = 0; i < done; ++i) {
        if (!weight || weight[i] != 0.0f) sum += squares[i];
    }
    for (std::int64_t i = done; i < width; ++i) {
        const double apart = static_cast<double>(a[i]) - static_cast<double>(b[i]);
        if (!weight || weight[i] != 0.0f) sum += apart * apart;
    }
    return sum;
}

// direct() of two rows; wide: `a` in float64.
void direct_two(const double* wide, const float* const* rows, std::int64_t width, double* out) {
    constexpr int SUMS = 16, U = SUMS / PER_SUM;
    Doubles sums[2][U], left, right;
    for (int r = 0; r < 2; ++r) {
        for (int u = 0; u < U; ++u) sums[r][u] = Doubles{};
    }
    std::int64_t i = 0;
    for (; i + SUMS <= width; i += SUMS) {
        for (int u = 0; u < U; ++u) {
            __builtin_memcpy(&left, wide + i + u * PER_SUM, sizeof left);
            for (int r = 0; r < 2; ++r) {
                widen(rows[r] + i + u * PER_SUM, right);
                const Doubles apart = left - right;
                sums[r][u] += apart * apart;
            }
        }
    }
    double each[2][SUMS];
    __builtin_memcpy(each, sums, sizeof each);
    for (int r = 0; r < 2; ++r) {
        for (std::int64_t j = i; j < width; ++j) {
            const double apart = wide[j] - static_cast<double>(rows[r][j]);
            each[r][j - i] += apart * apart;
        }
    }
    out[0] = out[1] = 0.0;
    for (int u = 0; u < SUMS; ++u) {
        out[0] += each[0][u];
        out[1] += each[1][u];
    }
}

void widen_row(const float* row, std::int64_t count, double* out) {
    Doubles values;
    std::int64_t i = 0;
    for (; i + PER_SUM <= count; i += PER_SUM) {
        widen(row + i, values);
        __builtin_memcpy(out + i, &values, sizeof values);
    }
    for (; i < count; ++i) out[i] = static_cast<double>(row[i]);
}

void direct_rows(const float* a, const float* const* rows, const float* weight, std::int64_t width, int count,
                 double* out) {
    constexpr std::int64_t MOST = 2048;
    int i = 0;
    if (count > 1 && !weight && width > NARROW && width <= MOST) {
        double wide[MOST];
        widen_row(a, width, wide);
        for (; i + 2 <= count; i += 2) direct_two(wide, rows + i, width, out + i);
    }
    for (; i < count; ++i) out[i] = direct(a, rows[i], weight, width);
}

inline __attribute__((always_inline)) Doubles add_square(Doubles sum, Doubles a) {
#if defined(LPKERNEL_AVX512)
    return reinterpret_cast<Doubles>(_mm512_fmadd_pd(a, a, sum));
#elif defined(LPKERNEL_AVX2)
    return reinterpret_cast<Doubles>(_mm256_fmadd_pd(a, a, sum));
#else
    return sum + a * a;
#endif
}

// Sums of R vectors' lanes, in any order.
template <int R>
inline __attribute__((always_inline)) void lane_sums(const Doubles (&sums)[R], double* out) {
#if defined(LPKERNEL_AVX512)
    if constexpr (R == 8) {
        const auto wide = [&](int i) __attribute__((always_inline)) { return reinterpret_cast<__m512d>(sums[i]); };
        __m512d two[4], four[2];
        for (int i = 0; i < 4; ++i) {
            two[i] = _mm512_add_pd(_mm512_unpacklo_pd(wide(2 * i), wide(2 * i + 1)),
                                   _mm512_unpackhi_pd(wide(2 * i), wide(2 * i + 1)));
        }
        for (int i = 0; i < 2; ++i) {
            four[i] = _mm512_add_pd(_mm512_shuffle_f64x2(two[2 * i], two[2 * i + 1], 0x44),
                                    _mm512_shuffle_f64x2(two[2 * i], two[2 * i + 1], 0xEE));
        }
        _mm512_storeu_pd(out, _mm512_add_pd(_mm512_shuffle_f64x2(four[0], four[1], 0x88),
                                            _mm512_shuffle_f64x2(four[0], four[1], 0xDD)));
        return;
    }
#endif
    for (int r = 0; r < R; ++r) {
        double lane[PER_SUM];
        __builtin_memcpy(lane, &sums[r], sizeof lane);
        for (int half = PER_SUM / 2; half > 0; half /= 2) {
            for (int j = 0; j < half; ++j) lane[j] += lane[j + half];
        }
        out[r] = lane[0];
    }
}

inline __attribute__((always_inline)) void widen(const double* p, Doubles& wide) {
    __builtin_memcpy(&wide, p, sizeof wide);
}

// Sums of squared differences of Q queries, `stride` apart, and R rows, (Q, R), each within sum_error() of direct().
template <int Q, int R, class Query>
inline __attribute__((always_inline)) void near_direct(const Query* query, std::int64_t stride,
                                                       const float* const* rows, std::int64_t width, double* out) {
    constexpr int U = Q * R < 4 ? 4 / (Q * R) : 1, STEP = U * PER_SUM;  // enough sums at a time to hide latency
    Doubles sums[U][Q * R], own[Q], theirs;
    for (int u = 0; u < U; ++u) {
        for (int at = 0; at < Q * R; ++at) sums[u][at] = Doubles{};
    }
    std::int64_t i = 0;
    for (; i + STEP <= width; i += STEP) {
        for (int u = 0; u < U; ++u) {
            for (int q = 0; q < Q; ++q) widen(query + q * stride + i + u * PER_SUM, own[q]);
            for (int r = 0; r < R; ++r) {
                widen(rows[r] + i + u * PER_SUM, theirs);
                for (int q = 0; q < Q; ++q) sums[u][q * R + r] = add_square(sums[u][q * R + r], own[q] - theirs);
            }
        }
    }
    for (int u = 1; u < U; ++u) {
        for (int at = 0; at < Q * R; ++at) sums[0][at] += sums[u][at];
    }
    for (; U > 1 && i + PER_SUM <= width; i += PER_SUM) {
        for (int at = 0; at < Q * R; ++at) {
            Doubles mine;
            widen(query + at / R * stride + i, mine);
            widen(rows[at % R] + i, theirs);
            sums[0][at] = add_square(sums[0][at], mine - theirs);
        }
    }
    lane_sums<Q * R>(sums[0], out);
    for (; i < width; ++i) {
        for (int at = 0; at < Q * R; ++at) {
            const double apart = static_cast<double>(query[at / R * stride + i]) - static_cast<double>(rows[at % R][i]);
            out[at] += apart * apart;
        }
    }
}

// What two sums of `width` squares may differ by, as a share of either: each square is off by three roundings of
// float64 at most, and passes through at most width + 8 additions.
inline double sum_error(std::int64_t width) {
    return static_cast<double>(width + 16) * 0x1p-52;
}

// direct() rounded to float32, given a sum within sum_error() of it: as a rule both ends round to the same.
inline __attribute__((always_inline)) float rounded_direct(double sum, double error, const float* a, const float* b,
                                                           std::int64_t width) {
    const auto low = static_cast<float>(sum * (1 - error)), high = static_cast<float>(sum * (1 + error));
    return low == high ? low : static_cast<float>(direct(a, b, nullptr, width));
}

float distance(const float* a, const float* b, std::int64_t width) {
    if (width < PER_SUM) return static_cast<float>(direct(a, b, nullptr, width));
    double sum;
    near_direct<1, 1>(a, width, &b, width, &sum);
    return rounded_direct(sum, sum_error(width), a, b, width);
}

// Distances of Q queries from q on, widened, and R rows from r on.
template <int Q, int R>
void some_distances(const Distances& a, const double* wide, int q, int r) {
    double sums[Q * R];
    near_direct<Q, R>(wide, a.width, a.rows + r, a.width, sums);
    const double error = sum_error(a.width);
    for (int at = 0; at < Q * R; ++at) {
        const int query = q + at / R, row = r + at % R;
        a.out[query * a.count + row] = rounded_direct(sums[at], error, a.query + query * a.width, a.rows[row], a.width);
    }
}

template <int Q>
void distances_of(const Distances& a, int q) {
    constexpr std::int64_t MOST = 2048;
    constexpr int R = 8 / Q;
    int r = 0;
    if (a.width > NARROW && a.width <= MOST && a.count > 1) {
        double wide[Q * MOST];
        widen_row(a.query + q * a.width, Q * a.width, wide);
        for (; r + R <= a.count; r += R) some_distances<Q, R>(a, wide, q, r);
        if (Q == 1) {
            for (; r + 2 <= a.count; r += 2) some_distances<Q, 2>(a, wide, q, r);
        }
    }
    for (; r < a.count; ++r) {
        for (int own = q; own < q + Q; ++own) {
            a.out[own * a.count + r] = distance(a.query + own * a.width, a.rows[r], a.width);
        }
    }
}

void distances(const Distances& a) {
    int q = 0;
    for (; q + 4 <= a.queries; q += 4) distances_of<4>(a, q);
    for (; q < a.queries; ++q) distances_of<1>(a, q);
}

void direct_narrow(const float* a, const double* rows, int width, int padded, double* out) {
    for (int first = 0; first < padded; first += PER_SUM) {
        Doubles sum = {}, theirs;
        for (int i = 0; i < width; ++i) {
            __builtin_memcpy(&theirs, rows + i * padded + first, sizeof theirs);
            const Doubles apart = static_cast<double>(a[i]) - theirs;
            sum += apart * apart;
        }
        __builtin_memcpy(out + first, &sum, sizeof sum);
    }
}

// Writes -2 (query - centre) and returns the squared norm of the difference.
inline __attribute__((always_inline)) float place_few(const float* query, const float* centre, std::int64_t width,
                                                      float* placed) {
    Floats squares = fill(0.0f);
    const Floats factor = fill(-2.0f);
    std::int64_t i = 0;
    for (; i + LANES <= width; i += LANES) {
        const Floats apart = sub(load(query + i), load(centre + i));
        squares = add_product(squares, apart, apart);
        store(placed + i, multiply(apart, factor));
    }
    float norm = sum_of_lanes(squares);
    for (; i < width; ++i) {
        const float apart = query[i] - centre[i];
        norm += apart * apart;
        placed[i] = -2.0f * apart;
    }
    return norm;
}

// Places Q queries; norm: their squared norms.
template <int Q>
inline __attribute__((always_inline)) void place_few(const FewRows& a, int query, std::int64_t width,
                                                     const float* (&wanted)[Q], float (&norm)[Q]) {
    for (int q = 0; q < Q; ++q) {
        wanted[q] = a.placed + q * width;
        norm[q] = place_few(a.query + (query + q) * width, a.centre, width, a.placed + q * width);
    }
}

// Given a query's least score, calls among(limit) unless the query is beyond a.limit.
template <class Among>
inline __attribute__((always_inline)) void choose(const FewRows& a, int query, float norm, Floats least,
                                                  const Among& among) {
    a.nearest[query] = -1;
    if (norm < a.limit) among(least_lane(least) + (norm * a.reach_scale + a.reach_more));
}

// direct() rounded to float32, inline where the width is known to be very small.
template <int WIDTH>
inline __attribute__((always_inline)) float distance_of(const float* a, const float* b, std::int64_t width) {
    if constexpr (WIDTH > 0 && WIDTH <= HELD_COLUMNS) {
        double sum = 0.0;
        for (int i = 0; i < WIDTH; ++i) {
            const double apart = static_cast<double>(a[i]) - static_cast<double>(b[i]);
            sum += apart * apart;
        }
        return static_cast<float>(sum);
    } else {
        return distance(a, b, width);
    }
}

// The nearest of the rows `within`, which count from `first`, and of what was nearest before.
template <int WIDTH>
inline __attribute__((always_inline)) void nearest_within(const FewRows& a, int query, int first,
                                                          std::uint64_t within) {
    const float* const own = a.query + query * a.width;
    for (; within; within &= within - 1) {
        const int row = first + __builtin_ctzll(within);
        const float apart = distance_of<WIDTH>(own, a.rows[row], a.width);
        if (a.nearest[query] >= 0 && !(apart < a.distances[query])) continue;
        a.nearest[query] = row;
        a.distances[query] = apart;
    }
}

// All rows are U vectors.
template <int Q, int WIDTH, int U>
void few_at_once(const FewRows& a, int query) {
    const float* wanted[Q];
    float norm[Q];
    place_few<Q>(a, query, WIDTH ? WIDTH : a.width, wanted, norm);
    Floats sum[Q][U];
    score<Q, WIDTH>(a.bank, a.norms, wanted, a.width, sum);
    for (int q = 0; q < Q; ++q) {
        Floats least = sum[q][0];
        for (int u = 1; u < U; ++u) least = lesser(least, sum[q][u]);
        choose(a, query + q, norm[q], least, [&](float limit) __attribute__((always_inline)) {
            std::uint64_t within = 0;
            for (int u = 0; u < U; ++u) within |= std::uint64_t{not_above(sum[q][u], fill(limit))} << (u * LANES);
            nearest_within<WIDTH>(a, query + q, 0, within & real_lanes(a.lanes));
        });
    }
}

// The a.k nearest, given all scores.
template <int WIDTH>
void several_nearest(const FewRows& a, int query, float norm, const float* scores) {
    std::int32_t* const nearest = a.nearest + std::int64_t{query} * a.k;
    float* const distances_to = a.distances + std::int64_t{query} * a.k;
    nearest[0] = -1;
    if (!(norm < a.limit)) return;
    const float limit = reached(scores, a.lanes, a.k) + (norm * a.reach_scale + a.reach_more);
    const float* rows[LISTED];
    std::int32_t places[LISTED], before[LISTED];
    int count = 0;
    for (int from = 0; from < a.lanes; from += BLOCK) {
        std::uint64_t within = scores_within(scores + from, a.lanes - from < BLOCK ? a.lanes - from : BLOCK, limit);
        if (count + __builtin_popcountll(within) > LISTED) return;
        for (; within; within &= within - 1, ++count) {
            places[count] = from + __builtin_ctzll(within);
            rows[count] = a.rows[places[count]];
        }
    }
    float found[LISTED];
    std::int32_t order[LISTED] = {};
    const float* const own = a.query + std::int64_t{query} * a.width;
    if constexpr (WIDTH > 0 && WIDTH <= HELD_COLUMNS) {
        for (int i = 0; i < count; ++i) found[i] = distance_of<WIDTH>(own, rows[i], WIDTH);
    } else {
        distances({own, rows, a.width, 1, count, found});
    }
    for (int i = 0; i < count; ++i) __builtin_memcpy(order + i, found + i, sizeof *order);
    ranks(order, count, before);
    for (int i = 0; i < count; ++i) {
        if (before[i] >= a.k) continue;
        nearest[before[i]] = places[i];
        distances_to[before[i]] = found[i];
    }
}

// Some vectors after the others; their scores are kept.
template <int Q, int WIDTH>
void few_queries(const FewRows& a, int query) {
    const float* wanted[Q];
    float norm[Q], scores[Q][MOST_FEW];
    Floats least[Q];
    place_few<Q>(a, query, WIDTH ? WIDTH : a.width, wanted, norm);
    for (int q = 0; q < Q; ++q) least[q] = fill(__builtin_inff());
    const auto lanes_from = [&](int from) { return a.lanes - from < BLOCK ? a.lanes - from : BLOCK; };
    for (int from = 0; from < a.lanes; from += BLOCK) {
        for_scored(lanes_from(from), [&](int first, auto count) __attribute__((always_inline)) {
            constexpr int U = count.value;
            first += from;
            Floats sum[Q][U];
            score<Q, WIDTH>(a.bank + from * a.width + (first - from), a.norms + first, wanted, a.width, sum);
            for (int q = 0; q < Q; ++q) {
                for (int u = 0; u < U; ++u) {
                    store(scores[q] + first + u * LANES, sum[q][u]);
                    least[q] = lesser(least[q], sum[q][u]);
                }
            }
        });
    }
    if (a.k > 1) {
        for (int q = 0; q < Q; ++q) several_nearest<WIDTH>(a, query + q, norm[q], scores[q]);
        return;
    }
    for (int q = 0; q < Q; ++q) {
        choose(a, query + q, norm[q], least[q], [&](float limit) __attribute__((always_inline)) {
            for (int from = 0; from < a.lanes; from += BLOCK) {
                nearest_within<WIDTH>(a, query + q, from, scores_within(scores[q] + from, lanes_from(from), limit));
            }
        });
    }
}

// The nearest, with queries in registers. Of each block the least scores are kept, lane by lane; those of the few
// blocks that may hold the nearest are computed again.
template <int Q, int WIDTH>
void few_held(const FewRows& a, int query) {
    const float* wanted[Q];
    float norm[Q], each[Q][MOST_FEW / BLOCK * LANES];
    Floats least[Q], own[Q][WIDTH];
    place_few<Q>(a, query, WIDTH, wanted, norm);
    for (int q = 0; q < Q; ++q) {
        least[q] = fill(__builtin_inff());
        for (int i = 0; i < WIDTH; ++i) own[q][i] = fill(wanted[q][i]);
    }
    const int blocks = (a.lanes + BLOCK - 1) / BLOCK;
    const auto lanes_of = [&](int b) { return b + 1 < blocks ? BLOCK : a.lanes - b * BLOCK; };
    for (int b = 0; b < blocks; ++b) {
        Floats scores[Q];
        for (int q = 0; q < Q; ++q) scores[q] = fill(__builtin_inff());
        least_scores<Q, WIDTH>(a.bank + b * WIDTH * BLOCK, a.norms + b * BLOCK, lanes_of(b), own, scores);
        for (int q = 0; q < Q; ++q) {
            store(each[q] + b * LANES, scores[q]);
            least[q] = lesser(least[q], scores[q]);
        }
    }
    float limits[Q] = {};
    bool chosen[Q] = {};
    std::uint32_t found[Q] = {};
    for (int q = 0; q < Q; ++q) {
        choose(a, query + q, norm[q], least[q], [&](float limit) __attribute__((always_inline)) {
            limits[q] = limit;
            chosen[q] = true;
        });
    }
    for (int q = 0; q < Q; ++q) {
        const Floats most = fill(limits[q]);
        for (int b = 0; b < blocks; ++b) {
            found[q] |= std::uint32_t{not_above(load(each[q] + b * LANES), most) != 0} << b;
        }
        if (!chosen[q]) found[q] = 0;  // its scores may be NaN
    }
    for (int q = 0; q < Q; ++q) {
        const Floats most = fill(limits[q]);
        for (std::uint32_t left = found[q]; left; left &= left - 1) {
            const int b = __builtin_ctz(left);
            const std::uint64_t within = rows_within<WIDTH>(a.bank + b * WIDTH * BLOCK, a.norms + b * BLOCK,
                                                            lanes_of(b), wanted[q], WIDTH, most);
            nearest_within<WIDTH>(a, query + q, b * BLOCK, within);
        }
    }
}

template <int WIDTH>
void few_of(const FewRows& a) {
    if constexpr (WIDTH > 0 && WIDTH <= HELD_COLUMNS) {
        if (a.k == 1 && a.lanes > SCORE_STEP) {
            constexpr int MOST = HELD / (WIDTH + 1);  // with their least scores
            return in_groups<MOST>(a.queries, [&](auto group, int q) { few_held<group.value, WIDTH>(a, q); });
        }
    }
    if (a.k > 1) {
        in_groups(a.queries, [&](auto group, int q) { few_queries<group.value, WIDTH>(a, q); });
    } else if (a.lanes <= LANES) {
        in_groups<PLACED>(a.queries, [&](auto group, int q) { few_at_once<group.value, WIDTH, 1>(a, q); });
    } else if (a.lanes <= 2 * LANES) {
        in_groups(a.queries, [&](auto group, int q) { few_at_once<group.value, WIDTH, 2>(a, q); });
    } else if (a.lanes <= SCORE_STEP) {
        in_groups(a.queries, [&](auto group, int q) { few_at_once<group.value, WIDTH, SCORE_VECTORS>(a, q); });
    } else {
        in_groups(a.queries, [&](auto group, int q) { few_queries<group.value, WIDTH>(a, q); });
    }
}

void few_rows(const FewRows& a) {
    with_width(a.width, [&](auto width) { few_of<width.value>(a); });
}

template <int WIDTH>
bool narrow_rows(const NarrowRows& a) {
    float centre[WIDTH];
    for (int i = 0; i < WIDTH; ++i) centre[i] = a.centre[i];
    for (int i = 0; i < WIDTH; ++i) {
        for (int lane = 0; lane < BLOCK; ++lane) a.bank[i * BLOCK + lane] = a.rows[lane * WIDTH + i] - centre[i];
    }
    Floats most = fill(0.0f);
    std::uint32_t over = 0;
    for (int lane = 0; lane < BLOCK; lane += LANES) {
        Floats sum = fill(0.0f);
        for (int i = 0; i < WIDTH; ++i) {
            const Floats value = load(a.bank + i * BLOCK + lane);
            sum = add_product(sum, value, value);
        }
        over |= not_above(fill(a.limit), sum);  // NaN, too
        store(a.norms + lane, multiply(sum, fill(a.share)));
        most = lesser(most, multiply(sum, fill(-a.share)));
    }
    *a.largest = -least_lane(most);
    return !over;
}

bool narrow_rows(const NarrowRows& a) {
    return a.width == 2 ? narrow_rows<2>(a) : a.width == 3 ? narrow_rows<3>(a) : narrow_rows<4>(a);
}

void pack_rows(const PackRows& a) {
    constexpr std::int64_t COLUMNS = 64;  // a few cache lines of each row at a time
    const int packed = (a.lanes + 3) / 4 * 4, read = scored(packed);
    for (int lane = 0; lane < BLOCK; ++lane) a.sums[lane] = 0.0;
    for (std::int64_t start = 0; start < a.width; start += COLUMNS) {
        const std::int64_t stop = start + COLUMNS < a.width ? start + COLUMNS : a.width;
        for (int lane = 0; lane < packed; lane += 4) {
            const float* const* rows = a.rows + lane;
            std::int64_t i = start;
            for (; i + 4 <= stop; i += 4) transpose_less(rows, i, a.centre + i, a.bank + i * BLOCK + lane, BLOCK);
            for (; i < stop; ++i) {
                for (int r = 0; r < 4; ++r) a.bank[i * BLOCK + lane + r] = rows[r][i] - a.centre[i];
            }
        }
        for (std::int64_t i = start; i < stop; ++i) {
            for (int lane = a.lanes; lane < read; ++lane) a.bank[i * BLOCK + lane] = 0.0f;
        }
        for (int lane = 0; lane < read; lane += 2 * PER_SUM) {
            Doubles sums[2], values;
            __builtin_memcpy(sums, a.sums + lane, sizeof sums);
            for (std::int64_t i = start; i < stop; ++i) {
                for (int u = 0; u < 2; ++u) {
                    widen(a.bank + i * BLOCK + lane + u * PER_SUM, values);
                    sums[u] += values * values;
                }
            }
            __builtin_memcpy(a.sums + lane, sums, sizeof sums);
        }
    }
}

bool norms_below(const double* sums, double share, double limit, float* norms, float* largest) {
    using Flags = std::int64_t __attribute__((vector_size(8 * PER_SUM)));
    Flags over = {};
    Doubles most = {}, values;
    for (int lane = 0; lane < BLOCK; lane += PER_SUM) {
        __builtin_memcpy(&values, sums + lane, sizeof values);
        over |= ~(values < limit);  // NaN, too
        values *= share;
        most = values > most ? values : most;
        const Singles rounded = __builtin_convertvector(values, Singles);
        __builtin_memcpy(norms + lane, &rounded, sizeof rounded);
    }
    std::int64_t any = 0;
    double greatest = 0.0;
    for (int j = 0; j < PER_SUM; ++j) {
        any |= over[j];
        greatest = most[j] > greatest ? most[j] : greatest;
    }
    *largest = static_cast<float>(greatest);
    return any == 0;
}

double place_row(const float* values, const float* centre, std::int64_t width, float* out) {
    Doubles sums[2] = {};
    double sum = 0.0;
    std::int64_t i = 0;
    for (; i + 2 * PER_SUM <= width; i += 2 * PER_SUM) {
        for (int u = 0; u < 2; ++u) {
            Singles value, middle;
            read(values + i + u * PER_SUM, value);
            read(centre + i + u * PER_SUM, middle);
            value -= middle;
            Doubles wide;
            widen(value, wide);
            sums[u] += wide * wide;
            value *= -2.0f;
            __builtin_memcpy(out + i + u * PER_SUM, &value, sizeof value);
        }
    }
    for (; i < width; ++i) {
        const float value = values[i] - centre[i];
        sum += static_cast<double>(value) * static_cast<double>(value);
        out[i] = -2.0f * value;
    }
    for (int j = 0; j < PER_SUM; ++j) sum += sums[0][j] + sums[1][j];
    return sum;
}

// The four rows of a cell: upper left, low left, upper right, low right. The sign bit of `wrong` is set by a code that
// is not below `rows`; such a code is masked to a row of the book, which has a power of two of them.
inline __attribute__((always_inline)) void corner_rows(const std::int16_t* codes, const Corners& at, const float* book,
                                                       int rows, std::uint32_t mask, int stride, const float** found,
                                                       std::int32_t& wrong) {
    const std::int32_t places[4] = {at.upper_left, at.low_left, at.upper_right, at.low_right};
    for (int i = 0; i < 4; ++i) {
        const std::uint32_t code = static_cast<std::uint16_t>(codes[places[i]]);
        wrong |= rows - 1 - static_cast<std::int32_t>(code);
        found[i] = book + static_cast<std::size_t>(code & mask) * stride;
    }
}

bool level_cells(const LevelCells& a) {
    std::int32_t wrong = 0;
    const float* rows[4];
    std::int16_t* out = a.out;
    for (int i = 0; i < a.count; ++i) {
        const Corners& at = a.corners[i];
        corner_rows(a.codes, at, a.book, a.rows, a.mask, a.stride, rows, wrong);
        int c = 0;
        for (; c + 8 <= a.width; c += 8, out += 8) blend_eight(rows, c, at.down, at.across, out);
        if (c < a.width) {
            std::int16_t last[8];
            blend_eight(rows, c, at.down, at.across, last);
            for (; c < a.width; ++c) *out++ = last[c % 8];
        }
    }
    return wrong >= 0;
}

bool level_block(const LevelBlock& a) {
    std::int32_t wrong = 0;
    const float* rows[4];
    for (int lane = 0; lane < a.lanes; ++lane) {
        std::int16_t* bank = a.bank + lane * 2;
        for (int i = 0; i < a.count; ++i) {
            const Corners& at = a.corners[i];
            corner_rows(a.images[lane], at, a.book, a.rows, a.mask, 8, rows, wrong);
            std::int16_t values[8];
            blend_eight(rows, 0, at.down, at.across, values);
            for (int p = 0; p < a.pairs; ++p, bank += BLOCK * 2)
                __builtin_memcpy(bank, values + 2 * p, 2 * sizeof *bank);
        }
    }
    const std::int16_t* bank = a.bank;
    for (int i = 0; i < a.count; ++i, bank += std::int64_t{a.pairs} * BLOCK * 2) {
        for (int first = 0; first < BLOCK; first += LANES) {
            Ints sum = zero();
            for (int p = 0; p < a.pairs; ++p) {
                const Ints pair = load(bank + (p * BLOCK + first) * 2);
                sum = add_products(sum, pair, pair);
            }
            store(a.norms + std::int64_t{i} * BLOCK + first, sum);
        }
    }
    return wrong >= 0;
}

}  // namespace

namespace lpkernel {

extern const Kernels LPKERNEL_TABLE;
const Kernels LPKERNEL_TABLE = {LPKERNEL_ISA_NAME,
                                latent_block,
                                by_width<FloatBlock>,
                                by_width<FloatBlocks>,
                                few_rows,
                                rounded_block,
                                round_block,
                                round_row,
                                rows<float, float>,
                                rows<std::int16_t, std::int32_t>,
                                cell_rows,
                                small_step,
                                row_sums,
                                least_sums,
                                ranked,
                                ranks,
                                reached,
                                scores_within,
                                at_most_of,
                                image_apart,
                                byte_tile,
                                byte_limits,
                                byte_rows,
                                scaled_bytes,
                                group_tile,
                                level_cells,
                                level_block,
                                norms,
                                resize_row,
                                words,
                                direct,
                                direct_rows,
                                distance,
                                distances,
                                direct_narrow,
                                pack_rows,
                                narrow_rows,
                                norms_below,
                                place_row,
                                block_sums,
                                scaled,
                                widen,
                                narrow,
                                widen_half};

}  // namespace lpkernel
