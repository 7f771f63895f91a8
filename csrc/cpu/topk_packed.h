// masked_topk for many queries: a block of BLOCK bank rows is packed with the rows as lanes, and all queries pass over
// it, GROUP at a time. A shared mask only leaves out columns when packing. No masks of single queries.
//
// int16:   distances as in the latent domain of a scan, from |q|^2 + |b|^2 - 2 q.b modulo 2^32.
// float32: blocks are packed as b' = b - c, with c near the bank's mean, and screened in float32; what may be among the
//          k nearest is measured exactly, in a query's first block by the bounds that the block itself gives. |.|^2
//          over the marked entries, q' = q - c: rounding q', b', the norms and D products moves |q'|^2 + |b'|^2 - 2
//          q'.b' by less than slack(D) (|q'|^2 + |b'|^2). Rows are passed over only if beyond the k-th distance by more
//          than that and by float32's rounding of it. Rows and queries of norms near overflow, or NaN, are always
//          measured exactly.
//          With weights w a row is packed as w b', its norm is w |b'|^2, and a last column holds w against |q'|^2 of
//          the query, so that a score is w times the distance; the few more roundings are in slack(D + 8). Rows of
//          extreme weights are always measured exactly.

#pragma once

#include <type_traits>

#include "cpu/parallel.h"
#include "cpu/topk_parts.h"

namespace lpkernel {

// Columns that enter at all.
template <class T>
std::vector<std::int64_t> columns(const Topk<T>& job) {
    std::vector<std::int64_t> list;
    for (std::int64_t i = 0; i < job.width; ++i) {
        if (!job.shared_mask || job.shared_mask[i]) list.push_back(i);
    }
    return list;
}

class PackedIntegers {
  public:
    PackedIntegers(const Topk<std::int16_t>& job, const Kernels& run)
        : job_(job),
          run_(run),
          chosen_(columns(job)),
          pairs_(static_cast<std::int64_t>(chosen_.size() + 1) / 2),
          queries_(static_cast<std::size_t>(job.count * pairs_ * 2), 0),
          norms_(static_cast<std::size_t>(job.count), 0) {
        for (std::int64_t q = 0; q < job.count; ++q) {
            norms_[q] = pack(job.queries + q * job.width, queries_.data() + q * pairs_ * 2, 2);
        }
    }

    template <class Heap>
    void operator()(std::int64_t first_row, std::int64_t last_row, std::int64_t first, std::int64_t last,
                    Heap* heaps) const {
        Aligned<std::int16_t> bank(static_cast<std::size_t>(pairs_ * BLOCK * 2 + 1));
        std::fill_n(bank.data(), bank.size(), std::int16_t{0});
        std::int32_t norms[BLOCK];
        for (std::int64_t row = first_row; row < last_row; row += BLOCK) {
            const int lanes = static_cast<int>(std::min<std::int64_t>(BLOCK, last_row - row));
            std::fill_n(norms, BLOCK, 0);
            for (int lane = 0; lane < lanes; ++lane) {
                norms[lane] = pack(bank_row(job_, row + lane), bank.data() + lane * 2, BLOCK * 2);
            }
            for (std::int64_t q = first; q < last; q += GROUP) {
                compare(bank.data(), norms, row, lanes, q, std::min<std::int64_t>(GROUP, last - q),
                        heaps + (q - first));
            }
        }
    }

  private:
    // Values of a row at the chosen columns, as pairs; an odd last one is padded by 0. Returns the squared norm.
    std::int32_t pack(const std::int16_t* row, std::int16_t* to, std::int64_t stride) const {
        std::uint32_t norm = 0;
        for (std::size_t i = 0; i < chosen_.size(); ++i) {
            const std::int16_t value = row[chosen_[i]];
            to[static_cast<std::int64_t>(i / 2) * stride + static_cast<std::int64_t>(i % 2)] = value;
            norm += static_cast<std::uint32_t>(value * value);
        }
        return static_cast<std::int32_t>(norm);
    }

