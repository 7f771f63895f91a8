// masked_topk on bank rows in place, nothing packed: ROWS rows at a time, and all queries pass over them while
// they are in the first-level cache, so the bank is read from memory once. Distances are sums of squared differences,
// so nothing cancels; masks clear differences bit by bit, so NaN and infinity that they hide do not matter.
//
// int16:   exact, for D > 1 (where D = 1, differences may leave int16).
// float32: sums in float32, wrong by less than slack(D). A row is passed over only if its sum is beyond the k-th
//          distance, divided by its weight, by more than that plus float32's rounding of that distance; the others
//          are measured exactly. Before any is, the k-th least sum of the first rows bounds that distance, or of few
//          rows that of all.

#pragma once

#include <atomic>

#include "cpu/parallel.h"
#include "cpu/topk_parts.h"

namespace lpkernel {

// Bytes of a bank that are asked for before they are compared, as many as four rows or more. Rows are read four at a
// time, which the hardware does not foresee: without, one query takes 2.7 times as long in 100,000 rows of 64 and 1.5
// times in rows of 256 (one thread); with 1,024 bytes 1.45 and 0.95 times.
constexpr std::int64_t AHEAD = 8192;

// compare: the kernel. limit(heap, row, rows): sums of these rows above it are of no use; among(heap, sums, rows): the
// rows of use of those that were found; take(query, row, sums, rows, heap) gets these.
template <class T, class Sum, class Limit, class Among, class Take>
class RowSearch {
  public:
    using Compare = void (*)(const RowBlock<T, Sum>&);

    RowSearch(const Topk<T>& job, Compare compare, Limit limit, Among among, Take take)
        : job_(job),
          compare_(compare),
          limit_(limit),
          among_(among),
          take_(take),
          stride_((job.width + ROW_STEP - 1) / ROW_STEP * ROW_STEP),
          values_(static_cast<std::size_t>(job.count * stride_), T{0}) {
        for (std::int64_t q = 0; q < job.count; ++q) {
            std::copy_n(job.queries + q * job.width, job.width, values_.data() + q * stride_);
        }
        const bool* marked = job.own_mask ? job.own_mask : job.shared_mask;
        if (!marked) return;
        const std::int64_t rows = job.own_mask ? job.count : 1;
        masks_.assign(static_cast<std::size_t>(rows * stride_), T{0});
        T all;
        std::memset(&all, 0xFF, sizeof all);
        for (std::int64_t q = 0; q < rows; ++q) {
            for (std::int64_t i = 0; i < job.width; ++i) {
                if (marked[q * job.width + i]) std::memcpy(&masks_[q * stride_ + i], &all, sizeof all);
            }
        }
    }

    template <class Heap>
    void operator()(std::int64_t first_row, std::int64_t last_row, std::int64_t first, std::int64_t last,
                    Heap* heaps) const {
        const auto count = static_cast<std::size_t>(last - first);
        Aligned<Sum> out(count * ROWS);
        std::vector<std::uint64_t> found(count);
        std::vector<Sum> limits(count);
        const T* rows[ROWS];
        RowBlock<T, Sum> block{};
        block.rows = rows;
        block.queries = static_cast<int>(count);
        block.width = job_.width;
        block.stride = stride_;
        block.query = values_.data() + first * stride_;
        block.mask = masks_.empty() ? nullptr : masks_.data() + (job_.own_mask ? first * stride_ : 0);
        block.mask_stride = job_.own_mask ? stride_ : 0;
        block.ahead = std::max<std::int64_t>(AHEAD, 4 * job_.width * static_cast<std::int64_t>(sizeof(T)));
        block.limits = limits.data();
        block.out = out.data();
        block.found = found.data();
        for (std::int64_t row = first_row; row < last_row; row += ROWS) {
            block.lanes = static_cast<int>(std::min<std::int64_t>(ROWS, last_row - row));
            for (int lane = 0; lane < ROWS; ++lane) rows[lane] = bank_row(job_, row + std::min(lane, block.lanes - 1));
            for (std::size_t q = 0; q < count; ++q) limits[q] = limit_(heaps[q], row, block.lanes);
            compare_(block);
            for (std::size_t q = 0; q < count; ++q) {
                const Sum* const sums = out.data() + q * ROWS;
                if (!found[q]) continue;
                take_(first + static_cast<std::int64_t>(q), row, sums, among_(heaps[q], sums, found[q]), heaps[q]);
            }
        }
    }

  private:
    const Topk<T>& job_;
    Compare compare_;
    Limit limit_;
    Among among_;
    Take take_;
    std::int64_t stride_;
    std::vector<T> values_, masks_;  // queries, and masks as bits, in rows of stride_
};

inline auto integer_rows(const Topk<std::int16_t>& job, const Kernels& run) {
    const auto limit = [](const auto& heap, std::int64_t, int) { return heap.limit(); };
    const auto among = [](const auto&, const std::int32_t*, std::uint64_t found) { return found; };
    const auto take = [](std::int64_t, std::int64_t row, const std::int32_t* sums, std::uint64_t found, auto& heap) {
        for (; found; found &= found - 1) heap.push(sums[__builtin_ctzll(found)], row + __builtin_ctzll(found));
    };
    return RowSearch<std::int16_t, std::int32_t, decltype(limit), decltype(among), decltype(take)>(
        job, run.integer_rows, limit, among, take);
}

// What float32 sums of `width` squares say of distances, by slack().
struct SumBound {
    explicit SumBound(std::int64_t width) : least_share(1 - slack(width)), room((1 + 0x1p-22) * (1 + slack(width))) {}

