// CUDA's built-in types, for the test runtime: vectors with CUDA's sizes and alignments, dim3, make_*.

#pragma once

#include <cstddef>
#include <cstdint>

#define SIMT_VECTORS(T, name)                                         \
    struct alignas(2 * sizeof(T)) name##2 {                           \
        T x, y;                                                       \
    };                                                                \
    struct name##3 {                                                  \
        T x, y, z;                                                    \
    };                                                                \
    struct alignas(4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)) name##4 { \
        T x, y, z, w;                                                 \
    };                                                                \
    inline name##2 make_##name##2(T x, T y) {                         \
        return {x, y};                                                \
    }                                                                 \
    inline name##3 make_##name##3(T x, T y, T z) {                    \
        return {x, y, z};                                             \
    }                                                                 \
    inline name##4 make_##name##4(T x, T y, T z, T w) {               \
        return {x, y, z, w};                                          \
    }

SIMT_VECTORS(signed char, char)
SIMT_VECTORS(unsigned char, uchar)
SIMT_VECTORS(short, short)
SIMT_VECTORS(unsigned short, ushort)
SIMT_VECTORS(int, int)
SIMT_VECTORS(unsigned, uint)
SIMT_VECTORS(long long, longlong)
SIMT_VECTORS(unsigned long long, ulonglong)
SIMT_VECTORS(float, float)
SIMT_VECTORS(double, double)
#undef SIMT_VECTORS

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
