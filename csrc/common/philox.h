// The one random stream of lpkernel: Philox 4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy
// as 1, 2, 3", SC 2011), a function from (counter, key) to four words with no state, so that image i gets the
// same draws on every backend, batch size and thread count.
//
//   counter (c0, c1, c2, c3), key (k0, k1), all uint32. One round, with (hi, lo) the halves of a 64-bit product:
//       (h0, l0) = 0xD2511F53 * c0        (h1, l1) = 0xCD9E8D57 * c2
//       c <- (h1 ^ c1 ^ k0,  l1,  h0 ^ c3 ^ k1,  l0)
//   Ten rounds; between two rounds k0 += 0x9E3779B9 and k1 += 0xBB67AE85, modulo 2^32.
//
// In lpkernel: key = (seed mod 2^32, seed >> 32), counter = (image, step, 0, 0), and the first word is the draw.
// Limits: image and step < 2^32. Integers only, no Python, no allocation; internal linkage, because files compiled for
// one instruction set include this.

#pragma once

#include <array>
#include <cstdint>

#if defined(__CUDACC__)
#define LPKERNEL_HOST_DEVICE __host__ __device__
#else
#define LPKERNEL_HOST_DEVICE
#endif

namespace lpkernel {

using PhiloxCounter = std::array<std::uint32_t, 4>;
using PhiloxKey = std::array<std::uint32_t, 2>;

// Ten rounds in place; the key is passed by value.
LPKERNEL_HOST_DEVICE static inline void philox_rounds(std::uint32_t (&c)[4], std::uint32_t k0, std::uint32_t k1) {
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * c[0];
        const std::uint64_t p1 = std::uint64_t{0xCD9E8D57u} * c[2];
        c[0] = static_cast<std::uint32_t>(p1 >> 32) ^ c[1] ^ k0;
        c[1] = static_cast<std::uint32_t>(p1);
        c[2] = static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ k1;
        c[3] = static_cast<std::uint32_t>(p0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

static inline PhiloxCounter philox4x32_10(PhiloxCounter counter, PhiloxKey key) {
    std::uint32_t c[4] = {counter[0], counter[1], counter[2], counter[3]};
    philox_rounds(c, key[0], key[1]);
    return {c[0], c[1], c[2], c[3]};
}

// The draw of lpkernel for one image and step.
LPKERNEL_HOST_DEVICE static inline std::uint32_t draw(std::uint64_t seed, std::uint32_t image, std::uint32_t step) {
    std::uint32_t c[4] = {image, step, 0, 0};
    philox_rounds(c, static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32));
    return c[0];
}

// Index in [0, count) from a uniform word: floor(u * count / 2^32). count >= 1; the bias is below count / 2^32.
LPKERNEL_HOST_DEVICE static inline std::uint32_t draw_index(std::uint32_t u, std::uint32_t count) {
    return static_cast<std::uint32_t>((std::uint64_t{u} * count) >> 32);
}

}  // namespace lpkernel