    template <class Heap>
    void compare(const std::int16_t* bank, const std::int32_t* norms, std::int64_t row, int lanes, std::int64_t q,
                 std::int64_t group, Heap* heaps) const {
        alignas(64) std::int32_t out[GROUP * BLOCK];
        std::uint64_t found[GROUP];
        const std::int32_t cell = 0;
        LatentBlock block{};
        block.bank = bank;
        block.norms = norms;
        block.cells = &cell;
        block.less = NOTHING;
        block.count = 1;
        block.pairs = static_cast<int>(pairs_);
        block.lanes = lanes;
        block.queries = static_cast<int>(group);
        block.out = out;
        block.found = found;
        for (std::int64_t i = 0; i < group; ++i) {
            block.query[i] = queries_.data() + (q + i) * pairs_ * 2;
            block.own_norms[i] = norms_.data() + q + i;
            block.limits[i] = heaps[i].limit();
        }
        run_.latent_block(block);
        for (std::int64_t i = 0; i < group; ++i) {
            for (std::uint64_t left = found[i]; left; left &= left - 1) {
                const int lane = __builtin_ctzll(left);
                heaps[i].push(out[i * BLOCK + lane], row + lane);
            }
        }
    }

    const Topk<std::int16_t>& job_;
    const Kernels& run_;
    std::vector<std::int64_t> chosen_;
    std::int64_t pairs_;
    std::vector<std::int16_t> queries_;
    std::vector<std::int32_t> norms_;
};

class PackedFloats {
  public:
    PackedFloats(const Topk<float>& job, const Kernels& run)
        : job_(job),
          run_(run),
          exact_(job, run),
          chosen_(columns(job)),
          width_(static_cast<std::int64_t>(chosen_.size())),
          columns_(width_ + (job.weights ? 1 : 0)),
          slack_(slack(job.weights ? width_ + 8 : width_)),
          centre_(static_cast<std::size_t>(width_), 0.0f),
          queries_(static_cast<std::size_t>(job.count * columns_)),
          reach_(static_cast<std::size_t>(job.count)),
          own_(static_cast<std::size_t>(job.count)) {
        place_centre();
        double heaviest = 1.0;
        for (std::int64_t a = 0; job.weights && a < job.allowed; ++a) {
            const double weight = weight_of(job, a);
            if (weight <= HEAVY) heaviest = std::max(heaviest, weight);
        }
        constexpr std::int64_t TOGETHER = 256;
        parallel((job.count + TOGETHER - 1) / TOGETHER, job.threads, [&](std::int64_t task) {
            const std::int64_t last = std::min(job.count, (task + 1) * TOGETHER);
            for (std::int64_t q = task * TOGETHER; q < last; ++q) place_query(q, heaviest);
        });
    }

    template <class Heap>
    void operator()(std::int64_t first_row, std::int64_t last_row, std::int64_t first, std::int64_t last,
                    Heap* heaps) const {
        Aligned<float> bank(static_cast<std::size_t>(columns_ * BLOCK + 1)), scores(TOGETHER * BLOCK);
        float norms[BLOCK];
        std::uint64_t found[TOGETHER];
        FloatBlock block{};
        block.bank = bank.data();
        block.norms = norms;
        block.width = columns_;
        block.found = found;
        block.scores = scores.data();
        std::vector<float> limits(static_cast<std::size_t>(last - first));
        for (std::int64_t q = first; q < last; ++q) limits[q - first] = limit(q, from_bits(heaps[q - first].limit()));
        std::vector<Found> pending(std::is_same_v<Heap, Nearest> ? limits.size() : 0);
        for (std::int64_t row = first_row; row < last_row; row += BLOCK) {
            block.lanes = static_cast<int>(std::min<std::int64_t>(BLOCK, last_row - row));
            const bool usual = pack(row, block.lanes, bank.data(), norms);
            if (usual) {
                const float* weights = bank.data() + width_ * BLOCK;
                block.reach_scale = job_.weights ? *std::max_element(weights, weights + block.lanes) : 1.0f;
                block.reach_more =
                    reach_of(*std::max_element(norms, norms + block.lanes)) + static_cast<float>(2 * TINY);
            }
            for (std::int64_t q = first; q < last; q += TOGETHER) {
                block.queries = static_cast<int>(std::min<std::int64_t>(TOGETHER, last - q));
                block.query = queries_.data() + q * columns_;
                block.limits = limits.data() + (q - first);
                block.reach = usual && !pending.empty() ? reach_.data() + q : nullptr;
                run_.float_block(block);
                for (int i = 0; i < block.queries; ++i) {
                    if (!found[i]) continue;
                    const std::int64_t at = q + i - first;
                    if constexpr (std::is_same_v<Heap, Nearest>) {
                        // Mostly it is nearer than what waits, which then need not be measured.
                        Found& waits = pending[at];
                        if (waits.lanes && !(waits.score > limits[at])) measure(q + i, waits, limits[at], heaps[at]);
                        waits = {row, found[i], least_of(scores.data() + i * BLOCK, found[i])};
                    } else {
                        const Scores of{scores.data() + i * BLOCK, bank.data(), norms, block.lanes, row, found[i]};
                        measure(q + i, of, limits[at], heaps[at]);
                    }
                }
            }
        }
        if constexpr (std::is_same_v<Heap, Nearest>) {
            for (std::int64_t q = first; q < last; ++q)
                measure(q, pending[q - first], limits[q - first], heaps[q - first]);
        }
    }

