// The steps of one scale, laid out once for all images.

#pragma once

#include <cstdint>
#include <vector>

#include "cpu/kernels.h"

namespace lpkernel {

// A list in a store of the scale.
template <class T>
struct List {
    const T* first = nullptr;
    int count = 0;
    const T* begin() const { return first; }
    const T* end() const { return first + count; }
};
using Cells = List<std::int32_t>;

// One step: which cells (y * side + x) are compared and written. Of the compared cells, `carried` are those that no
// earlier step of the scale has written; `copied` are the others, as boxes of one writer each.
struct Step {
    Cells compare, write, carried;
    List<Box> copied;
};

// The steps of a scale, and how the canvas comes there from the scale before. Steps point into the stores: not to be
// copied.
struct Raster {
    int side = 0;
    std::vector<std::int32_t> store;
    std::vector<Box> boxes;
    std::vector<Step> steps;
    std::vector<std::int32_t> writer;     // (cells) the step that writes a cell last, -1: none does
    std::vector<std::int32_t> kept;       // cells that no step writes
    std::vector<std::int32_t> i0, i1, f;  // (side) resize from the scale before, 1/256; empty at the first
    bool carries = false;                 // whether a step compares cells that none has written

    // positions (count, 2) and masks (count, patch, patch), all within the grid
    Raster(int side, const std::int32_t* positions, const bool* compare, const bool* write, std::int64_t count,
           int patch);
    Raster(const Raster&) = delete;
    Raster& operator=(const Raster&) = delete;
};

}  // namespace lpkernel
