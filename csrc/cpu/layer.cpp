#include "cpu/layer.h"

#include <algorithm>
#include <stdexcept>

namespace lpkernel {

void Derived::make(const std::int16_t* codes, const Corners* at, int count, int width, const Kernels& run,
                   std::int16_t* out) const {
    if (!run.level_cells({codes, at, book.data(), count, rows, stride, width, mask, out})) {
        throw std::invalid_argument(CODES_CHANGED);
    }
}

const std::int16_t* Content::made(std::int64_t a, std::int64_t first, int count, int width, const Kernels& run) const {
    thread_local std::vector<std::int16_t> room;
    room.resize(static_cast<std::size_t>(count) * width);
    if (derived) {
        derived->make(data + image_of(a) * derived->full * derived->full,
                      derived->corners.data() + shift_of(a) * derived->cells + first, count, width, run, room.data());
        return room.data();
    }
    const std::int16_t* image = data + image_of(a) * views->cells * width;
    const std::int32_t* places = views->places.data() + shift_of(a) * views->cells + first;
    std::int16_t* to = room.data();
    for (int i = 0; i < count; ++i) to = copy_cell(image + std::int64_t{places[i]} * width, width, to);
    return room.data();
}

const std::int16_t* Content::cell(std::int64_t a, std::int64_t cell, std::int64_t cells, int width,
                                  const Kernels& run) const {
    if (derived) return made(a, cell, 1, width, run);
    const std::int64_t at = views ? views->places[shift_of(a) * views->cells + cell] : cell;
    return data + (image_of(a) * cells + at) * width;
}

const std::int16_t* Content::image(std::int64_t a, std::int64_t cells, int width, const Kernels& run) const {
    if (derived || views) return made(a, 0, static_cast<int>(cells), width, run);
    return data + allowed[a] * cells * width;
}

void Layer::make_tables(const Content& content, const Kernels& run, bool summed) {
    const std::int64_t cells = std::int64_t{side_} * side_, entries = size_ * padded();
    Aligned<std::int32_t> tables(static_cast<std::size_t>(cells * entries));
    std::vector<std::int16_t> values(static_cast<std::size_t>(size_) * width_);
    for (std::int64_t cell = 0; cell < cells; ++cell) {
        for (std::int64_t a = 0; a < size_; ++a) {
            std::copy_n(content.cell(a, cell, cells, width_, run), width_, values.data() + a * width_);
        }
        const std::vector<std::int32_t> same(static_cast<std::size_t>(size_), static_cast<std::int32_t>(cell));
        cell_rows(same.data(), static_cast<int>(size_), values.data(), run, tables.data() + cell * entries);
    }
    summed_ = summed;
    summed ? sum_tables(tables) : std::swap(tables_, tables);
}

void Layer::sum_tables(const Aligned<std::int32_t>& cells) {
    const std::int64_t across = side_ + 1, entries = size_ * padded();
    tables_ = Aligned<std::int32_t>(static_cast<std::size_t>(across * across * entries));
    std::fill_n(tables_.data(), across * entries, 0);
    std::vector<std::uint32_t> row(static_cast<std::size_t>(entries));  // the sums of this row of cells so far
    for (std::int64_t cell = 0; cell < std::int64_t{side_} * side_; ++cell) {
        const std::int32_t* apart = cells.data() + cell * entries;
        const std::int64_t y = cell / side_, x = cell % side_;
        const std::int32_t* above = tables_.data() + (y * across + x + 1) * entries;
        std::int32_t* out = tables_.data() + ((y + 1) * across + x + 1) * entries;
        if (x == 0) {
            std::fill(row.begin(), row.end(), 0);
            std::fill_n(out - entries, entries, 0);
        }
        for (std::int64_t i = 0; i < entries; ++i) {
            row[i] += static_cast<std::uint32_t>(apart[i]);
            out[i] = static_cast<std::int32_t>(row[i] + static_cast<std::uint32_t>(above[i]));
        }
    }
}

}  // namespace lpkernel
