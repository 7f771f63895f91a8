// Arithmetic, bit, load, store and atomic functions of CUDA that kernels here may use.

#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "runtime.h"

namespace simt {

template <class To, class From>
To bit_cast(From value) {
    static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
    To result;
    std::memcpy(&result, &value, sizeof(To));
    return result;
}

template <class T, class Fn>
T read_modify_write(T* address, Fn change) {
    using Word = std::conditional_t<sizeof(T) == 8, std::uint64_t, std::uint32_t>;
    static_assert(sizeof(T) == sizeof(Word), "atomics are of 32 or 64 bits");
    Word* word = reinterpret_cast<Word*>(address);
    Word old = __atomic_load_n(word, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(word, &old, bit_cast<Word>(static_cast<T>(change(bit_cast<T>(old)))), true,
                                        __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return bit_cast<T>(old);
}

template <class T>
using Same = std::enable_if_t<true, T>;  // takes no part in deduction

}  // namespace simt

// integers
template <class T>
T min(T a, T b) {
    return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
    return a < b ? b : a;
}
inline int __popc(unsigned x) {
    return __builtin_popcount(x);
}
inline int __popcll(unsigned long long x) {
    return __builtin_popcountll(x);
}
inline int __ffs(int x) {
    return __builtin_ffs(x);
}
inline int __ffsll(long long x) {
    return __builtin_ffsll(x);
}
inline int __clz(int x) {
    return x != 0 ? __builtin_clz(static_cast<unsigned>(x)) : 32;
}
inline int __clzll(long long x) {
    return x != 0 ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64;
}
inline unsigned __brev(unsigned x) {
    unsigned result = 0;
    for (int i = 0; i < 32; ++i) result |= (x >> i & 1u) << (31 - i);
    return result;
}
inline int __mulhi(int a, int b) {
    return static_cast<int>(static_cast<long long>(a) * b >> 32);
}
inline unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned select) {
    const std::uint64_t bytes = static_cast<std::uint64_t>(b) << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) result |= static_cast<unsigned>(bytes >> 8 * (select >> 4 * i & 7) & 0xff) << 8 * i;
    return result;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<std::uint64_t>(high) << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<std::uint64_t>(high) << 32 | low) >> (shift & 31));
}

namespace simt {
// Sum of products of `count` pieces of a (kBits wide) with those of b (8 bits wide, from piece `skip`), modulo 2^32.
template <class A, class B>
unsigned dot(unsigned a, unsigned b, unsigned sum, int count, int skip) {
    for (int i = 0; i < count; ++i) {
        const int x = static_cast<A>(a >> 8 * sizeof(A) * i), y = static_cast<B>(b >> 8 * (i + skip));
        sum += static_cast<unsigned>(x * y);
    }
    return sum;
}
}  // namespace simt
inline int __dp4a(int a, int b, int sum) {
    return static_cast<int>(simt::dot<std::int8_t, std::int8_t>(a, b, sum, 4, 0));
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned sum) {
    return simt::dot<std::uint8_t, std::uint8_t>(a, b, sum, 4, 0);
}
inline int __dp2a_lo(int a, int b, int sum) {
    return static_cast<int>(simt::dot<std::int16_t, std::int8_t>(a, b, sum, 2, 0));
}
inline int __dp2a_hi(int a, int b, int sum) {
    return static_cast<int>(simt::dot<std::int16_t, std::int8_t>(a, b, sum, 2, 2));
}
inline unsigned __dp2a_lo(unsigned a, unsigned b, unsigned sum) {
    return simt::dot<std::uint16_t, std::uint8_t>(a, b, sum, 2, 0);
}
inline unsigned __dp2a_hi(unsigned a, unsigned b, unsigned sum) {
    return simt::dot<std::uint16_t, std::uint8_t>(a, b, sum, 2, 2);
}

// two 16-bit numbers in a word
inline unsigned __vadd2(unsigned a, unsigned b) {
    return ((a & 0x7fff7fffu) + (b & 0x7fff7fffu)) ^ ((a ^ b) & 0x80008000u);
}
inline unsigned __vsub2(unsigned a, unsigned b) {
    return ((a | 0x80008000u) - (b & 0x7fff7fffu)) ^ ((a ^ ~b) & 0x80008000u);
}
inline unsigned __vminu2(unsigned a, unsigned b) {
    return min(a & 0xffffu, b & 0xffffu) | min(a >> 16, b >> 16) << 16;
}

// floating point; -ffp-contract=off keeps products and sums apart
inline int __float_as_int(float x) {
    return simt::bit_cast<int>(x);
}
inline unsigned __float_as_uint(float x) {
    return simt::bit_cast<unsigned>(x);
}
inline float __int_as_float(int x) {
    return simt::bit_cast<float>(x);
}
inline float __uint_as_float(unsigned x) {
    return simt::bit_cast<float>(x);
}
inline float __fmaf_rn(float a, float b, float c) {
    return std::fma(a, b, c);
}
inline float __fadd_rn(float a, float b) {
    return a + b;
}
inline float __fsub_rn(float a, float b) {
    return a - b;
}
inline float __fmul_rn(float a, float b) {
    return a * b;
}
inline float __fdiv_rn(float a, float b) {
    return a / b;
}
using std::isfinite;
using std::isinf;
using std::isnan;

// loads and stores with a cache hint
template <class T>
T __ldg(const T* address) {
    return *address;
}
template <class T>
T __ldcg(const T* address) {
    return *address;
}
template <class T>
T __ldcs(const T* address) {
    return *address;
}
template <class T>
void __stcg(T* address, simt::Same<T> value) {
    *address = value;
}
template <class T>
void __stcs(T* address, simt::Same<T> value) {
    *address = value;
}

// atomics, relaxed as CUDA's
template <class T>
T atomicAdd(T* address, simt::Same<T> value) {
    return simt::read_modify_write(address, [=](T old) { return old + value; });
}
template <class T>
T atomicSub(T* address, simt::Same<T> value) {
    return simt::read_modify_write(address, [=](T old) { return old - value; });
}
template <class T>
T atomicMin(T* address, simt::Same<T> value) {
    return simt::read_modify_write(address, [=](T old) { return value < old ? value : old; });
}
template <class T>
T atomicMax(T* address, simt::Same<T> value) {
    return simt::read_modify_write(address, [=](T old) { return old < value ? value : old; });
}
template <class T>
T atomicAnd(T* address, simt::Same<T> value) {
    return simt::read_modify_write(address, [=](T old) { return old & value; });
}
template <class T>
T atomicOr(T* address, simt::Same<T> value) {
    return simt::read_modify_write(address, [=](T old) { return old | value; });
}
template <class T>
T atomicExch(T* address, simt::Same<T> value) {
    return simt::read_modify_write(address, [=](T) { return value; });
}
template <class T>
T atomicCAS(T* address, simt::Same<T> expected, simt::Same<T> value) {
    return simt::read_modify_write(address, [=](T old) { return old == expected ? value : old; });
}
inline void __threadfence() {
    std::atomic_thread_fence(std::memory_order_seq_cst);
}
inline void __threadfence_block() {
    std::atomic_thread_fence(std::memory_order_seq_cst);
}
[[noreturn]] inline void __trap() {
    simt::die("__trap in thread %u", simt::fiber->linear);
}
