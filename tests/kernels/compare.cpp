// Compares every table of kernels that this machine runs with the table of one lane, on random input: sizes around
// whole vectors, ties, extremes. Integers and float64 bit for bit; float32 sums within the bound of topk_parts.h and
// what they find as kernels.h promises; bytes, which one lane has none of, with plain loops. Prints what differs, and
// exits 1 if anything does.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/topk_parts.h"

namespace lpkernel {

extern const Kernels kernels_one_lane;

}  // namespace lpkernel

namespace {

using namespace lpkernel;

constexpr std::int32_t MOST = std::numeric_limits<std::int32_t>::max();
constexpr std::int32_t LEAST = std::numeric_limits<std::int32_t>::min();
constexpr float INF = std::numeric_limits<float>::infinity();
constexpr float NOT_A_NUMBER = std::numeric_limits<float>::quiet_NaN();
constexpr int SHOWN = 5;  // differences printed of each kernel

const Kernels& ONE = kernels_one_lane;

class Random {
  public:
    explicit Random(std::uint32_t seed) : bits_(seed) {}
    int between(int low, int high) {  // both included
        return low + static_cast<int>(bits_() % (static_cast<std::uint32_t>(high - low) + 1u));
    }
    std::int32_t word() { return static_cast<std::int32_t>(bits_()); }
    template <std::size_t N>
    int of(const int (&choices)[N]) {
        return choices[between(0, static_cast<int>(N) - 1)];
    }
    std::vector<std::int32_t> integers(std::size_t count, int low, int high) {
        std::vector<std::int32_t> made(count);
        for (auto& value : made) value = between(low, high);
        return made;
    }
    std::vector<std::int16_t> halves(std::size_t count, int most) {  // the extremes often where `most` is one
        std::vector<std::int16_t> made(count);
        for (auto& value : made) {
            value = static_cast<std::int16_t>(between(-most, most));
            if (most == 32767 && between(0, 2) == 0) value = static_cast<std::int16_t>(between(0, 1) ? -32768 : 32767);
        }
        return made;
    }
    std::vector<float> floats(std::size_t count, float scale) {
        std::normal_distribution<float> normal;
        std::vector<float> made(count);
        for (auto& value : made) value = normal(bits_) * scale;
        return made;
    }
    std::vector<std::int32_t> words(std::size_t count) {
        std::vector<std::int32_t> made(count);
        for (auto& value : made) value = word();
        return made;
    }

  private:
    std::mt19937 bits_;
};

// What one kernel gives, beside what it should.
class Check {
  public:
    Check(const Kernels& table, const char* kernel) : table_(table), kernel_(kernel) {}

    void wrong(const std::string& sizes, const std::string& what) {
        if (wrong_++ < SHOWN) {
            std::printf("%s %s(%s): %s\n", table_.name, kernel_, sizes.c_str(), what.c_str());
        }
    }
    template <class T>
    void same(const std::string& sizes, const std::vector<T>& want, const std::vector<T>& got) {
        for (std::size_t i = 0; i < want.size(); ++i) {
            if (want[i] == got[i]) continue;
            return wrong(
                sizes, "[" + std::to_string(i) + "] is " + std::to_string(got[i]) + ", not " + std::to_string(want[i]));
        }
    }
    bool passed() const { return wrong_ == 0; }