  private:
    static constexpr int TOGETHER = 48;       // queries that pass over a block at a time; their scores stay in a cache
    static constexpr float LARGE = 1e36f;     // beyond this, norms are not to be trusted
    static constexpr double HEAVY = 0x1p+30;  // beyond this, or below
    static constexpr double LIGHT = 0x1p-60;  // this, weights are not

    // A query's scores of a block, whose rows begin at `row`; found: those that are not beyond the query's limit.
    struct Scores {
        const float* scores;
        const float* bank;
        const float* norms;
        int lanes;
        std::int64_t row;
        std::uint64_t found;
    };

    // Rows of a block that may be a query's nearest, as bits, and the least of their scores.
    struct Found {
        std::int64_t row = 0;
        std::uint64_t lanes = 0;
        float score = 0.0f;
    };

    static float least_of(const float* scores, std::uint64_t lanes) {
        float least = scores[__builtin_ctzll(lanes)];
        for (lanes &= lanes - 1; lanes; lanes &= lanes - 1) least = std::min(least, scores[__builtin_ctzll(lanes)]);
        return least;
    }

    void measure(std::int64_t q, const Found& found, float& limit_of, Nearest& nearest) const {
        for (std::uint64_t left = found.lanes; left; left &= left - 1) {
            exact_(q, found.row + __builtin_ctzll(left), nearest);
        }
        limit_of = std::min(limit_of, limit(q, from_bits(nearest.limit())));
    }

    // The row of a block's least score m is at most at the distance whose limit is m + reach_of(own norm) +
    // reach_of(row's norm), see near(): 3 slack instead of 2.5 pays for the rounding of that sum and of the distance.
    float reach_of(double norm) const { return static_cast<float>(3 * slack_ * norm); }

    // A query without a limit yet has one by the block itself.
    void measure(std::int64_t q, const Scores& of, float& limit_of, Smallest& heap) const {
        std::uint64_t left = of.found;
        if (std::isinf(limit_of) && heap.need() <= of.lanes) left = near(q, heap.need(), of);
        for (; left; left &= left - 1) exact_(q, of.row + __builtin_ctzll(left), heap);
        limit_of = limit(q, from_bits(heap.limit()));
    }

    void place_query(std::int64_t q, double heaviest) {
        double norm = 0.0;
        float* to = queries_.data() + q * columns_;
        for (std::int64_t i = 0; i < width_; ++i) {
            const float value = job_.queries[q * job_.width + chosen_[i]] - centre_[i];
            norm += static_cast<double>(value) * static_cast<double>(value);
            to[i] = -2.0f * value;
        }
        const bool usual = norm * heaviest < LARGE;
        own_[q] = usual ? norm * (1 - slack_) : std::numeric_limits<double>::quiet_NaN();
        if (job_.weights) to[width_] = usual ? static_cast<float>(own_[q]) : 0.0f;
        if (!usual) std::fill_n(to, width_, 0.0f);  // every row is measured, and no score is NaN
        reach_[q] = usual ? reach_of(norm) : std::numeric_limits<float>::infinity();
    }

    void place_centre() {
        constexpr std::int64_t SAMPLE = 64;
        const std::int64_t allowed = job_.allowed, sampled = std::min(SAMPLE, allowed);
        for (std::int64_t i = 0; i < width_; ++i) {
            double sum = 0.0;
            for (std::int64_t s = 0; s < sampled; ++s) sum += bank_row(job_, s * allowed / sampled)[chosen_[i]];
            const auto mean = static_cast<float>(sum / static_cast<double>(sampled));
            centre_[i] = std::isfinite(mean) ? mean : 0.0f;
        }
    }

