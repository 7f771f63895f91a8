// A whole plan for many images, in one call.

#pragma once

#include <cstdint>
#include <vector>

#include "cpu/isolation.h"
#include "cpu/layer.h"
#include "cpu/raster.h"

namespace lpkernel {

struct Scale {
    const Raster* raster = nullptr;
    const Layer* layer = nullptr;
    Content content{};
    const std::int16_t* start = nullptr;  // (start_images, side, side, width), or nullptr
    std::int64_t start_images = 0;        // 1 or n
    const ByStep* offsets = nullptr;      // what is taken off the distances of each step, or nullptr
};

struct Tuning {
    std::int64_t group;   // most images that walk through the plan together
    std::int64_t split;   // compared values of a step, from which threads divide the bank for few images
    std::int64_t seeded;  // bank images from which limits are set by recent neighbours first
};

struct Scan {
    std::vector<Scale> scales;
    std::vector<std::uint32_t> images;  // (n) random counters
    std::int64_t k = 1;
    std::uint64_t seed = 0;
    std::uint32_t first_step = 0;  // random counter of the first step
    int threads = 1;
    Tuning tuning{};
};

// sources: (n, M, M) int32, bank index of each cell or -1 where nothing was written. Bit-identical for any number
// of threads, instruction set and tuning. Throws std::bad_alloc, std::invalid_argument.
void scan(const Scan& request, const Kernels& run, std::int32_t* sources);

}  // namespace lpkernel