  private:
    const Kernels& table_;
    const char* kernel_;
    int wrong_ = 0;
};

std::string sizes_of(std::initializer_list<std::pair<const char*, std::int64_t>> sizes) {
    std::string text;
    for (const auto& [name, size] : sizes) {
        text += (text.empty() ? "" : ", ") + std::string(name) + " " + std::to_string(size);
    }
    return text;
}

bool has(std::uint64_t mask, int bit) {
    return mask >> bit & 1;
}

constexpr int LANE_COUNTS[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64};
constexpr int WIDTHS[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 519};

bool latent_block(const Kernels& table, Random& random) {
    Check check(table, "latent_block");
    for (int repeat = 0; repeat < 600; ++repeat) {
        const int pairs = random.of({0, 1, 2, 3, 4, 5, 8, 9, 60}), count = random.between(1, pairs > 9 ? 3 : 40);
        const int lanes = random.of(LANE_COUNTS), queries = random.between(1, GROUP), cells = count + 3;
        const bool wild = repeat % 3 == 0;  // sums that leave 31 bits, and so no limits
        const std::int64_t width = 2 * pairs;
        // every image and query is near one row of any values: squares, not distances, leave 32 bits
        const auto centre = random.halves(static_cast<std::size_t>(cells * width), repeat % 3 == 1 ? 100 : 32767);
        const auto near = [&](std::int64_t at) {
            if (wild) return random.halves(1, 32767)[0];
            return static_cast<std::int16_t>(std::clamp(centre[at] + random.between(-60, 60), -32768, 32767));
        };
        const auto norm = [&](const std::int16_t* values, int step) {
            std::uint32_t sum = 0;
            for (int p = 0; p < pairs; ++p) {
                for (int half = 0; half < 2; ++half) {
                    sum += static_cast<std::uint32_t>(values[p * step + half] * values[p * step + half]);
                }
            }
            return static_cast<std::int32_t>(sum);
        };
        std::vector<std::int16_t> bank(static_cast<std::size_t>(cells * width * BLOCK) + 1);
        std::vector<std::int32_t> norms(static_cast<std::size_t>(cells * BLOCK));
        for (int cell = 0; cell < cells; ++cell) {
            for (int b = 0; b < BLOCK; ++b) {
                std::int16_t* values = bank.data() + cell * width * BLOCK + 2 * b;
                for (std::int64_t i = 0; i < width; ++i) values[i / 2 * BLOCK * 2 + i % 2] = near(cell * width + i);
                norms[cell * BLOCK + b] = norm(values, BLOCK * 2);
            }
        }
        const auto order = random.integers(static_cast<std::size_t>(count), 0, cells - 1);
        std::vector<std::vector<std::int16_t>> query(GROUP);
        std::vector<std::vector<std::int32_t>> own(GROUP);
        std::vector<std::int32_t> out(GROUP * BLOCK), expected(GROUP * BLOCK);
        std::vector<std::uint64_t> found(GROUP), wanted(GROUP);
        LatentBlock block{};
        block.bank = bank.data();
        block.norms = norms.data();
        const auto less = random.integers(BLOCK, 0, wild ? MOST - 1 : 1 << repeat % 2 * 16);
        block.cells = order.data();
        block.less = less.data();
        block.count = count;
        block.pairs = pairs;
        block.lanes = lanes;
        block.queries = queries;
        for (int q = 0; q < queries; ++q) {
            query[q].resize(static_cast<std::size_t>(count * width) + 1);
            own[q].resize(static_cast<std::size_t>(count));
            for (int i = 0; i < count; ++i) {
                for (std::int64_t c = 0; c < width; ++c) query[q][i * width + c] = near(order[i] * width + c);
                own[q][i] = norm(query[q].data() + i * width, 2);
            }
            block.query[q] = query[q].data();
            block.own_norms[q] = own[q].data();
            block.limits[q] = MOST;
        }
        const auto run = [&](const Kernels& with, std::vector<std::int32_t>& sums, std::vector<std::uint64_t>& mask) {
            std::fill(mask.begin(), mask.end(), ~std::uint64_t{0});
            block.out = sums.data();
            block.found = mask.data();
            with.latent_block(block);
        };
        const std::string sizes = sizes_of({{"pairs", pairs},
                                            {"count", count},
                                            {"lanes", lanes},
                                            {"queries", queries},
                                            {"wild", wild},
                                            {"no.", repeat}});
        const auto compare = [&](const std::string& limits) {
            run(ONE, expected, wanted);
            run(table, out, found);
            check.same(sizes + limits + ", found", wanted, found);
            std::vector<std::int32_t> want, got;  // only what is found is there to be read
            for (int q = 0; q < queries; ++q) {
                for (int b = 0; b < lanes; ++b) {
                    if (!has(wanted[q], b)) continue;
                    want.push_back(expected[q * BLOCK + b]);
                    got.push_back(out[q * BLOCK + b]);
                }
            }
            check.same(sizes + limits, want, got);
        };
        compare("");
        if (wild) continue;
        for (int q = 0; q < queries; ++q) {  // one that is exactly at the limit, or nothing
            block.limits[q] = random.between(0, 4) ? expected[q * BLOCK + random.between(0, lanes - 1)] : LEAST;
        }
        compare(", limits");
    }
    return check.passed();
}

// Whether a float32 sum of `width` products may be `sum`, with `exact` its value and `size` that of its products.
bool near_enough(float sum, double exact, double size, std::int64_t width) {
    if (std::isnan(exact)) return std::isnan(sum);
    if (std::isinf(exact)) return sum == exact;
    return std::fabs(static_cast<double>(sum) - exact) <= slack(width) * size + TINY;
}

// How a block's limit came about, and that what was found is within it.
void check_found(Check& check, const Kernels& table, const FloatBlock& block, int q, float before,
                 const std::string& sizes) {
    const float* own = block.scores + q * BLOCK;
    const float least = *std::min_element(own, own + block.lanes);
    float lower = before;
    if (block.reach && least <= lower) {
        lower = std::min(lower, least + (block.reach[q] * block.reach_scale + block.reach_more));
    }
    if (block.limits[q] != lower) check.wrong(sizes, "query " + std::to_string(q) + ": another limit");
    if (block.found[q] != table.scores_within(own, block.lanes, block.limits[q])) {
        check.wrong(sizes, "query " + std::to_string(q) + ": scores_within differs from what was found");
    }
}

bool float_block(const Kernels& table, Random& random) {
    Check check(table, "float_block");
    for (int repeat = 0; repeat < 1000; ++repeat) {
        const std::int64_t width = random.of(WIDTHS);
        const int lanes = random.of(LANE_COUNTS), queries = random.between(1, 15);
        const float scale = repeat % 4 == 0 ? 1e-22f : repeat % 4 == 1 ? 1e15f : 1.0f;
        const auto bank = random.floats(static_cast<std::size_t>(width * BLOCK) + 1, scale);
        auto norms = random.floats(BLOCK, scale * scale * static_cast<float>(width));
        if (repeat % 5 == 0) norms[random.between(0, BLOCK - 1)] = -INF;
        std::fill(norms.begin() + lanes, norms.end(), INF);
        const auto values = random.floats(static_cast<std::size_t>(queries * width) + 1, scale);
        std::vector<float> limits(queries), scores(queries * BLOCK);
        std::vector<std::vector<double>> exact(queries, std::vector<double>(BLOCK)), size = exact;
        std::vector<std::uint64_t> found(queries, ~std::uint64_t{0});
        FloatBlock block{};
        block.bank = bank.data();
        block.norms = norms.data();
        block.width = width;
        block.lanes = lanes;
        block.queries = queries;
        block.query = values.data();
        block.limits = limits.data();
        block.found = found.data();
        block.scores = scores.data();
        std::vector<float> reach(queries, scale * scale);
        block.reach = repeat % 2 ? reach.data() : nullptr;
        block.reach_scale = 0.5f;
        block.reach_more = scale * scale;
        for (int q = 0; q < queries; ++q) {
            for (int b = 0; b < BLOCK; ++b) {
                exact[q][b] = norms[b];
                size[q][b] = std::fabs(static_cast<double>(norms[b]));
                for (std::int64_t i = 0; i < width; ++i) {
                    const double product = static_cast<double>(values[q * width + i]) * bank[i * BLOCK + b];
                    exact[q][b] += product;
                    size[q][b] += std::fabs(product);
                }
            }
            // a limit at the score of a lane, or just so far from it that the lane is found, or not; or everything, or
            // nothing
            const int lane = random.between(0, lanes - 1);
            const double room = std::isfinite(exact[q][lane]) ? slack(width + 1) * size[q][lane] + TINY : 0.0;
            limits[q] = random.between(0, 9) ? static_cast<float>(exact[q][lane] + 1.25 * room * random.between(-1, 1))
                                             : (random.between(0, 1) ? INF : -INF);
        }
        const std::vector<float> before = limits;
        table.float_block(block);
        const std::string sizes = sizes_of({{"width", width}, {"lanes", lanes}, {"queries", queries}, {"no.", repeat}});
        for (int q = 0; q < queries; ++q) {
            check_found(check, table, block, q, before[q], sizes);
            const auto limit = static_cast<double>(limits[q]);
            for (int b = 0; b < BLOCK; ++b) {
                const double room = std::isfinite(exact[q][b]) ? slack(width + 1) * size[q][b] + TINY : 0.0;
                const bool must = b < lanes && !(exact[q][b] + room > limit);
                const bool may = b < lanes && !(exact[q][b] - room > limit);
                const bool is = has(found[q], b);
                if (is ? !may : must) {
                    check.wrong(sizes, "query " + std::to_string(q) + ", lane " + std::to_string(b) + " is " +
                                           (is ? "found" : "not found") + ", score " + std::to_string(exact[q][b]) +
                                           ", limit " + std::to_string(limits[q]));
                }
            }
        }
    }
    return check.passed();
}

bool rounded_block(const Kernels& table, Random& random) {
    Check check(table, "rounded_block");
    for (int repeat = 0; repeat < 1000; ++repeat) {
        const std::int64_t pairs = random.of(WIDTHS), width = 2 * pairs;
        const int lanes = random.of(LANE_COUNTS), queries = random.between(1, 15);
        const auto bank = random.halves(static_cast<std::size_t>(width * BLOCK) + 2, 1000);
        const auto values = random.halves(static_cast<std::size_t>(queries * width) + 2, 1000);
        const float scale = repeat % 4 == 0 ? 1e-15f : repeat % 4 == 1 ? 1e12f : 1.0f;
        const auto scales = random.floats(BLOCK, scale), query_scales = random.floats(queries, scale);
        auto norms = random.floats(BLOCK, scale * scale * static_cast<float>(width));
        if (repeat % 5 == 0) norms[random.between(0, BLOCK - 1)] = -INF;
        std::fill(norms.begin() + lanes, norms.end(), INF);
        std::vector<float> scores(queries * BLOCK), reach(queries, scale * scale),
            limits = random.floats(queries, 1.0f);
        std::vector<std::uint64_t> found(queries, ~std::uint64_t{0});
        FloatBlock block{};
        block.norms = norms.data();
        block.width = pairs;
        block.lanes = lanes;
        block.queries = queries;
        block.limits = limits.data();
        block.found = found.data();
        block.scores = scores.data();
        block.reach = repeat % 2 ? reach.data() : nullptr;
        block.reach_scale = 0.5f;
        block.reach_more = scale * scale;
        const std::vector<float> before = limits;
        table.rounded_block({block, bank.data(), scales.data(), values.data(), query_scales.data()});
        const std::string sizes = sizes_of({{"pairs", pairs}, {"lanes", lanes}, {"queries", queries}, {"no.", repeat}});
        for (int q = 0; q < queries; ++q) {
            const float* own = scores.data() + q * BLOCK;
            check_found(check, table, block, q, before[q], sizes);
            for (int b = 0; b < lanes; ++b) {
                std::int64_t sum = 0;
                for (std::int64_t i = 0; i < width; ++i) {
                    sum += std::int64_t{values[q * width + i]} * bank[(i / 2 * BLOCK + b) * 2 + i % 2];
                }
                const double product = static_cast<double>(sum) * scales[b] * query_scales[q];
                const double exact = norms[b] + product, size = std::fabs(norms[b]) + std::fabs(product);
                if (std::isinf(norms[b]) ? own[b] != norms[b] : std::fabs(own[b] - exact) > 0x1p-21 * size + TINY) {
                    check.wrong(sizes, "lane " + std::to_string(b) + " is " + std::to_string(own[b]) + ", not " +
                                           std::to_string(exact));
                }
            }
        }
    }
    return check.passed();
}

// Numbers of up to 32,760, many of them halfway between two integers.
std::vector<float> unrounded(Random& random, std::size_t count) {
    std::vector<float> made(count);
    for (auto& value : made) {
        value = static_cast<float>(random.between(-32760, 32760));
        if (random.between(0, 1)) value += static_cast<float>(random.between(-2, 2)) * (value > 0 ? -0.25f : 0.25f);
    }
    return made;
}

bool round_row(const Kernels& table, Random& random) {
    Check check(table, "round_row");
    for (int repeat = 0; repeat < 300; ++repeat) {
        const auto width = static_cast<std::size_t>(random.of(WIDTHS));
        const float scale = repeat % 2 ? 1.0f : -0.5f;
        const auto values = unrounded(random, width);
        std::vector<std::int16_t> got(width + width % 2, 7), want = got;
        table.round_row(values.data(), scale, static_cast<std::int64_t>(width), got.data());
        for (std::size_t i = 0; i < want.size(); ++i) {
            want[i] = i < width ? static_cast<std::int16_t>(std::nearbyint(values[i] * scale)) : std::int16_t{0};
        }
        check.same(sizes_of({{"width", width}, {"no.", repeat}}), want, got);
    }
    return check.passed();
}

bool round_block(const Kernels& table, Random& random) {
    Check check(table, "round_block");
    for (int repeat = 0; repeat < 100; ++repeat) {
        const int width = random.of(WIDTHS), even = width + width % 2;
        const auto values = unrounded(random, static_cast<std::size_t>(width * BLOCK) + 1);
        std::vector<float> scales(BLOCK);
        for (auto& scale : scales) scale = static_cast<float>(random.between(-4, 4)) / 4;
        std::vector<std::int16_t> got(static_cast<std::size_t>(even * BLOCK)), want = got;
        table.round_block({values.data(), scales.data(), width, got.data()});
        for (int i = 0; i < width; ++i) {
            for (int b = 0; b < BLOCK; ++b) {
                const float value =
                    values[static_cast<std::size_t>(i * BLOCK + b)] * scales[static_cast<std::size_t>(b)];
                want[static_cast<std::size_t>((i / 2 * BLOCK + b) * 2 + i % 2)] =
                    static_cast<std::int16_t>(std::nearbyint(value));
            }
        }
        check.same(sizes_of({{"width", width}, {"no.", repeat}}), want, got);
    }
    return check.passed();
}

std::vector<float> row_values(Random& random, std::size_t count, int kind, float*) {
    auto made = random.floats(count, kind == 0 ? 1e-22f : kind == 1 ? 1e15f : 1.0f);
    if (kind == 2 && count > 1) {
        made[random.between(0, static_cast<int>(count) - 1)] = NOT_A_NUMBER;
        made[random.between(0, static_cast<int>(count) - 1)] = INF;
    }
    return made;
}
std::vector<std::int16_t> row_values(Random& random, std::size_t count, int kind, std::int16_t*) {
    return random.halves(count, kind == 0 ? 2 : kind == 1 ? 2000 : 32767);
}

// Rows compared where they lie. Of float32, a sum is near the exact one; whatever the sum is, it decides.
template <class T, class Sum>
bool rows(const Kernels& table, Random& random, const char* name, void (*Kernels::*kernel)(const RowBlock<T, Sum>&)) {
    constexpr bool FLOATS = std::is_same_v<T, float>;
    Check check(table, name);
    for (int repeat = 0; repeat < 1500; ++repeat) {
        const std::int64_t width = random.of(WIDTHS), stride = (width + ROW_STEP - 1) / ROW_STEP * ROW_STEP;
        const int lanes = random.between(1, ROWS), queries = random.between(1, 9), kind = random.between(0, 3);
        const int masks = random.between(0, 2);  // none, one for all, one each
        std::vector<std::vector<T>> bank(ROWS);
        const T* pointers[ROWS];
        for (int b = 0; b < ROWS; ++b) {
            bank[b] = row_values(random, static_cast<std::size_t>(width), kind, static_cast<T*>(nullptr));
            if (b >= 2 && b % 3 == 0) bank[b] = bank[b - 1];
            bank[b].push_back(T{0});  // so that there is one
            pointers[b] = bank[b].data();
        }
        std::vector<T> query(static_cast<std::size_t>(queries * stride) + 1), mask(query.size());
        T all;
        std::memset(&all, 0xFF, sizeof all);
        for (int q = 0; q < queries; ++q) {
            const auto own = row_values(random, static_cast<std::size_t>(width), 3, static_cast<T*>(nullptr));
            for (std::int64_t i = 0; i < width; ++i) {
                query[q * stride + i] = own[i];
                if (random.between(0, 1)) mask[q * stride + i] = all;
            }
        }
        std::vector<Sum> limits(static_cast<std::size_t>(queries)), out(static_cast<std::size_t>(queries * ROWS));
        std::vector<Sum> expected(out.size());
        std::vector<std::uint64_t> found(static_cast<std::size_t>(queries), ~std::uint64_t{0}), wanted = found;
        RowBlock<T, Sum> block{};
        block.rows = pointers;
        block.lanes = lanes;
        block.queries = queries;
        block.width = width;
        block.stride = stride;
        block.query = query.data();
        block.mask = masks ? mask.data() : nullptr;
        block.mask_stride = masks == 2 ? stride : 0;
        block.limits = limits.data();
        block.out = expected.data();
        block.found = wanted.data();
        (ONE.*kernel)(block);
        block.out = out.data();
        block.found = found.data();
        (table.*kernel)(block);
        const std::string sizes = sizes_of({{"width", width},
                                            {"lanes", lanes},
                                            {"queries", queries},
                                            {"masks", masks},
                                            {"kind", kind},
                                            {"no.", repeat}});
        for (int q = 0; q < queries; ++q) {
            for (int b = 0; b < lanes; ++b) {
                const Sum got = out[q * ROWS + b], want = expected[q * ROWS + b];
                double exact = 0.0;
                bool right = got == want;
                if constexpr (FLOATS) {
                    for (std::int64_t i = 0; i < width; ++i) {
                        if (masks && mask[(masks == 2 ? q * stride : 0) + i] == T{0}) continue;
                        const double apart =
                            static_cast<double>(bank[b][i]) - static_cast<double>(query[q * stride + i]);
                        exact += apart * apart;
                    }
                    right = near_enough(got, exact, exact, width) && near_enough(want, exact, exact, width);
                }
                if (!right) {
                    check.wrong(sizes, "query " + std::to_string(q) + ", row " + std::to_string(b) + " is " +
                                           std::to_string(got) + ", one lane " + std::to_string(want) + ", exact " +
                                           std::to_string(exact));
                }
            }
            // a limit that one of the sums is equal to
            limits[q] = random.between(0, 9) ? out[q * ROWS + random.between(0, lanes - 1)] : Sum{0};
            if constexpr (FLOATS) {
                if (random.between(0, 9) == 0) limits[q] = random.between(0, 1) ? NOT_A_NUMBER : INF;
            }
        }
        const auto sums = out;
        (table.*kernel)(block);
        for (int q = 0; q < queries; ++q) {
            wanted[q] = 0;
            for (int b = 0; b < lanes; ++b) {
                wanted[q] |= std::uint64_t{!(sums[q * ROWS + b] > limits[q])} << b;
            }
        }
        check.same(sizes + ", found", wanted, found);
    }
    return check.passed();
}

bool cell_rows(const Kernels& table, Random& random) {
    Check check(table, "cell_rows");
    for (int repeat = 0; repeat < 600; ++repeat) {
        const int width = random.of({1, 2, 3, 4, 5, 7, 8, 9, 16, 17}), pairs = (width + 1) / 2;
        const int count = random.between(1, 9), cells = random.between(1, 5), lanes = 16 * random.between(1, 4);
        const auto bank = random.halves(static_cast<std::size_t>(cells * pairs * BLOCK * 2), repeat % 2 ? 32767 : 300);
        const auto values = random.halves(static_cast<std::size_t>(count * width), repeat % 2 ? 32767 : 300);
        const auto norms = random.words(static_cast<std::size_t>(cells * BLOCK));
        const auto chosen = random.integers(static_cast<std::size_t>(count), 0, cells - 1);
        std::vector<std::int32_t> out(static_cast<std::size_t>(count * lanes)), expected(out.size());
        CellRows job{bank.data(), norms.data(), chosen.data(), values.data(), count, width, lanes, expected.data()};
        ONE.cell_rows(job);
        job.out = out.data();
        table.cell_rows(job);
        check.same(sizes_of({{"width", width}, {"count", count}, {"lanes", lanes}, {"no.", repeat}}), expected, out);
    }
    return check.passed();
}

bool small_step(const Kernels& table, Random& random) {
    Check check(table, "small_step");
    for (int repeat = 0; repeat < 300; ++repeat) {
        const int corners = 20, images = random.between(1, 40), lanes = 16 * random.between(1, 4), own_cells = 7;
        const auto tables = random.words(static_cast<std::size_t>(corners * images * lanes));
        const auto own = random.words(static_cast<std::size_t>(own_cells * lanes));
        const auto chosen = random.integers(5, 0, images - 1);
        std::vector<Box> boxes(static_cast<std::size_t>(random.between(0, 6)));
        for (Box& box : boxes) {
            box = {random.between(0, 4), random.between(0, corners - 1), random.between(0, corners - 1),
                   random.between(0, corners - 1), random.between(0, corners - 1)};
        }
        const auto carried = random.integers(static_cast<std::size_t>(random.between(0, 9)), 0, own_cells - 1);
        std::vector<std::int32_t> out(static_cast<std::size_t>(lanes)), expected(out.size());
        const auto less = random.words(static_cast<std::size_t>(lanes));
        SmallStep job{tables.data(),
                      less.data(),
                      boxes.data(),
                      chosen.data(),
                      own.data(),
                      carried.data(),
                      static_cast<int>(boxes.size()),
                      static_cast<int>(carried.size()),
                      images,
                      lanes,
                      expected.data()};
        ONE.small_step(job);
        job.out = out.data();
        table.small_step(job);
        check.same(sizes_of({{"images", images}, {"lanes", lanes}, {"boxes", job.box_count}, {"no.", repeat}}),
                   expected, out);
    }
    return check.passed();
}

// Rows of distances to `lanes` images, one for each of `cells` cells, some of them the same.
struct Rows {
    std::vector<std::int32_t> values;
    std::vector<const std::int32_t*> of;