    // A sum above this is of a row further than `kth` with that weight.
    float beyond(double kth, double weight) const { return next_above(static_cast<float>(kth * room / weight + TINY)); }

    // The same of the row that has a sum itself.
    float beyond_row_of(float sum) const { return beyond((sum + TINY) / least_share, 1.0); }

    double least_share;  // the least part of a distance that its sum is
    double room;         // the most that a sum is of a distance that it may tie with
};

inline auto float_rows(const Topk<float>& job, const Kernels& run) {
    const SumBound bound(job.width);
    const auto kth = [](const auto& heap) -> double { return from_bits(heap.limit()); };  // NaN: measure every row
    const auto limit = [&job, bound, kth](const auto& heap, std::int64_t row, int rows) {
        double least = weight_of(job, row);
        for (int lane = 1; job.weights && lane < rows; ++lane) least = std::min(least, weight_of(job, row + lane));
        return bound.beyond(kth(heap), least);
    };
    const auto among = [&job, &run, bound](const auto& heap, const float* sums, std::uint64_t found) {
        const auto need = static_cast<int>(heap.need());
        if (job.weights || !heap.empty() || __builtin_popcountll(found) <= need) return found;
        const std::int32_t none = order_bits(std::numeric_limits<float>::quiet_NaN());
        std::int32_t order[ROWS];
        for (int lane = 0; lane < ROWS; ++lane) order[lane] = found >> lane & 1 ? order_bits(sums[lane]) : none;
        const int at = run.ranked(order, ROWS, need - 1);
        if (order[at] == none) return found;
        const float most = bound.beyond_row_of(sums[at]);
        for (std::uint64_t left = found; left; left &= left - 1) {
            const int lane = __builtin_ctzll(left);
            if (sums[lane] > most) found &= ~(std::uint64_t{1} << lane);
        }
        return found;
    };
    const auto take = [&job, bound, kth, exact = Exact<float>(job, run)](
                          std::int64_t q, std::int64_t row, const float* sums, std::uint64_t found, auto& heap) {
        std::int32_t rows[ROWS];
        int count = 0;
        for (; found; found &= found - 1) {
            const int lane = __builtin_ctzll(found);
            if (!job.weights) {
                rows[count++] = static_cast<std::int32_t>(row + lane);
            } else if (!(sums[lane] > bound.beyond(kth(heap), weight_of(job, row + lane)))) {
                exact(q, row + lane, heap);
            }
        }
        exact(q, rows, count, heap);
    };
    return RowSearch<float, float, decltype(limit), decltype(among), decltype(take)>(job, run.float_rows, limit, among,
                                                                                     take);
}

// All sums of few rows before any row is measured, so that only the nearest of all are, not the nearest of the first
// rows, too. Unweighted; heaps: (queries) reset. Returns false, and offers the heaps nothing, if a sum is not finite.
template <class Heap>
bool nearest_in_place(const Topk<float>& job, const Kernels& run, const Exact<float>& exact, std::vector<Heap>& heaps) {
    constexpr float INFINITE = std::numeric_limits<float>::infinity(), MOST = std::numeric_limits<float>::max();
    const std::int64_t stride = (job.allowed + BLOCK - 1) / BLOCK * BLOCK, groups = (job.allowed + ROWS - 1) / ROWS;
    Aligned<float> sums(static_cast<std::size_t>(job.count * stride));
    const auto limit = [](float*, std::int64_t, int) { return INFINITE; };
    const auto among = [](float*, const float*, std::uint64_t found) { return found; };
    const auto take = [](std::int64_t, std::int64_t row, const float* of, std::uint64_t found, float* to) {
        std::copy_n(of, __builtin_popcountll(found), to + row);  // found: all
    };
    const RowSearch<float, float, decltype(limit), decltype(among), decltype(take)> search(job, run.float_rows, limit,
                                                                                           among, take);
    const std::int64_t runs = std::min<std::int64_t>(job.threads, groups);
    parallel(runs, job.threads, [&](std::int64_t r) {
        const std::int64_t first = groups * r / runs * ROWS,
                           last = std::min(job.allowed, groups * (r + 1) / runs * ROWS);
        std::vector<float*> to(static_cast<std::size_t>(job.count));
        for (std::int64_t q = 0; q < job.count; ++q) to[q] = sums.data() + q * stride;
        search(first, last, 0, job.count, to.data());
    });
    for (std::int64_t q = 0; q < job.count; ++q) {
        float* const of = sums.data() + q * stride;
        std::fill(of + job.allowed, of + stride, INFINITE);
        std::int64_t finite = 0;
        for (std::int64_t from = 0; from < stride; from += BLOCK) {
            finite += __builtin_popcountll(run.scores_within(of + from, BLOCK, MOST));
            if (run.scores_within(of + from, BLOCK, -1.0f)) return false;  // only NaN is not above it
        }
        if (finite < job.allowed) return false;
    }
    const SumBound bound(job.width);
    std::vector<std::int32_t> rows(static_cast<std::size_t>(job.allowed));
    for (std::int64_t q = 0; q < job.count; ++q) {
        const float* const of = sums.data() + q * stride;
        const auto need = static_cast<int>(heaps[q].need());
        const float kth = run.reached(of, static_cast<int>(stride), need);
        const float most = std::min(MOST, bound.beyond_row_of(kth));
        std::int64_t count = 0;
        for (std::int64_t from = 0; from < stride; from += BLOCK) {
            for (std::uint64_t left = run.scores_within(of + from, BLOCK, most); left; left &= left - 1) {
                rows[count++] = static_cast<std::int32_t>(from + __builtin_ctzll(left));
            }
        }
        exact(q, rows.data(), count, heaps[q]);
    }
    return true;
}

}  // namespace lpkernel
