// The minimum error boundary of a step (Efros and Freeman, "Image quilting for texture synthesis and transfer", 2001).
//
// Through the `left` columns of a patch of P x P cells, error E(r, c) each:
//   sum(0, c) = E(0, c)      sum(r, c) = E(r, c) + min(sum(r - 1, c - 1 .. c + 1))
// From the last row up, path(r) is the lowest column with the least sum within one column of path(r + 1); cells left of
// the path stay as they are. The same through the `top` rows, on the transpose. Sums are int64, of errors below 2^31.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/raster.h"

namespace lpkernel {

class Cut {
  public:
    // The cells that the step writes, valid until the next call. error(cell): squared distance between what is
    // there and what would be copied.
    template <class Error>
    Cells operator()(const Step& step, int side, int patch, const Error& error) {
        if (!step.left && !step.top) return step.write;
        boundary(
            patch, step.left, [&](int row, int column) { return error(step.corner + row * side + column); },
            from_left_);
        boundary(
            patch, step.top, [&](int column, int row) { return error(step.corner + row * side + column); }, from_top_);
        cells_.clear();
        std::int32_t start = step.corner;  // of the row
        int row = 0;
        for (const std::int32_t cell : step.write) {
            for (; cell >= start + side; start += side) ++row;
            const std::int32_t column = cell - start;
            if (column >= from_left_[row] && row >= from_top_[column]) cells_.push_back(cell);
        }
        return {cells_.data(), static_cast<int>(cells_.size())};
    }

  private:
    template <class Error>
    void boundary(int rows, int width, const Error& error, std::vector<std::int32_t>& path) {
        path.assign(static_cast<std::size_t>(rows), 0);
        if (!width) return;
        sums_.resize(static_cast<std::size_t>(rows) * width);
        const auto last = [width](int column) { return std::min(width, column + 2); };
        for (int row = 0; row < rows; ++row) {
            std::int64_t* sums = sums_.data() + std::int64_t{row} * width;
            for (int column = 0; column < width; ++column) {
                sums[column] = error(row, column);
                if (!row) continue;
                const std::int64_t* above = sums - width;
                sums[column] += *std::min_element(above + std::max(0, column - 1), above + last(column));
            }
        }
        int first = 0, end = width;
        for (int row = rows - 1; row >= 0; --row) {
            const std::int64_t* sums = sums_.data() + std::int64_t{row} * width;
            const auto column = static_cast<int>(std::min_element(sums + first, sums + end) - sums);
            path[row] = column;
            first = std::max(0, column - 1);
            end = last(column);
        }
    }

    std::vector<std::int64_t> sums_;
    std::vector<std::int32_t> from_left_, from_top_, cells_;
};

}  // namespace lpkernel