    Rows(Random& random, int cells, int lanes, bool wild) : of(static_cast<std::size_t>(cells)) {
        const auto size = static_cast<std::size_t>(cells * lanes);
        values = wild ? random.words(size) : random.integers(size, 0, 3);
        for (auto& row : of) row = values.data() + random.between(0, cells - 1) * lanes;
    }
};

bool row_sums(const Kernels& table, Random& random) {
    Check check(table, "row_sums");
    for (int repeat = 0; repeat < 300; ++repeat) {
        const int cells = 12, lanes = 16 * random.between(1, 4), count = random.between(0, 2 * cells);
        const Rows rows(random, cells, lanes, true);
        const auto order = random.integers(static_cast<std::size_t>(count), 0, cells - 1);
        const auto less = random.words(static_cast<std::size_t>(lanes));
        const auto of = [&](const Kernels& with) {
            std::vector<std::int32_t> out(static_cast<std::size_t>(lanes));
            with.row_sums({rows.of.data(), order.data(), less.data(), count, lanes, out.data()});
            return out;
        };
        check.same(sizes_of({{"lanes", lanes}, {"count", count}, {"no.", repeat}}), of(ONE), of(table));
    }
    return check.passed();
}

bool least_sums(const Kernels& table, Random& random) {
    Check check(table, "least_sums");
    for (int repeat = 0; repeat < 600; ++repeat) {
        const int side = random.between(1, 7), across = side + 1, lanes = random.between(1, NEAR);
        const int steps = random.between(0, 5), nearest = random.between(1, 5),
                  left_out = random.between(-1, lanes - 1);
        const Rows rows(random, side * side, NEAR, repeat % 4 == 0);
        std::vector<Box> boxes;
        std::vector<std::int32_t> ends;
        for (int s = 0; s < steps; ++s) {
            for (int b = random.between(0, 3); b > 0; --b) {
                const int top = random.between(0, side - 1), low = random.between(top + 1, side);
                const int left = random.between(0, side - 1), right = random.between(left + 1, side);
                boxes.push_back(
                    {0, top * across + left, top * across + right, low * across + left, low * across + right});
            }
            ends.push_back(static_cast<std::int32_t>(boxes.size()));
        }
        const auto before = random.integers(1, 0, 40);  // distances of calls before
        const auto of = [&](const Kernels& with) {
            std::vector<std::int32_t> sums(static_cast<std::size_t>(across * across * NEAR));
            std::vector<std::int32_t> least(static_cast<std::size_t>(steps * nearest), before[0]);
            with.least_sums({rows.of.data(), side, lanes, left_out, boxes.data(), ends.data(), steps, nearest,
                             sums.data(), least.data()});
            return least;
        };
        check.same(sizes_of({{"side", side}, {"lanes", lanes}, {"steps", steps}, {"no.", repeat}}), of(ONE), of(table));
    }
    return check.passed();
}

bool ranked(const Kernels& table, Random& random) {
    Check check(table, "ranked");
    for (int repeat = 0; repeat < 3000; ++repeat) {
        const int count = random.between(1, BLOCK), rank = random.between(0, count - 1);
        auto values = repeat % 2 ? random.integers(BLOCK, -2, 3) : random.words(BLOCK);
        if (repeat % 3 == 0) values[random.between(0, count - 1)] = MOST;
        if (repeat % 3 == 0) values[random.between(0, count - 1)] = LEAST;
        const std::vector<int> want = {ONE.ranked(values.data(), count, rank)};
        const std::vector<int> got = {table.ranked(values.data(), count, rank)};
        check.same(sizes_of({{"count", count}, {"rank", rank}, {"no.", repeat}}), want, got);
    }
    return check.passed();
}

bool ranks(const Kernels& table, Random& random) {
    Check check(table, "ranks");
    for (int repeat = 0; repeat < 1000; ++repeat) {
        const int count = random.between(0, BLOCK);
        const auto values = repeat % 2 ? random.integers(BLOCK, -2, 3) : random.words(BLOCK);
        std::vector<std::int32_t> want(static_cast<std::size_t>(count)), got(BLOCK);
        for (int i = 0; i < count; ++i) {
            for (int j = 0; j < count; ++j) want[i] += values[j] < values[i] || (values[j] == values[i] && j < i);
        }
        table.ranks(values.data(), count, got.data());
        got.resize(want.size());
        check.same(sizes_of({{"count", count}, {"no.", repeat}}), want, got);
    }
    return check.passed();
}

bool at_most(const Kernels& table, Random& random) {
    Check check(table, "at_most");
    for (int repeat = 0; repeat < 2000; ++repeat) {
        const auto values = repeat % 2 ? random.integers(BLOCK, -2, 3) : random.words(BLOCK);
        for (const std::int32_t limit : {values[random.between(0, BLOCK - 1)], MOST, LEAST, 0, -1}) {
            const std::vector<std::uint64_t> want = {ONE.at_most(values.data(), limit)};
            const std::vector<std::uint64_t> got = {table.at_most(values.data(), limit)};
            check.same(sizes_of({{"limit", limit}, {"no.", repeat}}), want, got);
        }
    }
    return check.passed();
}

// Ties are frequent; infinities of both signs.
std::vector<float> some_scores(Random& random) {
    std::vector<float> scores(BLOCK);
    for (float& score : scores) {
        const int kind = random.between(0, 20);
        score = kind == 0 ? INF : kind == 1 ? -INF : static_cast<float>(random.between(-9, 9));
    }
    return scores;
}

bool scores_within(const Kernels& table, Random& random) {
    Check check(table, "scores_within");
    for (int repeat = 0; repeat < 2000; ++repeat) {
        const int lanes = random.of(LANE_COUNTS);
        auto scores = some_scores(random);
        const float limit = scores[random.between(0, BLOCK - 1)];
        if (random.between(0, 3) == 0) scores[random.between(0, BLOCK - 1)] = NOT_A_NUMBER;
        std::uint64_t want = 0;
        for (int b = 0; b < lanes; ++b) want |= std::uint64_t{!(scores[b] > limit)} << b;
        check.same(sizes_of({{"lanes", lanes}, {"no.", repeat}}), std::vector<std::uint64_t>{want},
                   std::vector<std::uint64_t>{table.scores_within(scores.data(), lanes, limit)});
    }
    return check.passed();
}

bool apart(const Kernels& table, Random& random) {
    Check check(table, "apart");
    for (int repeat = 0; repeat < 2000; ++repeat) {
        const int width = random.between(1, 20), cells = random.between(1, 12), count = random.between(0, cells);
        const auto image = random.halves(static_cast<std::size_t>(cells * width), repeat % 2 ? 32767 : 300);
        const auto values = random.halves(static_cast<std::size_t>(count * width) + 1, repeat % 2 ? 32767 : 300);
        std::vector<std::int32_t> chosen(static_cast<std::size_t>(count));
        for (int i = 0; i < count; ++i) chosen[i] = i + (random.between(0, 2) ? 0 : random.between(0, cells - 1 - i));
        const auto of = [&](const Kernels& with) -> std::vector<std::int32_t> {
            return {with.apart(image.data(), chosen.data(), values.data(), count, width)};
        };
        check.same(sizes_of({{"count", count}, {"width", width}, {"no.", repeat}}), of(ONE), of(table));
    }
    return check.passed();
}

bool byte_tile(const Kernels& table, Random& random) {
    Check check(table, "byte_tile");
    if (!table.byte_tile) check.wrong("", "is missing");
    for (int repeat = 0; repeat < 600 && table.byte_tile; ++repeat) {
        const int queries = random.of({16, 32, 64}), lanes = random.between(1, 40), tile = lanes + random.between(0, 9);
        const int codes = 16 * random.between(1, 3), cells = random.between(1, 9), count = random.between(0, cells);
        std::vector<std::uint16_t> code(static_cast<std::size_t>(cells * tile)), listed(lanes);
        for (auto& one : code) one = static_cast<std::uint16_t>(random.between(0, codes - 1));
        for (auto& one : listed) one = static_cast<std::uint16_t>(random.between(0, tile - 1));
        const bool some = random.between(0, 1), first = random.between(0, 1);
        const auto bytes = [&](int size, int most) {
            std::vector<std::uint8_t> made(static_cast<std::size_t>(size));
            for (auto& byte : made) byte = static_cast<std::uint8_t>(random.between(0, most));
            return made;
        };
        const auto rows = bytes(count * codes * queries + 1, repeat % 2 ? 255 : 60);
        const auto chosen = random.integers(static_cast<std::size_t>(count), 0, cells - 1);
        auto sums = bytes(lanes * queries, 255);
        auto expected = sums;
        for (int b = 0; b < lanes; ++b) {
            for (int q = 0; q < queries; ++q) {
                int sum = first ? 0 : expected[b * queries + q];
                for (int i = 0; i < count; ++i) {
                    const int of = code[chosen[i] * tile + (some ? listed[b] : b)];
                    sum += rows[(i * codes + of) * queries + q];
                }
                expected[b * queries + q] = static_cast<std::uint8_t>(std::min(sum, 255));
            }
        }
        table.byte_tile({code.data(), some ? listed.data() : nullptr, chosen.data(), rows.data(), count, tile, lanes,
                         codes, queries, first, sums.data()});
        check.same(sizes_of({{"queries", queries},
                             {"lanes", lanes},
                             {"count", count},
                             {"first", first},
                             {"listed", some},
                             {"no.", repeat}}),
                   expected, sums);
    }
    return check.passed();
}

bool byte_limits(const Kernels& table, Random& random) {
    Check check(table, "byte_limits");
    if (!table.byte_limits) check.wrong("", "is missing");
    for (int repeat = 0; repeat < 300 && table.byte_limits; ++repeat) {
        const int queries = random.of({16, 32, 64}), lanes = random.between(0, 40);
        const auto bytes = [&](int size, int most) {
            std::vector<std::uint8_t> made(static_cast<std::size_t>(size) + 1);
            for (auto& byte : made) byte = static_cast<std::uint8_t>(random.between(0, most));
            return made;
        };
        const auto sums = bytes(lanes * queries, 255), limits = bytes(3 * queries, 255), levels = bytes(lanes, 2);
        std::vector<std::uint64_t> found(static_cast<std::size_t>(lanes), ~std::uint64_t{0}), wanted(found.size());
        for (int b = 0; b < lanes; ++b) {
            for (int q = 0; q < queries; ++q) {
                wanted[b] |= std::uint64_t{sums[b * queries + q] <= limits[levels[b] * queries + q]} << q;
            }
        }
        table.byte_limits({sums.data(), levels.data(), limits.data(), lanes, queries, found.data()});
        check.same(sizes_of({{"queries", queries}, {"lanes", lanes}, {"no.", repeat}}), wanted, found);
    }
    return check.passed();
}

bool byte_rows(const Kernels& table, Random& random) {
    Check check(table, "byte_rows");
    if (!table.byte_rows) check.wrong("", "is missing");
    for (int repeat = 0; repeat < 200 && table.byte_rows; ++repeat) {
        const int codes = random.between(1, 70), padded = (codes + 15) / 16 * 16, stride = random.of({16, 32, 64});
        std::vector<std::vector<std::int32_t>> rows(16);
        const std::int32_t* pointers[16];
        float scales[16];
        std::vector<std::uint8_t> bytes(static_cast<std::size_t>(16 * padded));
        std::vector<std::uint8_t> out(static_cast<std::size_t>(padded * stride)), expected(out.size());
        for (int q = 0; q < 16; ++q) {
            rows[q] = random.integers(static_cast<std::size_t>(codes), 0, random.between(0, 1) ? MOST - 1 : 300);
            pointers[q] = rows[q].data();
            scales[q] =
                random.between(0, 9) ? std::ldexp(1.0f + random.floats(1, 0.1f)[0], random.between(-31, 0)) : INF;
            for (int code = 0; code < codes; ++code) {
                const float scaled = static_cast<float>(rows[q][code]) * scales[q];
                expected[code * stride + q] = static_cast<std::uint8_t>(scaled < 255.0f ? scaled : 255.0f);
            }
        }
        table.byte_rows(pointers, scales, codes, padded, bytes.data(), out.data(), stride);
        check.same(sizes_of({{"codes", codes}, {"stride", stride}, {"no.", repeat}}), expected, out);
    }
    return check.passed();
}

bool scaled_bytes(const Kernels& table, Random& random) {
    Check check(table, "scaled_bytes");
    for (int repeat = 0; repeat < 200; ++repeat) {
        const auto values = random.integers(random.between(0, 300), 0, random.between(0, 1) ? MOST - 1 : 300);
        const float scale = random.between(0, 9) ? std::ldexp(1.0f, random.between(-31, 0)) * 1.37f : INF;
        const auto most = static_cast<float>(random.between(0, 255));
        std::vector<std::uint8_t> out(values.size()), expected;
        for (const std::int32_t value : values) {
            const float scaled = static_cast<float>(value) * scale;
            expected.push_back(static_cast<std::uint8_t>(scaled < most ? scaled : most));
        }
        table.scaled_bytes(values.data(), scale, most, static_cast<int>(values.size()), out.data());
        check.same(sizes_of({{"count", static_cast<int>(values.size())}, {"no.", repeat}}), expected, out);
    }
    return check.passed();
}

// Only tables that look up GROUPS bytes at once have it.
bool group_tile(const Kernels& table, Random& random) {
    Check check(table, "group_tile");
    for (int repeat = 0; repeat < 300 && table.group_tile; ++repeat) {
        const int cells = random.between(1, 9), count = random.between(0, 257), lanes = random.between(1, GROUPED);
        const bool halves = random.between(0, 1);
        const int width = halves ? 2 * GROUPS : GROUPS;
        const auto bytes = [&](int size) {
            std::vector<std::uint8_t> made(static_cast<std::size_t>(size) + 1);
            for (auto& byte : made) byte = static_cast<std::uint8_t>(random.between(repeat % 2 ? 250 : 0, 255));
            return made;
        };
        auto groups = bytes(cells * GROUPED);
        for (auto& group : groups) group = static_cast<std::uint8_t>(random.between(0, 2 * GROUPS - 1));
        const auto rows = bytes(count * width);
        const auto chosen = random.integers(static_cast<std::size_t>(count), 0, cells - 1);
        const auto less = random.integers(GROUPED, 0, 1 << random.between(0, 20));
        const bool any = random.between(0, 1);
        const auto limit = static_cast<float>(random.between(-1000, 1 << 20)), scale = random.of({1, 2, 3}) / 64.0f;
        std::vector<std::uint16_t> sums(GROUPED), expected(GROUPED);
        std::vector<std::uint64_t> found(GROUPED / 64), wanted(GROUPED / 64);
        for (int b = 0; b < lanes; ++b) {
            const int place = b / 64 * 64 + b % 32 * 2 + b % 64 / 32;
            int sum = 0;
            for (int i = 0; i < count; ++i)
                sum += rows[i * width + (groups[chosen[i] * GROUPED + place] & (width - 1))];
            expected[b] = static_cast<std::uint16_t>(sum);
            const float most = (limit + static_cast<float>(any ? less[b] : 0)) * scale + 1.0f;
            wanted[b / 64] |= std::uint64_t{static_cast<float>(sum) <= most} << b % 64;
        }
        table.group_tile({groups.data(), chosen.data(), rows.data(), any ? less.data() : nullptr, count, lanes, halves,
                          limit, scale, sums.data(), found.data()});
        std::fill(sums.begin() + lanes, sums.end(), std::uint16_t{0});
        std::fill(found.begin() + (lanes + 63) / 64, found.end(), std::uint64_t{0});
        const auto sizes = sizes_of({{"count", count}, {"lanes", lanes}, {"halves", halves}, {"no.", repeat}});
        check.same(sizes, expected, sums);
        check.same(sizes, wanted, found);
    }
    return check.passed();
}

// Codebook rows, codes of which one in a while is none, and the corners that a level reads.
struct Level {
    int full, rows, stride;
    std::uint32_t mask = 0;
    std::vector<float> book;
    std::vector<Corners> corners;

