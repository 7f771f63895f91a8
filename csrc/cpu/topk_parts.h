// What the searches of masked_topk share: a search is called as
//   search(first row, last row, first query, last query, heaps)
// on positions among the allowed rows and offers them to heaps[query - first query], each a Smallest or a Nearest.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "cpu/layer.h"
#include "cpu/topk.h"

namespace lpkernel {

// The bank row of a position among the allowed ones.
template <class T>
std::int64_t row_of(const Topk<T>& job, std::int64_t a) {
    return job.rows.empty() ? a : job.rows[a];
}

template <class T>
const T* bank_row(const Topk<T>& job, std::int64_t a) {
    return job.bank + row_of(job, a) * job.width;
}

// The columns that count, where they are the same for all queries.
template <class T>
std::vector<std::int64_t> marked_columns(const Topk<T>& job) {
    std::vector<std::int64_t> list;
    for (std::int64_t i = 0; i < job.width; ++i) {
        if (!job.shared_mask || job.shared_mask[i]) list.push_back(i);
    }
    return list;
}

inline std::int32_t to_bits(float value) {
    std::int32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// The order of keys: by the bits of the distance, which rise with it; every NaN after +inf.
inline std::int32_t order_bits(float distance) {
    return std::isnan(distance) ? 0x7FC00000 : to_bits(distance);
}

inline float from_bits(std::int32_t bits) {
    float distance;
    std::memcpy(&distance, &bits, sizeof distance);
    return distance;
}

// The float after a number; +inf and NaN as they are.
inline float next_above(float number) {
    if (!(number < std::numeric_limits<float>::infinity())) return number;
    const std::int32_t bits = to_bits(number + 0.0f);  // -0 is 0
    return from_bits(bits >= 0 ? bits + 1 : bits - 1);
}

// What float32 screens allow for: a sum of `width` products that float32 rounds, each product and
// partial sum once, is wrong by less than slack(width) times the sum of their magnitudes, for width < WIDEST; products
// below float32's normal range add far less than TINY.
constexpr double TINY = 1e-30;
constexpr std::int64_t WIDEST = 1 << 20;
inline double slack(std::int64_t width) {
    return (1.1 * static_cast<double>(width) + 32) * 0x1p-24;
}

// The factor of a row's distances.
template <class T>
double weight_of(const Topk<T>& job, std::int64_t a) {
    return job.weights ? job.weights[row_of(job, a)] : 1.0;
}

// Distances as they are returned, offered to heaps as integers of the same order. float32: the rounding of the direct
// sum in float64, times the row's weight. int16: the sum itself.
template <class T>
class Exact {
  public:
    Exact(const Topk<T>& job, const Kernels& run) : job_(job), run_(run), shared_(!job.own_mask) {
        const bool* marked = job.own_mask ? job.own_mask : job.shared_mask;
        if (!marked) return;
        used_.resize(static_cast<std::size_t>((shared_ ? 1 : job.count) * job.width));
        for (std::size_t i = 0; i < used_.size(); ++i) used_[i] = marked[i] ? 1.0f : 0.0f;
    }

    // What an integer of a heap stands for; NaN or +inf before there is any.
    static double distance(std::int32_t bits) {
        if constexpr (std::is_same_v<T, float>) return from_bits(bits);
        return bits == Smallest::ANY ? std::numeric_limits<double>::infinity() : bits;
    }

    template <class Heap>
    void operator()(std::int64_t q, std::int64_t a, Heap& heap) const {
        heap.push(bits(q, a), a);
    }

    void operator()(std::int64_t q, const std::int32_t* rows, std::int64_t count, Nearest& heap) const {
        for (std::int64_t i = 0; i < count; ++i) (*this)(q, std::int64_t{rows[i]}, heap);
    }

    // The same of some rows, ascending and none twice.
    void operator()(std::int64_t q, const std::int32_t* rows, std::int64_t count, Smallest& heap) const {
        std::uint64_t made[AT_ONCE];
        std::int32_t ranks[AT_ONCE];
        for (; count > 0; rows += AT_ONCE, count -= AT_ONCE) {
            const auto some = static_cast<int>(std::min<std::int64_t>(AT_ONCE, count));
            keys(q, rows, some, made);
            if (heap.empty()) {
                rank(made, some, ranks);
                heap.assign(made, ranks, some);
            } else {
                for (int i = 0; i < some; ++i) heap.push(made[i]);
            }
        }
    }

    // Keys of up to AT_ONCE rows; rows: their positions, or nullptr for the first ones.
    void keys(std::int64_t q, const std::int32_t* rows, int count, std::uint64_t* made) const {
        if constexpr (std::is_same_v<T, float>) {
            float distances[AT_ONCE];
            distances_of(q, rows, count, distances);
            for (int i = 0; i < count; ++i) {
                made[i] = Smallest::key(order_bits(distances[i]), rows ? rows[i] : i);
            }
        } else {
            for (int i = 0; i < count; ++i) {
                const std::int64_t a = rows ? rows[i] : i;
                made[i] = Smallest::key(bits(q, a), a);
            }
        }
    }

    static constexpr int AT_ONCE = 64;

    // Keys of the first `count` rows for some queries, (queries, count), of AT_ONCE at most in all.
    void first_keys(std::int64_t q, int queries, int count, std::uint64_t* made) const {
        if (!std::is_same_v<T, float> || !plain() || job_.width <= NARROW) {
            for (int i = 0; i < queries; ++i) keys(q + i, nullptr, count, made + i * count);
            return;
        }
        if constexpr (std::is_same_v<T, float>) {
            const float* rows[AT_ONCE];
            float distances[AT_ONCE];
            for (int i = 0; i < count; ++i) rows[i] = bank_row(job_, i);
            run_.distances({job_.queries + q * job_.width, rows, job_.width, queries, count, distances});
            for (int i = 0; i < queries * count; ++i) made[i] = Smallest::key(order_bits(distances[i]), i % count);
        }
    }

    // Prepares first_keys() of so many rows.
    void keep_first(int count) {
        if (!std::is_same_v<T, float> || !used_.empty() || job_.width > NARROW) return;
        kept_for_ = count;
        kept_.assign(static_cast<std::size_t>(padded(count) * job_.width), 0.0);
        for (int a = 0; a < count; ++a) {
            for (std::int64_t i = 0; i < job_.width; ++i) kept_[i * padded(count) + a] = bank_row(job_, a)[i];
        }
    }

    // ranks[i]: how many keys come before the i-th, of up to AT_ONCE whose indices ascend.
    void rank(const std::uint64_t* keys, int count, std::int32_t* ranks) const {
        std::int32_t order[AT_ONCE];
        for (int i = 0; i < count; ++i) order[i] = Smallest::distance(keys[i]);
        for (int i = count; i % 16; ++i) order[i] = 0;
        run_.ranks(order, count, ranks);
    }

  private:
    static int padded(int count) { return (count + 7) / 8 * 8; }

    const float* used_by(std::int64_t q) const {
        return used_.empty() ? nullptr : used_.data() + (shared_ ? 0 : q * job_.width);
    }

    std::int32_t bits(std::int64_t q, std::int64_t a) const {
        const T* const query = job_.queries + q * job_.width;
        const T* const row = bank_row(job_, a);
        const float* const used = used_by(q);
        if constexpr (std::is_same_v<T, float>) {
            if (plain()) return order_bits(run_.distance(query, row, job_.width));
            return order_bits(static_cast<float>(run_.direct(query, row, used, job_.width) * weight_of(job_, a)));
        } else if (!used) {
            const std::int32_t cell = 0;
            return run_.apart(row, &cell, query, 1, static_cast<int>(job_.width));
        } else {
            std::int64_t sum = 0;
            for (std::int64_t i = 0; i < job_.width; ++i) {
                const std::int64_t apart = used[i] != 0.0f ? row[i] - query[i] : 0;
                sum += apart * apart;
            }
            return static_cast<std::int32_t>(sum);
        }
    }

    // Whether neither a mask nor weights change distances.
    bool plain() const { return used_.empty() && !job_.weights; }

    void distances_of(std::int64_t q, const std::int32_t* rows, int count, float* distances) const {
        const float* const query = job_.queries + q * job_.width;
        double sums[AT_ONCE];
        if (!rows && kept_for_ == count) {
            run_.direct_narrow(query, kept_.data(), static_cast<int>(job_.width), padded(count), sums);
            for (int i = 0; i < count; ++i) distances[i] = static_cast<float>(sums[i] * weight_of(job_, i));
            return;
        }
        const float* from[AT_ONCE];
        for (int i = 0; i < count; ++i) from[i] = bank_row(job_, rows ? rows[i] : i);
        if (plain()) return run_.distances({query, from, job_.width, 1, count, distances});
        run_.direct_rows(query, from, used_by(q), job_.width, count, sums);
        for (int i = 0; i < count; ++i) {
            distances[i] = static_cast<float>(sums[i] * weight_of(job_, rows ? rows[i] : i));
        }
    }

    const Topk<T>& job_;
    const Kernels& run_;
    bool shared_;
    std::vector<float> used_;
    std::vector<double> kept_;  // (width, padded(kept_for_))
    int kept_for_ = 0;
};

}  // namespace lpkernel
