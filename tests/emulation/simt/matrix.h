// Tensor cores: mma.sync as the PTX ISA lays its fragments out. Products are added in order, in float or in 64 bits.

#pragma once

#include <cstdint>

#include "intrinsics.h"
#include "warp.h"

namespace simt {

// A float16 number by its bits; rounded to the nearest, ties to even.
inline float from_f16(std::uint16_t bits) {
    return static_cast<float>(bit_cast<_Float16>(bits));
}
inline std::uint16_t to_f16(double value) {
    return bit_cast<std::uint16_t>(static_cast<_Float16>(value));
}

// D = A B + C for 16 x K by K x 8, fragments as the PTX ISA lays them out: kPer elements a register, element (row, k)
// of A with lane 4 (row % 8) + (k / kPer) % 4 in register row / 8 + 2 (k / (4 kPer)), element (k, column) of B with
// lane 4 column + (k / kPer) % 4 in register k / (4 kPer).
template <int kDepth, int kPer, bool kInteger, bool kSaturate, class First, class Second>
__attribute__((noinline)) void mma(std::uint32_t* d, const std::uint32_t* a, const std::uint32_t* b,
                                   const std::uint32_t* c, First first, Second second, Site site) {
    using Element = decltype(first(0u));
    constexpr int kHalves = kDepth / (4 * kPer), kFirst = 2 * kHalves * kPer;
    struct Fragment {
        Element elements[kFirst + kHalves * kPer];  // of A, then of B
    } mine;
    for (int i = 0; i < kFirst; ++i) mine.elements[i] = first(a[i / kPer] >> 32 / kPer * (i % kPer));
    for (int i = 0; i < kHalves * kPer; ++i) {
        mine.elements[kFirst + i] = second(b[i / kPer] >> 32 / kPer * (i % kPer));
    }
    const Quiet quiet;
    const Exchange<Fragment> all = exchange<Fragment>(~0u, mine, "mma.sync", site);
    const auto element = [&](int from, int at) {
        Element value;
        std::memcpy(&value, all.op.slot[all.side][from] + at * sizeof(Element), sizeof(Element));
        return value;
    };
    const int me = static_cast<int>(lane());
    for (int i = 0; i < 4; ++i) {
        const int row = me / 4 + 8 * (i / 2), column = 2 * (me % 4) + i % 2;
        using Sum = std::conditional_t<kInteger, std::int64_t, float>;
        Sum sum;
        if constexpr (kInteger) {
            sum = static_cast<std::int32_t>(c[i]);
        } else {
            sum = bit_cast<float>(c[i]);
        }
        for (int k = 0; k < kDepth; ++k) {
            const int owner = k / kPer % 4, half = k / (4 * kPer), piece = k % kPer;
            sum += element(4 * (row % 8) + owner, (row / 8 + 2 * half) * kPer + piece) *
                   element(4 * column + owner, kFirst + half * kPer + piece);
        }
        if constexpr (kInteger) {
            d[i] = static_cast<std::uint32_t>(
                kSaturate ? max<std::int64_t>(INT32_MIN, min<std::int64_t>(INT32_MAX, sum)) : sum);
        } else {
            d[i] = bit_cast<std::uint32_t>(sum);
        }
    }
}

}  // namespace simt
