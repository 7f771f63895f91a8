// A whole plan for many images, in one call.

#pragma once

#include <cstdint>
#include <vector>

#include "cpu/layer.h"

namespace lpkernel {

// A list of cells in the store of their scale.
struct Cells {
    const std::int32_t* first = nullptr;
    int count = 0;
    const std::int32_t* begin() const { return first; }
    const std::int32_t* end() const { return first + count; }
};

// One step: which cells (y * side + x) are compared and written. `carried` are the compared cells that no earlier
// step of the scale has written; `copied` the others.
struct Step {
    Cells compare, write, carried, copied;
};

// The steps of a scale, and how the canvas comes there from the scale before. Steps point into `store`: not to be
// copied.
struct Raster {
    int side = 0;
    std::vector<std::int32_t> store;
    std::vector<Step> steps;
    std::vector<std::int32_t> kept;       // cells that no step writes
    std::vector<std::int32_t> i0, i1, f;  // (side) resize from the scale before, 1/256; empty at the first
    bool carries = false;                 // whether a step compares cells that none has written

    // positions (count, 2) and masks (count, patch, patch), all within the grid
    Raster(int side, const std::int32_t* positions, const bool* compare, const bool* write, std::int64_t count,
           int patch);
    Raster(const Raster&) = delete;
    Raster& operator=(const Raster&) = delete;
};

struct Scale {
    const Raster* raster = nullptr;
    const Layer* layer = nullptr;
    Content content{};
    const std::int16_t* start = nullptr;  // (start_images, side, side, width), or nullptr
    std::int64_t start_images = 0;        // 1 or n
};

struct Tuning {
    std::int64_t group = 64;       // most images that walk through the plan together
    std::int64_t split = 1 << 17;  // compared values of a step, from which few images share it among threads
    std::int64_t seeded = 4096;    // bank images from which limits are set by recent neighbours first
};

struct Scan {
    std::vector<Scale> scales;
    std::vector<std::uint32_t> images;  // (n) random counters
    std::int64_t k = 1;
    std::uint64_t seed = 0;
    int threads = 1;
    Tuning tuning;
};

// sources: (n, M, M) int32, bank index of each cell or -1 where nothing was written. Bit-identical for any number
// of threads, instruction set and tuning. Throws std::bad_alloc, std::invalid_argument.
void scan(const Scan& request, const Kernels& run, std::int32_t* sources);

}  // namespace lpkernel
