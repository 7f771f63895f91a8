// Cells and small parts of source maps join a neighbouring part where that makes seams cheaper: lpkernel/refine.py has
// the rule.
//
//   E(s) = sum over neighbouring cells i, j of images a = s_i != b = s_j of  |x_a(i) - x_b(i)|^2 + |x_a(j) - x_b(j)|^2
//
// maps (N, side, side) int32, each refined in place by one task; cells (B, side, side) codes of `vectors` (V, C), or
// (B, side, side, C) values. Vectors of codes stay in a near cache (64 KB for 2048 codes of 16 channels); a table of
// distances would not. Cells are looked at again only where something has moved beside them since, or where they
// were beside an image that could take no more and now can.
//
// Ties: a cell's own image before others, then the first met: cells in raster order, each above, left, right, below.
// Limits: distances of two cells below 2^31, differences of values below 2^15.

#pragma once

#include <cstdint>

namespace lpkernel {

struct Refining {
    const std::int16_t* cells;
    const std::int16_t* vectors;  // nullptr: cells are values
    std::int64_t codes;           // V
    int side, channels;
    std::int32_t* maps;  // images of the bank, or -1: such a cell stays, and nothing is compared with it
    std::int64_t images;
    int rounds, sweeps;       // rounds of one pass over the parts and at most so many sweeps over the cells
    std::int64_t part, most;  // most cells of a part that may move, and of a map that one image may have
};

// The result is the same for any number of threads. Throws std::invalid_argument for codes outside the vectors.
void refine(const Refining& job, int threads);

}  // namespace lpkernel
