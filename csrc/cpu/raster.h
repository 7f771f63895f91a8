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

// One step: which cells (y * side + x) are compared, some more than once, and written. Of the compared cells,
// `carried` are those that no earlier step of the scale has written; `copied` are the others, as boxes of one writer
// each. corner: of its patch; left, top: columns and rows of the overlap through which a boundary runs.
struct Step {
    Cells compare, write, carried;
    List<Box> copied;
    std::int32_t corner = 0;
    int left = 0, top = 0;
};

// As it comes from Python: compared holds the cells of all steps, counts[s] of them for step s, each run ascending.
struct RasterTables {
    const std::int32_t* positions;  // (steps, 2)
    const std::int32_t* counts;     // (steps)
    const std::int32_t* compared;
    const bool* write;            // (steps, patch, patch)
    const std::int32_t* overlap;  // (steps, 2) left, top
    std::int64_t steps;
    int patch;
};

// The steps of a scale, and how the canvas gets there from the previous scale. Steps point into the stores, so a Raster
// must not be copied.
struct Raster {
    int side = 0, patch = 0;
    std::vector<std::int32_t> store;
    std::vector<Box> boxes;
    std::vector<Step> steps;
    std::vector<std::int32_t> writer;     // (cells) the step that writes a cell last, -1: none does
    std::vector<std::int32_t> i0, i1, f;  // (side) resize from the previous scale, 1/256; empty where there is none
    std::vector<std::int32_t> carry;      // (side) rows and columns whose sources are carried over; empty if none
    bool cuts = false;                    // whether a boundary leaves cells of a step to the canvas
    bool carries = false;                 // whether a step reads cells that none is sure to have written

    // `from`: all within the grid.
    Raster(int side, const RasterTables& from);
    Raster(const Raster&) = delete;
    Raster& operator=(const Raster&) = delete;

    // Whether each cell has a source of its own, so that what one step wrote need not be a box.
    bool by_cells() const { return cuts || !carry.empty(); }
};

// Cuts the cells that have an owner into boxes of one owner each, as often as they are repeated. owner: of every cell,
// -1: none.
void cut_boxes(Cells cells, const std::vector<std::int32_t>& owner, int side, std::vector<Box>& boxes);

}  // namespace lpkernel
