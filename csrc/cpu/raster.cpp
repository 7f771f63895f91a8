#include "cpu/raster.h"

#include <algorithm>

namespace lpkernel {

// A box extends from the first remaining cell as far right, then as far down, as its owner's cells do.
void cut_boxes(Cells cells, const std::vector<std::int32_t>& owner, int side, std::vector<Box>& boxes) {
    if (!cells.count) return;
    const std::int32_t top = cells.first[0] / side, rows = cells.first[cells.count - 1] / side + 1 - top;
    std::int32_t left = side, right = 0;
    for (const std::int32_t cell : cells) {
        left = std::min(left, cell % side);
        right = std::max(right, cell % side + 1);
    }
    const std::int32_t columns = right - left, across = side + 1;
    std::vector<std::int32_t> grid(static_cast<std::size_t>(rows) * columns);
    const auto at = [&](int y, int x) { return grid.begin() + static_cast<std::int64_t>(y) * columns + x; };
    const auto place = [&](int y, int x) { return (top + y) * across + left + x; };
    bool more = true;
    for (int layer = 0; more; ++layer) {  // cells that are repeated more than `layer` times
        more = false;
        std::fill(grid.begin(), grid.end(), -1);
        for (int i = 0, repeat = 0; i < cells.count; ++i) {
            const std::int32_t cell = cells.first[i];
            repeat = i > 0 && cells.first[i - 1] == cell ? repeat + 1 : 0;
            if (repeat == layer) *at(cell / side - top, cell % side - left) = owner[cell];
            more = more || repeat > layer;
        }
        for (int y = 0; y < rows; ++y) {
            for (int x = 0; x < columns; ++x) {
                const std::int32_t mine = *at(y, x);
                if (mine < 0) continue;
                const auto is_mine = [&](std::int32_t other) { return other == mine; };
                int end = x, low = y + 1;
                while (end < columns && is_mine(*at(y, end))) ++end;
                while (low < rows && std::all_of(at(low, x), at(low, end), is_mine)) ++low;
                for (int row = y; row < low; ++row) std::fill(at(row, x), at(row, end), -1);
                boxes.push_back({mine, place(y, x), place(y, end), place(low, x), place(low, end)});
            }
        }
    }
}

Raster::Raster(int side_of, const RasterTables& from)
    : side(side_of), patch(from.patch), writer(static_cast<std::size_t>(side_of) * side_of, -1) {
    const std::int64_t area = std::int64_t{patch} * patch;
    std::int64_t compared = 0;
    for (std::int64_t s = 0; s < from.steps; ++s) compared += from.counts[s];
    store.resize(static_cast<std::size_t>(from.steps * area + 2 * compared));
    steps.resize(static_cast<std::size_t>(from.steps));
    std::vector<bool> sure(writer.size());  // cells that are written wherever the boundaries run
    std::vector<std::size_t> first_box;
    std::int32_t* next = store.data();
    const auto list = [&](Cells cells, const auto& wanted) {
        Cells kept{next, 0};
        next = std::copy_if(cells.begin(), cells.end(), next, wanted);
        kept.count = static_cast<int>(next - kept.first);
        return kept;
    };
    const std::int32_t* cells = from.compared;
    for (std::int64_t s = 0; s < from.steps; ++s) {
        Step& step = steps[s];
        step.corner = from.positions[2 * s] * side + from.positions[2 * s + 1];
        step.left = from.overlap[2 * s];
        step.top = from.overlap[2 * s + 1];
        cuts = cuts || step.left > 0 || step.top > 0;
        step.compare = list({cells, from.counts[s]}, [](std::int32_t) { return true; });
        step.carried = list(step.compare, [&](std::int32_t cell) { return writer[cell] < 0; });
        cells += from.counts[s];
        first_box.push_back(boxes.size());
        cut_boxes(step.compare, writer, side, boxes);
        for (const std::int32_t cell : step.compare) carries = carries || !sure[cell];
        step.write.first = next;
        for (std::int64_t i = 0; i < area; ++i) {
            const auto y = static_cast<int>(i / patch), x = static_cast<int>(i % patch);
            const std::int32_t cell = step.corner + y * side + x;
            const bool in_overlap = x < step.left || y < step.top;
            carries = carries || (in_overlap && !sure[cell]);
            if (!from.write[s * area + i]) continue;
            *next++ = cell;
            writer[cell] = static_cast<std::int32_t>(s);
            if (!in_overlap) sure[cell] = true;
        }
        step.write.count = static_cast<int>(next - step.write.first);
    }
    first_box.push_back(boxes.size());
    for (std::size_t s = 0; s < steps.size(); ++s) {
        steps[s].copied = {boxes.data() + first_box[s], static_cast<int>(first_box[s + 1] - first_box[s])};
    }
}

}  // namespace lpkernel