    // Scores above this cannot be among the nearest, if `kth` of them are no further: that less the query's own norm,
    // if scores are without it.
    float limit(std::int64_t q, double kth) const {
        if (!(kth < LARGE) || std::isnan(own_[q])) return std::numeric_limits<float>::infinity();
        const double exact = kth * (1 + 0x1p-22) + TINY - (job_.weights ? 0.0 : own_[q]);
        return std::nextafter(static_cast<float>(exact), std::numeric_limits<float>::infinity());
    }

    // The lanes, as bits, that may be among the `need` <= lanes nearest of a block: the need-th smallest of what their
    // distances are at most is a limit. A distance is at least own + score, and at most that plus
    // 2 slack / (1 - slack) (own + norm); slack is below 0.08, and the rest of the 2.5 pays for rounding the sum.
    std::uint64_t near(std::int64_t q, std::int64_t need, const Scores& of) const {
        const auto room = static_cast<float>(2.5 * slack_);
        const auto own = static_cast<float>(own_[q] * (job_.weights ? 0.0 : 1.0) + own_[q] * static_cast<double>(room));
        std::int32_t most[BLOCK];  // as bits, in the order of the floats
        for (int lane = 0; lane < of.lanes; ++lane) {
            const float weight = job_.weights ? of.bank[width_ * BLOCK + lane] : 1.0f;
            const float bound = of.scores[lane] + room * of.norms[lane] + own * weight;
            const bool trusted = bound < LARGE && of.norms[lane] >= 0.0f;  // neither NaN
            most[lane] = to_bits(trusted ? std::max(bound, 0.0f) : LARGE);
        }
        const std::int32_t kth = most[run_.ranked(most, of.lanes, static_cast<int>(need - 1))];
        return run_.scores_within(of.scores, of.lanes, limit(q, from_bits(kth)));
    }

    // The block's rows less the centre, times their weights, lanes = rows; norms: the least that |b'|^2 can be, times
    // the weight; -inf, and a row of zeros, for rows to measure anyway; +inf beyond the last. Whether none is such.
    bool pack(std::int64_t row, int lanes, float* bank, float* norms) const {
        constexpr std::int64_t COLUMNS = 16;  // one cache line of each row at a time
        double sums[BLOCK] = {};
        for (std::int64_t start = 0; start < width_; start += COLUMNS) {
            const std::int64_t stop = std::min(width_, start + COLUMNS);
            for (int lane = 0; lane < BLOCK; ++lane) {
                const float* from = lane < lanes ? bank_row(job_, row + lane) : nullptr;
                for (std::int64_t i = start; i < stop; ++i) {
                    bank[i * BLOCK + lane] = from ? from[chosen_[i]] - centre_[i] : 0.0f;
                }
            }
            for (std::int64_t i = start; i < stop; ++i) {
                const float* values = bank + i * BLOCK;
                for (int lane = 0; lane < BLOCK; ++lane) {
                    sums[lane] += static_cast<double>(values[lane]) * static_cast<double>(values[lane]);
                }
            }
        }
        float weights[BLOCK];
        bool usual[BLOCK], all_usual = true;
        for (int lane = 0; lane < BLOCK; ++lane) {
            const double weight = lane < lanes ? weight_of(job_, row + lane) : 1.0;
            usual[lane] = weight >= LIGHT && weight <= HEAVY && sums[lane] < LARGE && sums[lane] * weight < LARGE;
            weights[lane] = static_cast<float>(usual[lane] ? weight : 1.0);
            const double least = sums[lane] * weight * (1 - slack_);
            norms[lane] = usual[lane] ? static_cast<float>(least) : -std::numeric_limits<float>::infinity();
            all_usual &= usual[lane];
        }
        std::fill(norms + lanes, norms + BLOCK, std::numeric_limits<float>::infinity());
        for (std::int64_t i = 0; i < width_ && (job_.weights || !all_usual); ++i) {
            for (int lane = 0; lane < BLOCK; ++lane) {
                float& value = bank[i * BLOCK + lane];
                value = usual[lane] ? value * weights[lane] : 0.0f;
            }
        }
        if (job_.weights) std::copy_n(weights, BLOCK, bank + width_ * BLOCK);
        return all_usual;
    }

    const Topk<float>& job_;
    const Kernels& run_;
    Exact exact_;
    std::vector<std::int64_t> chosen_;
    std::int64_t width_, columns_;  // columns_: of a packed row, its weight included
    double slack_;
    std::vector<float> centre_, queries_, reach_;
    std::vector<double> own_;  // the least that |q'|^2 can be; NaN: not to be trusted
};

}  // namespace lpkernel
