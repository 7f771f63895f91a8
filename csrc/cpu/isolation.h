// How far each allowed image is from the others, at every step of a scale: this tells hubs, the nearest of many, from
// the rest (local scaling: Conneau et al. 2018; hubs: Radovanovic et al. 2010).
//
//   isolation(step, a) = floor of the mean of the `nearest` smallest distances, over the cells that the step compares,
//                        of image a to the reference images other than a; to all of these where there are
//                        fewer; 0 where there are none
// Reference r of T = min(A, MOST_REFERENCES) is image floor(r A / T) of the A allowed ones; nearest = max(1, (5 T + A /
// 2) / A).

#pragma once

#include <cstdint>
#include <vector>

#include "cpu/layer.h"
#include "cpu/raster.h"

namespace lpkernel {

constexpr std::int64_t MOST_REFERENCES = 256;

// A row of A int32 for each step, none below 0, and the largest of each row. Rows are whole blocks, zero beyond A.
struct ByStep {
    std::int64_t stride = 0;
    std::vector<std::int32_t> values, most;
    const std::int32_t* row(std::size_t step) const { return values.data() + static_cast<std::int64_t>(step) * stride; }
};

// The result is the same for any number of threads and instruction set.
ByStep isolation(const Raster& raster, const Layer& layer, const Content& content, const Kernels& run, int threads);

// What is subtracted from the distances: parts / 256 of the isolation, rounded down. parts: 0 to 256.
ByStep offsets(const ByStep& isolation, int parts);

}  // namespace lpkernel
