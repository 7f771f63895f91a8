// GroupNorm's loops, and 16-bit floating point numbers as float32 and back. Included by kernels_body.h, so once for
// each instruction set.
//
//   out[b][g] = sums over the pixels of block b and the channels of group g
//   out[p][c] = (pixels[p][c] - centre[c]) * scale[c] + shift[c]
//
// Shapes, the order of summation and what is rounded: BlockSums, Scaled and Kernels in kernels.h.
//
// Tiling: norm.cpp calls with parts that stay in the first-level cache; each number is read and written once. The
// compiler makes the vectors. Limits: groups divides channels.

#include <cstdint>

#include "cpu/kernels.h"

namespace {

using namespace lpkernel;

using FourFloats = float __attribute__((vector_size(16)));
using FourDoubles = double __attribute__((vector_size(32)));

// The compiler vectorises the loops over all channels.
void block_sums(const BlockSums& a) {
    const int channels = a.channels, own = channels / a.groups;
    float* __restrict columns = a.columns;
    const float* __restrict centre = a.centre;
    const float* __restrict pixel = a.pixels;
    double* out = a.out;
    for (std::int64_t b = 0; b < a.blocks; ++b) {
        for (std::int64_t p = 0; p < a.block; ++p, pixel += channels) {
            if (centre && p == 0) {
                for (int c = 0; c < channels; ++c) columns[c] = (pixel[c] - centre[c]) * (pixel[c] - centre[c]);
            } else if (centre) {
                for (int c = 0; c < channels; ++c) columns[c] += (pixel[c] - centre[c]) * (pixel[c] - centre[c]);
            } else if (p == 0) {
                for (int c = 0; c < channels; ++c) columns[c] = pixel[c];
            } else {
                for (int c = 0; c < channels; ++c) columns[c] += pixel[c];
            }
        }
        const float* from = columns;
        for (int g = 0; g < a.groups; ++g, from += own) {
            FourDoubles sum = {};
            int c = 0;
            for (; c + 4 <= own; c += 4) {
                FourFloats values;
                __builtin_memcpy(&values, from + c, sizeof values);
                sum += __builtin_convertvector(values, FourDoubles);
            }
            for (int lane = 0; c < own; ++c, ++lane) sum[lane] += static_cast<double>(from[c]);
            *out++ = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        }
    }
}

void scaled(const Scaled& a) {
    const int channels = a.channels;
    const float* __restrict centre = a.centre;
    const float* __restrict scale = a.scale;
    const float* __restrict shift = a.shift;
    const float* __restrict pixel = a.pixels;
    float* __restrict out = a.out;
    for (std::int64_t p = 0; p < a.count; ++p, pixel += channels, out += channels) {
        for (int c = 0; c < channels; ++c) out[c] = (pixel[c] - centre[c]) * scale[c] + shift[c];
    }
}

void widen(const std::uint16_t* __restrict values, std::int64_t count, float* __restrict out) {
    for (std::int64_t i = 0; i < count; ++i) {
        const std::uint32_t bits = std::uint32_t{values[i]} << 16;
        __builtin_memcpy(out + i, &bits, sizeof bits);
    }
}

void narrow(const float* __restrict values, std::int64_t count, std::uint16_t* __restrict out) {
    for (std::int64_t i = 0; i < count; ++i) {
        std::uint32_t bits;
        __builtin_memcpy(&bits, values + i, sizeof bits);
        const std::uint32_t rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
        out[i] = static_cast<std::uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
    }
}

void widen_half(const std::uint16_t* __restrict values, std::int64_t count, float* __restrict out) {
    constexpr std::uint32_t EXPONENT = 0x7C00u << 13, BIAS = (127u - 15u) << 23, ONE = 1u << 23;
    for (std::int64_t i = 0; i < count; ++i) {
        const std::uint32_t magnitude = (values[i] & 0x7FFFu) << 13, exponent = magnitude & EXPONENT;
        std::uint32_t bits = magnitude + BIAS;
        bits += exponent == EXPONENT ? BIAS : 0u;  // infinity and NaN
        bits += exponent == 0 ? ONE : 0u;          // no leading 1 below the normal numbers: 2^-14 too much
        float value;
        __builtin_memcpy(&value, &bits, sizeof value);
        value -= exponent == 0 ? 0x1p-14f : 0.0f;
        __builtin_memcpy(&bits, &value, sizeof bits);
        bits |= (values[i] & 0x8000u) << 16;
        __builtin_memcpy(out + i, &bits, sizeof bits);
    }
}

}  // namespace