    Level(Random& random, int width)
        : full(random.between(1, 6)), rows(random.between(1, 20)), stride((width + 7) / 8 * 8) {
        while (mask + 1 < static_cast<std::uint32_t>(rows)) mask = 2 * mask + 1;
        const auto values = random.halves((static_cast<std::size_t>(mask) + 1) * stride, 1023);
        book.assign(values.begin(), values.end());
        for (int i = random.between(0, 12); i > 0; --i) {
            const auto at = random.integers(4, 0, full * full - 1), parts = random.integers(2, 0, 16);
            corners.push_back({at[0], at[1], at[2], at[3], parts[0] / 16.0, parts[1] / 16.0});
        }
    }

    std::vector<std::int16_t> codes(Random& random) const {
        const int last = random.between(0, 9) ? rows - 1 : rows;
        const auto found = random.integers(static_cast<std::size_t>(full * full), 0, last);
        return {found.begin(), found.end()};
    }
};

bool level_cells(const Kernels& table, Random& random) {
    Check check(table, "level_cells");
    for (int repeat = 0; repeat < 60; ++repeat) {
        const int width = random.of({1, 5, 7, 8, 9, 16, 17});
        const Level level(random, width);
        const auto codes = level.codes(random);
        const int count = static_cast<int>(level.corners.size());
        const auto of = [&](const Kernels& with) {
            std::vector<std::int16_t> out(static_cast<std::size_t>(count * width) + 1);
            out.back() = with.level_cells({codes.data(), level.corners.data(), level.book.data(), count, level.rows,
                                           level.stride, width, level.mask, out.data()});
            return out;
        };
        check.same(sizes_of({{"count", count}, {"width", width}, {"no.", repeat}}), of(ONE), of(table));
    }
    return check.passed();
}

bool level_block(const Kernels& table, Random& random) {
    Check check(table, "level_block");
    for (int repeat = 0; repeat < 12; ++repeat) {
        const Level level(random, 8);
        const int count = static_cast<int>(level.corners.size()), pairs = random.between(1, 4);
        const int lanes = random.between(1, BLOCK);
        std::vector<std::vector<std::int16_t>> codes;
        std::vector<const std::int16_t*> images;
        for (int lane = 0; lane < lanes; ++lane) codes.push_back(level.codes(random));
        for (const auto& one : codes) images.push_back(one.data());
        const auto before = random.halves(static_cast<std::size_t>(count * pairs * BLOCK * 2), 1023);
        const auto of = [&](const Kernels& with) {
            auto bank = before;
            std::vector<std::int32_t> out(static_cast<std::size_t>(count * BLOCK));
            const bool right = with.level_block({images.data(), level.corners.data(), level.book.data(), count,
                                                 level.rows, pairs, lanes, level.mask, bank.data(), out.data()});
            out.insert(out.end(), bank.begin(), bank.end());
            out.push_back(right);
            return out;
        };
        check.same(sizes_of({{"count", count}, {"pairs", pairs}, {"lanes", lanes}, {"no.", repeat}}), of(ONE),
                   of(table));
    }
    return check.passed();
}

bool norms(const Kernels& table, Random& random) {
    Check check(table, "norms");
    for (int repeat = 0; repeat < 300; ++repeat) {
        const int count = random.between(0, 20), width = random.between(1, 40);
        const auto values = random.halves(static_cast<std::size_t>(count * width), 32767);
        std::vector<std::int32_t> out(static_cast<std::size_t>(count)), expected(out.size());
        ONE.norms(values.data(), count, width, expected.data());
        table.norms(values.data(), count, width, out.data());
        check.same(sizes_of({{"count", count}, {"width", width}, {"no.", repeat}}), expected, out);
    }
    return check.passed();
}

bool resize_row(const Kernels& table, Random& random) {
    Check check(table, "resize_row");
    for (int repeat = 0; repeat < 300; ++repeat) {
        const int from = random.between(1, 20), side = random.between(1, 30), width = random.of({1, 2, 3, 4, 5, 8, 16});
        const auto top = random.halves(static_cast<std::size_t>(from * width), 32767);
        const auto low = random.halves(static_cast<std::size_t>(from * width), 32767);
        const auto i0 = random.integers(static_cast<std::size_t>(side), 0, from - 1);
        const auto i1 = random.integers(static_cast<std::size_t>(side), 0, from - 1);
        const auto f = random.integers(static_cast<std::size_t>(side), 0, 255);
        const int fy = random.between(0, 255);
        std::vector<std::int32_t> own(static_cast<std::size_t>(from * width));
        const auto of = [&](const Kernels& with) {
            std::vector<std::int16_t> out(static_cast<std::size_t>(side * width));
            with.resize_row(top.data(), low.data(), fy, from, side, width, i0.data(), i1.data(), f.data(), own.data(),
                            out.data());
            return out;
        };
        check.same(sizes_of({{"from", from}, {"side", side}, {"width", width}, {"no.", repeat}}), of(ONE), of(table));
    }
    return check.passed();
}

bool words(const Kernels& table, Random& random) {
    Check check(table, "words");
    for (int repeat = 0; repeat < 100; ++repeat) {
        const int count = random.between(0, 50);
        const auto high = static_cast<std::uint32_t>(random.word()), image = static_cast<std::uint32_t>(random.word());
        const std::uint64_t seed = std::uint64_t{high} << 32 | static_cast<std::uint32_t>(random.word());
        const auto first = static_cast<std::uint32_t>(random.word());
        const auto of = [&](const Kernels& with) {
            std::vector<std::uint32_t> out(static_cast<std::size_t>(count));
            with.words(seed, image, first, count, out.data());
            return out;
        };
        check.same(sizes_of({{"count", count}, {"no.", repeat}}), of(ONE), of(table));
    }
    return check.passed();
}

bool direct(const Kernels& table, Random& random) {
    Check check(table, "direct");
    for (int repeat = 0; repeat < 1000; ++repeat) {
        const std::int64_t width = random.of(WIDTHS);
        const auto size = static_cast<std::size_t>(width);
        const int kind = random.between(0, 3);
        const auto a = row_values(random, size, kind, static_cast<float*>(nullptr)), b = random.floats(size, 1.0f);
        auto weight = random.floats(size, 1.0f);
        for (auto& one : weight) one = random.between(0, 1) ? 0.0f : one;
        for (const float* used : {static_cast<const float*>(nullptr), static_cast<const float*>(weight.data())}) {
            const double want = ONE.direct(a.data(), b.data(), used, width);
            const double got = table.direct(a.data(), b.data(), used, width);
            if (got == want || (std::isnan(got) && std::isnan(want))) continue;
            check.wrong(sizes_of({{"width", width}, {"weighted", used != nullptr}, {"no.", repeat}}),
                        "is " + std::to_string(got) + ", not " + std::to_string(want));
        }
    }
    return check.passed();
}

bool block_sums(const Kernels& table, Random& random) {
    Check check(table, "block_sums");
    for (int repeat = 0; repeat < 300; ++repeat) {
        const int groups = random.between(1, 9), own = random.of({1, 2, 3, 4, 5, 7, 8, 14, 32});
        const std::int64_t blocks = random.between(0, 5), block = random.between(1, 9);
        const auto channels = static_cast<std::size_t>(groups * own);
        const auto pixels = random.floats(static_cast<std::size_t>(blocks * block) * channels, 3.0f);
        const auto centre = random.floats(channels, 1.0f);
        std::vector<float> columns(channels);
        for (const float* about : {static_cast<const float*>(nullptr), static_cast<const float*>(centre.data())}) {
            const auto by = [&](const Kernels& kernels) {
                std::vector<double> out(static_cast<std::size_t>(blocks * groups));
                kernels.block_sums(
                    {pixels.data(), about, blocks, block, groups * own, groups, columns.data(), out.data()});
                return out;
            };
            check.same(sizes_of({{"blocks", blocks}, {"block", block}, {"groups", groups}, {"own", own}}), by(ONE),
                       by(table));
        }
    }
    return check.passed();
}

bool scaled(const Kernels& table, Random& random) {
    Check check(table, "scaled");
    for (int repeat = 0; repeat < 300; ++repeat) {
        const int channels = random.between(1, 70), count = random.between(0, 9);
        const auto width = static_cast<std::size_t>(channels);
        const auto pixels = random.floats(width * static_cast<std::size_t>(count), 3.0f);
        const auto centre = random.floats(width, 1.0f), scale = random.floats(width, 2.0f);
        const auto shift = random.floats(width, 1.0f);
        const auto by = [&](const Kernels& kernels) {
            std::vector<float> out(pixels.size());
            kernels.scaled({pixels.data(), centre.data(), scale.data(), shift.data(), count, channels, out.data()});
            return out;
        };
        check.same(sizes_of({{"channels", channels}, {"count", count}}), by(ONE), by(table));
    }
    return check.passed();
}

// expected: the bits of a float32 for those of a narrower number.
template <class Expected>
bool widens(const Kernels& table, Random& random, const char* name, decltype(Kernels::widen) kernel,
            const Expected& expected) {
    Check check(table, name);
    for (int repeat = 0; repeat < 300; ++repeat) {
        const int count = random.between(0, 100);
        const auto drawn = random.integers(static_cast<std::size_t>(count), 0, 0xFFFF);
        const std::vector<std::uint16_t> values(drawn.begin(), drawn.end());
        std::vector<float> out(values.size());
        std::vector<std::uint32_t> want, got(values.size());
        for (const std::uint16_t value : values) want.push_back(expected(value));
        kernel(values.data(), count, out.data());
        if (count) std::memcpy(got.data(), out.data(), got.size() * sizeof(float));
        check.same(sizes_of({{"count", count}, {"no.", repeat}}), want, got);
    }
    return check.passed();
}

bool widen(const Kernels& table, Random& random) {
    const auto expected = [](std::uint16_t value) { return std::uint32_t{value} << 16; };
    return widens(table, random, "widen", table.widen, expected);
}

// By the definition of float16.
bool widen_half(const Kernels& table, Random& random) {
    const auto expected = [](std::uint16_t value) {
        const int exponent = value >> 10 & 31, fraction = value & 1023;
        float number =
            std::ldexp(static_cast<float>(exponent ? fraction + 1024 : fraction), std::max(1, exponent) - 25);
        if (exponent == 31) number = std::numeric_limits<float>::infinity();
        std::uint32_t bits;
        std::memcpy(&bits, &number, sizeof bits);
        if (exponent == 31) bits |= static_cast<std::uint32_t>(fraction) << 13;
        return bits | static_cast<std::uint32_t>(value >> 15) << 31;
    };
    return widens(table, random, "widen_half", table.widen_half, expected);
}

// Rounded as the nearest of the two neighbours, the even one of a tie.
bool narrow(const Kernels& table, Random& random) {
    Check check(table, "narrow");
    for (int repeat = 0; repeat < 300; ++repeat) {
        const int count = random.between(0, 100);
        std::vector<float> values(static_cast<std::size_t>(count));
        std::vector<std::uint16_t> want, got(values.size());
        for (float& value : values) {
            const std::uint32_t high = static_cast<std::uint32_t>(random.between(0, 0xFFFF)) << 16;
            const std::uint32_t low = random.of({0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF});
            const std::uint32_t bits = high | low;
            std::memcpy(&value, &bits, sizeof value);
            const bool up = low > 0x8000 || (low == 0x8000 && (high >> 16 & 1));
            want.push_back(std::isnan(value) ? 0x7FC0 : static_cast<std::uint16_t>((high >> 16) + up));
        }
        table.narrow(values.data(), count, got.data());
        check.same(sizes_of({{"count", count}, {"no.", repeat}}), want, got);
    }
    return check.passed();
}

bool direct_rows(const Kernels& table, Random& random) {
    Check check(table, "direct_rows");
    for (int repeat = 0; repeat < 300; ++repeat) {
        const std::int64_t width = repeat % 20 ? random.of(WIDTHS) : 2049;
        const int count = random.between(0, 7);
        const auto a = random.floats(static_cast<std::size_t>(width), 1.0f);
        const auto b = random.floats(static_cast<std::size_t>(width * count), 1.0f);
        auto weight = random.floats(static_cast<std::size_t>(width), 1.0f);
        for (auto& one : weight) one = random.between(0, 1) ? 0.0f : one;
        std::vector<const float*> rows(static_cast<std::size_t>(count));
        for (int i = 0; i < count; ++i) rows[i] = b.data() + i * width;
        for (const float* used : {static_cast<const float*>(nullptr), static_cast<const float*>(weight.data())}) {
            std::vector<double> want(rows.size()), got(rows.size());
            for (int i = 0; i < count; ++i) want[i] = ONE.direct(a.data(), rows[i], used, width);
            table.direct_rows(a.data(), rows.data(), used, width, count, got.data());
            check.same(sizes_of({{"width", width}, {"count", count}, {"no.", repeat}}), want, got);
        }
    }
    return check.passed();
}

bool direct_narrow(const Kernels& table, Random& random) {
    Check check(table, "direct_narrow");
    for (int repeat = 0; repeat < 300; ++repeat) {
        const int width = random.between(0, NARROW), padded = 8 * random.between(1, 4);
        const auto a = random.floats(static_cast<std::size_t>(width) + 1, 1.0f);
        const auto b = random.floats(static_cast<std::size_t>(width * padded) + 1, 1.0f);
        std::vector<double> lanes(b.size()), want(static_cast<std::size_t>(padded)), got(want.size());
        for (int r = 0; r < padded; ++r) {
            for (int i = 0; i < width; ++i) lanes[i * padded + r] = static_cast<double>(b[r * width + i]);
            want[r] = ONE.direct(a.data(), b.data() + r * width, nullptr, width);
        }
        table.direct_narrow(a.data(), lanes.data(), width, padded, got.data());
        check.same(sizes_of({{"width", width}, {"padded", padded}, {"no.", repeat}}), want, got);
    }
    return check.passed();
}

// As float_block finds in each of the blocks, the limits of which are the last that it lowers.
bool float_blocks(const Kernels& table, Random& random) {
    Check check(table, "float_blocks");
    for (int repeat = 0; repeat < 300; ++repeat) {
        const std::int64_t width = random.of(WIDTHS);
        const int lanes = random.of(LANE_COUNTS), queries = random.between(1, 15),
                  count = random.between(1, MOST_BLOCKS);
        const auto bank = random.floats(static_cast<std::size_t>(count * width * BLOCK) + 1, 1.0f);
        auto norms = random.floats(static_cast<std::size_t>(count) * BLOCK, 2.0f);
        std::fill(norms.end() - BLOCK + lanes, norms.end(), INF);
        const auto values = random.floats(static_cast<std::size_t>(queries * width) + 1, 1.0f);
        const std::vector<float> reach(queries, repeat % 3 ? 0.1f : INF);
        const std::vector<float> before(queries, repeat % 4 ? INF : random.floats(1, 3.0f)[0]);
        std::vector<float> limits = before, want = before, scores(queries * BLOCK);
        std::vector<std::uint32_t> found(queries, ~0u);
        std::vector<std::int32_t> only(queries, -7), want_only(queries, -1);
        std::vector<float> least(queries), want_least(queries, INF);
        std::vector<std::uint64_t> lanes_found(queries);
        FloatBlock block{};
        block.width = width;
        block.queries = queries;
        block.query = values.data();
        block.limits = want.data();
        block.found = lanes_found.data();
        block.scores = scores.data();
        block.reach_scale = 0.5f;
        block.reach_more = 0.25f;
        const auto at = [&](int b) {
            block.bank = bank.data() + b * width * BLOCK;
            block.norms = norms.data() + b * BLOCK;
            block.lanes = b + 1 < count ? BLOCK : lanes;
            table.float_block(block);
        };
        block.reach = reach.data();
        for (int b = 0; b < count; ++b) at(b);
        table.float_blocks({bank.data(), norms.data(), width, count, lanes, queries, values.data(), limits.data(),
                            found.data(), only.data(), least.data(), reach.data(), block.reach_scale,
                            block.reach_more});
        const std::string sizes = sizes_of({{"width", width}, {"count", count}, {"queries", queries}, {"no.", repeat}});
        check.same(sizes, want, limits);
        block.reach = nullptr;
        std::vector<int> rows_found(queries, 0);
        for (int b = 0; b < count; ++b) {
            at(b);
            for (int q = 0; q < queries; ++q) {
                if (has(found[q], b) != (lanes_found[q] != 0)) check.wrong(sizes, "block " + std::to_string(b));
                rows_found[q] += __builtin_popcountll(lanes_found[q]);
                if (lanes_found[q]) want_only[q] = b * BLOCK + __builtin_ctzll(lanes_found[q]);
                for (int lane = 0; lane < block.lanes; ++lane) {
                    want_least[q] = std::min(want_least[q], scores[q * BLOCK + lane]);
                }
            }
        }
        for (int q = 0; q < queries; ++q) {
            if (rows_found[q] > 1) want_only[q] = -1;
            if (rows_found[q] == 0) only[q] = want_only[q], least[q] = want_least[q];
        }
        check.same(sizes, want_only, only);
        check.same(sizes, want_least, least);
    }
    return check.passed();
}

// The nearest by direct(), of rows some of which are the same or nearly so, far from the origin or not. Several may be
// left open where there are more rows than are listed, but as a rule they are not.
bool few_rows(const Kernels& table, Random& random) {
    Check check(table, "few_rows");
    int open = 0, all = 0;
    for (int repeat = 0; repeat < 1500; ++repeat) {
        const std::int64_t width = std::max(1, random.of(WIDTHS));
        const int lanes =
            random.between(0, 2) ? random.of(LANE_COUNTS) : random.between(1, repeat % 50 ? 256 : MOST_FEW);
        const int k = random.between(0, 1) ? 1 : random.between(1, std::min(lanes, MOST_NEAREST));
        const int queries = random.between(1, 30), blocks = (lanes + BLOCK - 1) / BLOCK;
        const float scale = repeat % 5 == 0 ? 1e-22f : repeat % 5 == 1 ? 1e15f : 1.0f;
        const auto middle = random.floats(static_cast<std::size_t>(width), repeat % 3 ? 0.0f : 1000.0f * scale);
        auto rows = random.floats(static_cast<std::size_t>(lanes * width), scale);
        auto query = random.floats(static_cast<std::size_t>(queries * width), scale);
        for (int r = 1; r < lanes; ++r) {  // the same as another, but perhaps for one value
            if (random.between(0, 3)) continue;
            const int other = random.between(0, r - 1);
            std::copy_n(&rows[other * width], width, &rows[r * width]);
            if (random.between(0, 1)) rows[r * width + random.between(0, static_cast<int>(width) - 1)] *= 1.0f + 1e-6f;
        }
        for (int q = 0; q < queries; ++q) {  // on a row, or as odd as may be
            if (random.between(0, 3) == 0)
                std::copy_n(&rows[random.between(0, lanes - 1) * width], width, &query[q * width]);
        }
        for (std::size_t i = 0; i < rows.size(); ++i) rows[i] += middle[i % width];
        for (std::size_t i = 0; i < query.size(); ++i) query[i] += middle[i % width];
        std::vector<bool> odd(queries);
        for (int q = 0; q < queries; ++q) {
            odd[q] = random.between(0, 9) == 0;
            if (odd[q]) query[q * width] = random.between(0, 1) ? NOT_A_NUMBER : 1e30f;
        }
        std::vector<float> bank(static_cast<std::size_t>(blocks * width * BLOCK) + 1), norms(blocks * BLOCK, INF);
        std::vector<const float*> at(static_cast<std::size_t>(blocks * BLOCK), rows.data());
        for (int r = 0; r < lanes; ++r) at[r] = rows.data() + r * width;
        const double part = slack(width);
        double largest = 0.0;
        for (int b = 0; b < blocks; ++b) {
            const int some = std::min(BLOCK, lanes - b * BLOCK);
            double sums[BLOCK];
            table.pack_rows({at.data() + b * BLOCK, middle.data(), width, some, bank.data() + b * width * BLOCK, sums});
            for (int lane = 0; lane < some; ++lane) {
                norms[b * BLOCK + lane] = static_cast<float>(sums[lane] * (1 - part));
                largest = std::max(largest, sums[lane]);
            }
        }
        const auto slots = static_cast<std::size_t>(queries * k);
        std::vector<float> placed(static_cast<std::size_t>(PLACED * width)), distances(slots), want_distances(slots);
        std::vector<std::int32_t> nearest(slots, -7), want(slots, -1);
        table.few_rows({bank.data(), norms.data(), middle.data(), at.data(), width, lanes, queries, k, query.data(),
                        static_cast<float>(3.3 * part), static_cast<float>(3 * part * largest + 2 * TINY), 1e36f,
                        placed.data(), nearest.data(), distances.data()});
        for (int q = 0; q < queries; ++q) {
            const auto first = static_cast<std::size_t>(q * k);
            all += k > 1 && !odd[q];
            if (nearest[first] == -1 && (odd[q] || (k > 1 && lanes > LISTED))) {
                open += !odd[q];
                std::fill_n(nearest.begin() + q * k, k, -1);
                std::fill_n(distances.begin() + q * k, k, 0.0f);
                continue;
            }
            std::vector<std::pair<float, std::int32_t>> apart;
            for (int r = 0; r < lanes && !odd[q]; ++r) {
                apart.emplace_back(static_cast<float>(ONE.direct(&query[q * width], at[r], nullptr, width)), r);
            }
            std::sort(apart.begin(), apart.end());
            for (std::size_t i = 0; i < static_cast<std::size_t>(k) && !odd[q]; ++i) {
                std::tie(want_distances[first + i], want[first + i]) = apart[i];
            }
        }
        const std::string sizes =
            sizes_of({{"width", width}, {"lanes", lanes}, {"queries", queries}, {"k", k}, {"no.", repeat}});
        check.same(sizes, want, nearest);
        check.same(sizes, want_distances, distances);
    }
    if (open > all / 10) check.wrong("all", std::to_string(open) + " of " + std::to_string(all) + " left open");
    return check.passed();
}

// The need-th least of the least values of groups.
bool reached(const Kernels& table, Random& random) {
    Check check(table, "reached");
    for (int repeat = 0; repeat < 2000; ++repeat) {
        const int need = random.between(1, 26), count = random.between(std::min(need, 24), 300);
        const auto groups = static_cast<std::size_t>(need <= 12 ? 16 : 32);
        auto scores = random.floats(static_cast<std::size_t>(count), 1.0f);
        for (float& score : scores) {
            if (random.between(0, 3) == 0) score = scores[0];  // equal ones, and perhaps many
        }
        std::vector<float> least(groups, INF);
        for (std::size_t i = 0; i < scores.size(); ++i) least[i % groups] = std::min(least[i % groups], scores[i]);
        std::sort(least.begin(), least.end());
        scores.resize(static_cast<std::size_t>((count + 15) / 16 * 16), INF);
        const std::vector<float> want{need > 24 ? INF : least[static_cast<std::size_t>(need - 1)]};
        check.same(sizes_of({{"need", need}, {"count", count}, {"no.", repeat}}), want,
                   std::vector<float>{table.reached(scores.data(), count, need)});
    }
    return check.passed();
}

// Among them sums that end half way between two of float32, or just above it, as float64 happens to be rounded on the
// way.
bool distances(const Kernels& table, Random& random) {
    Check check(table, "distances");
    for (int repeat = 0; repeat < 600; ++repeat) {
        const std::int64_t width = repeat % 20 ? random.of(WIDTHS) : 2049;
        const int count = random.between(0, 33), queries = random.between(1, 9);
        const float scale = repeat % 6 == 0 ? 1e-22f : repeat % 6 == 2 ? 1e18f : 1.0f;
        auto query = random.floats(static_cast<std::size_t>(queries * width) + 1, scale);
        auto rows = random.floats(static_cast<std::size_t>(count * width) + 1, scale);
        if (repeat % 2 && width > 0) {  // 4097^2 is odd and beyond 2^24; 2^-30 is a quarter of its last bit in float64
            std::fill(query.begin(), query.end(), 0.0f);
            std::fill(rows.begin(), rows.end(), 0x1p-15f);
            for (int r = 0; r < count; ++r) rows[r * width + random.between(0, static_cast<int>(width) - 1)] = 4097.0f;
        }
        std::vector<const float*> at(static_cast<std::size_t>(count));
        for (int r = 0; r < count; ++r) at[r] = rows.data() + r * width;
        std::vector<float> want(static_cast<std::size_t>(queries * count)), got(want.size()), each(want.size());
        table.distances({query.data(), at.data(), width, queries, count, got.data()});
        for (int q = 0; q < queries; ++q) {
            for (int r = 0; r < count; ++r) {
                const float* const own = query.data() + q * width;
                want[q * count + r] = static_cast<float>(ONE.direct(own, at[r], nullptr, width));
                each[q * count + r] = table.distance(own, at[r], width);
            }
        }
        const std::string sizes = sizes_of({{"width", width}, {"count", count}, {"queries", queries}, {"no.", repeat}});
        check.same(sizes, want, got);
        check.same(sizes, want, each);
    }
    return check.passed();
}

bool norms_below(const Kernels& table, Random& random) {
    Check check(table, "norms_below");
    for (int repeat = 0; repeat < 300; ++repeat) {
        std::vector<double> sums(BLOCK);
        for (double& sum : sums) sum = std::fabs(random.floats(1, 1.0f)[0]);
        bool below = true;
        double most = 0.0;
        for (const double odd : {4.0, static_cast<double>(NOT_A_NUMBER), static_cast<double>(INF)}) {
            if (random.between(0, 5)) continue;
            sums[random.between(0, BLOCK - 1)] = odd;
        }
        std::vector<float> norms(BLOCK), want(BLOCK);
        for (int b = 0; b < BLOCK; ++b) {
            below = below && sums[b] < 4.0;
            want[b] = static_cast<float>(sums[b] * 0.75);
            most = std::max(most, sums[b] * 0.75);
        }
        float largest = -1.0f;
        const std::string sizes = sizes_of({{"no.", repeat}});
        if (table.norms_below(sums.data(), 0.75, 4.0, norms.data(), &largest) != below) check.wrong(sizes, "below?");
        if (!below) continue;
        check.same(sizes, want, norms);
        check.same(sizes, std::vector<float>{static_cast<float>(most)}, std::vector<float>{largest});
    }
    return check.passed();
}

bool narrow_rows(const Kernels& table, Random& random) {
    Check check(table, "narrow_rows");
    for (int repeat = 0; repeat < 300; ++repeat) {
        const int width = random.between(2, 4);
        auto rows = random.floats(static_cast<std::size_t>(width * BLOCK), 1.0f);
        const auto centre = random.floats(static_cast<std::size_t>(width), 1.0f);
        for (const float odd : {1e3f, NOT_A_NUMBER, INF}) {
            if (random.between(0, 5) == 0) rows[random.between(0, width * BLOCK - 1)] = odd;
        }
        std::vector<float> bank(rows.size()), want(rows.size()), norms(BLOCK);
        float largest = -1.0f;
        const bool got =
            table.narrow_rows({rows.data(), centre.data(), width, 0.75f, 1e4f, bank.data(), norms.data(), &largest});
        const std::string sizes = sizes_of({{"width", width}, {"no.", repeat}});
        bool below = true;
        for (int b = 0; b < BLOCK; ++b) {
            double sum = 0.0;
            for (int i = 0; i < width; ++i) {
                const float value = want[i * BLOCK + b] = rows[b * width + i] - centre[i];
                sum += static_cast<double>(value) * value;
            }
            below = below && sum < 1e4;
            if (std::fabs(norms[b] - 0.75 * sum) > 0.75 * sum * width * 0x1p-23) check.wrong(sizes, "another norm");
        }
        if (got != below) check.wrong(sizes, "below?");
        if (!below) continue;
        check.same(sizes, want, bank);
        check.same(sizes, {*std::max_element(norms.begin(), norms.end())}, std::vector<float>{largest});
    }
    return check.passed();
}

bool pack_rows(const Kernels& table, Random& random) {
    Check check(table, "pack_rows");
    for (int repeat = 0; repeat < 300; ++repeat) {
        const std::int64_t width = random.of(WIDTHS);
        const auto values = random.floats(static_cast<std::size_t>(width * BLOCK) + 1, repeat % 3 ? 1.0f : 1e20f);
        const auto centre = random.floats(static_cast<std::size_t>(width) + 1, 1.0f);
        const float* rows[BLOCK];
        const int lanes = random.of(LANE_COUNTS);
        for (int b = 0; b < BLOCK; ++b) rows[b] = values.data() + random.between(0, BLOCK - 1) * width;
        const auto of = [&](const Kernels& with, std::vector<double>& sums) {
            std::vector<float> bank(static_cast<std::size_t>(width * BLOCK) + 1);
            with.pack_rows({rows, centre.data(), width, lanes, bank.data(), sums.data()});
            for (std::int64_t i = 0; i < width; ++i) {
                for (int b = lanes; b < BLOCK; ++b) {
                    if (bank[i * BLOCK + b] != 0.0f) check.wrong("beyond the rows", std::to_string(lanes));
                }
            }
            return bank;
        };
        std::vector<double> want(BLOCK), got(BLOCK);
        const std::string sizes = sizes_of({{"width", width}, {"no.", repeat}});
        check.same(sizes, of(ONE, want), of(table, got));
        for (int b = 0; b < BLOCK; ++b) {
            if (std::fabs(got[b] - want[b]) > 1e-12 * want[b]) check.wrong(sizes, "another norm");
        }
    }
    return check.passed();
}

bool place_row(const Kernels& table, Random& random) {
    Check check(table, "place_row");
    for (int repeat = 0; repeat < 300; ++repeat) {
        const std::int64_t width = random.of(WIDTHS);
        const auto values = random.floats(static_cast<std::size_t>(width), repeat % 3 ? 1.0f : 1e20f);
        const auto centre = random.floats(static_cast<std::size_t>(width), 1.0f);
        std::vector<float> want(static_cast<std::size_t>(width)), got = values;  // which may be the same as `values`
        const double norm = ONE.place_row(values.data(), centre.data(), width, want.data());
        const double own = table.place_row(got.data(), centre.data(), width, got.data());
        const std::string sizes = sizes_of({{"width", width}, {"no.", repeat}});
        check.same(sizes, want, got);
        if (std::fabs(own - norm) > 1e-12 * norm) check.wrong(sizes, "another norm");
    }
    return check.passed();
}

bool passes(const Kernels& table) {
    Random random(7);
    const bool right[] = {
        latent_block(table, random),
        float_block(table, random),
        float_blocks(table, random),
        few_rows(table, random),
        rounded_block(table, random),
        round_row(table, random),
        round_block(table, random),
        rows<float, float>(table, random, "float_rows", &Kernels::float_rows),
        rows<std::int16_t, std::int32_t>(table, random, "integer_rows", &Kernels::integer_rows),
        cell_rows(table, random),
        small_step(table, random),
        row_sums(table, random),
        least_sums(table, random),
        ranked(table, random),
        reached(table, random),
        ranks(table, random),
        scores_within(table, random),
        at_most(table, random),
        apart(table, random),
        byte_tile(table, random),
        byte_limits(table, random),
        byte_rows(table, random),
        scaled_bytes(table, random),
        group_tile(table, random),
        level_cells(table, random),
        level_block(table, random),
        norms(table, random),
        resize_row(table, random),
        words(table, random),
        direct(table, random),
        block_sums(table, random),
        scaled(table, random),
        widen(table, random),
        narrow(table, random),
        widen_half(table, random),
        direct_rows(table, random),
        direct_narrow(table, random),
        distances(table, random),  // and distance
        norms_below(table, random),
        pack_rows(table, random),
        narrow_rows(table, random),
        place_row(table, random),
    };
    static_assert((sizeof right + 1) * sizeof(void*) + sizeof(char*) == sizeof(Kernels), "every kernel is compared");
    bool all = true;
    for (const bool one : right) all = all && one;
    return all;
}

}  // namespace

int main() {
    bool all = true;
    for (const std::string& name : available()) {
        const bool passed = passes(kernels(name));
        std::printf("%s: %s\n", name.c_str(), passed ? "as one lane" : "differs");
        all = all && passed;
    }
    return all ? 0 : 1;
}
