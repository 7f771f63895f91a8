// Limits that the CPU and the GPU share; lpkernel/limits.py has them for Python.

#pragma once

namespace lpkernel {

constexpr int INT16_CODES = 32768;    // codes are 16 bits, not negative
constexpr int MOST_NEIGHBOURS = 128;  // largest K of a scan or a search on a GPU
constexpr int MOST_SIDE = 4096;       // cells of a side

}  // namespace lpkernel
