// masked_topk on bank rows in place, nothing packed: ROWS rows at a time, and all queries pass over them while
// they are in the first-level cache, so the bank is read from memory once. Distances are sums of squared differences,
// so nothing cancels; masks clear differences bit by bit, so NaN and infinity that they hide do not matter.
//
// int16:   exact, for D > 1 (where D = 1, differences may leave int16).
// float32: sums in float32, wrong by less than slack(D). A row is passed over only if its sum is beyond the k-th
//          distance, divided by its weight, by more than that plus float32's rounding of that distance; the others
//          are measured exactly.

#pragma once

#include "cpu/topk_parts.h"

namespace lpkernel {

// compare: the kernel. limit(heap, row, rows): sums of these rows above it are of no use; take(query, row, sum, heap)
// gets the others.
template <class T, class Sum, class Limit, class Take>
class RowSearch {
  public:
    using Compare = void (*)(const RowBlock<T, Sum>&);

    RowSearch(const Topk<T>& job, Compare compare, Limit limit, Take take)
        : job_(job),
          compare_(compare),
          limit_(limit),
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
        block.limits = limits.data();
        block.out = out.data();
        block.found = found.data();
        for (std::int64_t row = first_row; row < last_row; row += ROWS) {
            block.lanes = static_cast<int>(std::min<std::int64_t>(ROWS, last_row - row));
            for (int lane = 0; lane < ROWS; ++lane) rows[lane] = bank_row(job_, row + std::min(lane, block.lanes - 1));
            for (std::size_t q = 0; q < count; ++q) limits[q] = limit_(heaps[q], row, block.lanes);
            compare_(block);
            for (std::size_t q = 0; q < count; ++q) {
                for (std::uint64_t left = found[q]; left; left &= left - 1) {
                    const int lane = __builtin_ctzll(left);
                    take_(first + static_cast<std::int64_t>(q), row + lane, out.data()[q * ROWS + lane], heaps[q]);
                }
            }
        }
    }

  private:
    const Topk<T>& job_;
    Compare compare_;
    Limit limit_;
    Take take_;
    std::int64_t stride_;
    std::vector<T> values_, masks_;  // queries, and masks as bits, in rows of stride_
};

inline auto integer_rows(const Topk<std::int16_t>& job, const Kernels& run) {
    const auto limit = [](const auto& heap, std::int64_t, int) { return heap.limit(); };
    const auto take = [](std::int64_t, std::int64_t a, std::int32_t sum, auto& heap) { heap.push(sum, a); };
    return RowSearch<std::int16_t, std::int32_t, decltype(limit), decltype(take)>(job, run.integer_rows, limit, take);
}

inline auto float_rows(const Topk<float>& job, const Kernels& run) {
    const double room = (1 + 0x1p-22) * (1 + slack(job.width));
    const auto beyond = [room](const auto& heap, double weight) {
        const double kth = from_bits(heap.limit());  // NaN: every row is to be measured
        return next_above(static_cast<float>(kth * room / weight + TINY));
    };
    const auto limit = [&job, beyond](const auto& heap, std::int64_t row, int rows) {
        double least = weight_of(job, row);
        for (int lane = 1; job.weights && lane < rows; ++lane) least = std::min(least, weight_of(job, row + lane));
        return beyond(heap, least);
    };
    const auto take = [&job, beyond, exact = Exact(job, run)](std::int64_t q, std::int64_t a, float sum, auto& heap) {
        if (!job.weights || !(sum > beyond(heap, weight_of(job, a)))) exact(q, a, heap);
    };
    return RowSearch<float, float, decltype(limit), decltype(take)>(job, run.float_rows, limit, take);
}

}  // namespace lpkernel
