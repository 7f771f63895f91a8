#include "cpu/raster.h"

#include <algorithm>

namespace lpkernel {

namespace {

// Cuts the marked cells of a patch, each with its writer (-1: not marked), into boxes of one writer: from the first
// cell left as far right, then as far down, as the writer reaches.
void cut(std::vector<std::int32_t> owner, int patch, int side, const std::int32_t* corner, std::vector<Box>& boxes) {
    const int across = side + 1;
    for (int top = 0; top < patch; ++top) {
        for (int left = 0; left < patch; ++left) {
            const std::int32_t mine = owner[top * patch + left];
            if (mine < 0) continue;
            const auto is_mine = [&](std::int32_t other) { return other == mine; };
            const auto at = [&](int y, int x) { return owner.begin() + (y * patch + x); };
            int right = left, low = top + 1;
            while (right < patch && is_mine(*at(top, right))) ++right;
            while (low < patch && std::all_of(at(low, left), at(low, right), is_mine)) ++low;
            for (int y = top; y < low; ++y) std::fill(at(y, left), at(y, right), -1);
            const auto place = [&](int y, int x) { return (corner[0] + y) * across + corner[1] + x; };
            boxes.push_back({mine, place(top, left), place(top, right), place(low, left), place(low, right)});
        }
    }
}

}  // namespace

Raster::Raster(int side_of, const std::int32_t* positions, const bool* compare, const bool* write, std::int64_t count,
               int patch)
    : side(side_of), writer(static_cast<std::size_t>(side_of) * side_of, -1) {
    const std::int64_t area = std::int64_t{patch} * patch;
    store.resize(static_cast<std::size_t>(count * area * 3));
    steps.resize(static_cast<std::size_t>(count));
    std::vector<std::size_t> first_box;
    std::int32_t* next = store.data();
    for (std::int64_t s = 0; s < count; ++s, positions += 2, compare += area, write += area) {
        const auto cell_at = [&](std::int64_t i) {
            return static_cast<std::int32_t>((positions[0] + i / patch) * side + positions[1] + i % patch);
        };
        const auto list = [&](const auto& wanted) {
            Cells cells{next, 0};
            for (std::int64_t i = 0; i < area; ++i) {
                if (wanted(i)) *next++ = cell_at(i);
            }
            cells.count = static_cast<int>(next - cells.first);
            return cells;
        };
        std::vector<std::int32_t> owner(static_cast<std::size_t>(area), -1);
        for (std::int64_t i = 0; i < area; ++i) {
            if (compare[i]) owner[i] = writer[cell_at(i)];
        }
        first_box.push_back(boxes.size());
        cut(std::move(owner), patch, side, positions, boxes);
        Step& step = steps[s];
        step.compare = list([&](std::int64_t i) { return compare[i]; });
        step.carried = list([&](std::int64_t i) { return compare[i] && writer[cell_at(i)] < 0; });
        step.write = list([&](std::int64_t i) { return write[i]; });
        carries = carries || step.carried.count > 0;
        for (const std::int32_t cell : step.write) writer[cell] = static_cast<std::int32_t>(s);
    }
    first_box.push_back(boxes.size());
    for (std::size_t s = 0; s < steps.size(); ++s) {
        steps[s].copied = {boxes.data() + first_box[s], static_cast<int>(first_box[s + 1] - first_box[s])};
    }
    for (std::int32_t cell = 0; cell < side * side; ++cell) {
        if (writer[cell] < 0) kept.push_back(cell);
    }
}

}  // namespace lpkernel
