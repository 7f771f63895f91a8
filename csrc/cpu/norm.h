// GroupNorm of one image, channels last: fixed blocks of pixels in a fixed order, so the same bits on every machine.
//
//   out[p][c] = (pixels[p][c] - mean[g]) / sqrt(variance[g] + eps) * weight[c] + bias[c], c in group g; mean and
//   variance (not corrected) over all pixels and the channels of the group (Wu and He 2018)
//
// The image is read three times (sums, squares about the mean, the result) and written once; threads take turns of
// whole blocks, whose sums are added up by one of them. bfloat16 is widened, and rounded at the end, in the first-level
// cache.

#pragma once

#include <vector>

#include "cpu/kernels.h"

namespace lpkernel {

struct Norm {
    const float* pixels;           // (count, channels), or nullptr:
    const std::uint16_t* bfloats;  // of bfloat16
    std::int64_t count, block;
    int channels, groups;
    const float *weight, *bias;  // (channels), or nullptr
    double eps;
    float* out;  // (count, channels), of the kind of the pixels, which it may be
    std::uint16_t* bfloats_out;
};

struct Statistics {
    std::vector<double> mean, variance;  // (groups)
};

// The image's own, from sums and squares about the mean of each block, (count / block, groups), added block by block.
Statistics statistics(const Norm& of, const Kernels& run, int threads, double* sums, double* squares);

// out = (pixels - mean) * scale + bias, each step rounded to float32; scale: 1 / sqrt(variance + eps), rounded, times
// the weight.
void normalise(const Norm& of, const Kernels& run, int threads, const Statistics& by);

}  // namespace lpkernel
