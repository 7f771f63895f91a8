// Runtime of PTX translated to C++ (translate.py). Threads, barriers and warps are those of the test runtime, simt.h.
// Registers are unsigned integers of their width; shared memory is addressed from 0, everything else by host address.
// Every access is checked: against the ranges that the caller of run() names, the parameters, the variables of the
// module, the thread's stack and the block's shared memory; and for its alignment.
// Approximate functions (ex2, lg2, rcp, ...) are computed in full precision; mma adds its products in order, in float.

#pragma once

#include <limits>
#include <type_traits>

#include "async_copy.h"
#include "intrinsics.h"
#include "matrix.h"
#include "runtime.h"
#include "warp.h"

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using s8 = std::int8_t;
using s16 = std::int16_t;
using s32 = std::int32_t;
using s64 = std::int64_t;
using s128 = __int128;
using u128 = unsigned __int128;

namespace ptx {

using simt::Exchange;
using simt::from_f16;
using simt::Quiet;
using simt::Range;
using simt::Site;
using simt::to_f16;

struct SourceLine {
    int ptx;
    const char* file;
    int line;
};

extern u64 counts[1 << 16];  // of executed instructions, by counter

[[noreturn]] void bad(const char* what, u64 address, u32 bytes, int line);
char* in_ranges(u64 address, u32 bytes);  // null if none of the kernel's ranges holds them

inline char* global(u64 address, u32 bytes, int line) {
    if (address % bytes != 0) bad("misaligned global access", address, bytes, line);
    char* found = in_ranges(address, bytes);
    if (found == nullptr) bad("global access out of bounds", address, bytes, line);
    return found;
}

inline char* shared(u64 address, u32 bytes, int line) {
    const u32 offset = static_cast<u32>(address);
    if (offset % bytes != 0) bad("misaligned shared access", offset, bytes, line);
    if (std::size_t{offset} + bytes > simt::block->shared_bytes) {
        bad("shared access out of bounds", offset, bytes, line);
    }
    return simt::block->shared + offset;
}

inline char* local(u64 address, u32 bytes, int line) {
    if (address % bytes != 0) bad("misaligned local access", address, bytes, line);
    const u64 low = reinterpret_cast<u64>(simt::fiber->place->stack);
    if (address < low || address + bytes > low + simt::kStackBytes)
        bad("local access out of bounds", address, bytes, line);
    return reinterpret_cast<char*>(address);
}

inline u64 shared_to_generic(u64 offset) {
    return reinterpret_cast<u64>(simt::block->shared) + static_cast<u32>(offset);
}
inline u64 generic_to_shared(u64 address) {
    return address - reinterpret_cast<u64>(simt::block->shared);
}

char* generic(u64 address, u32 bytes, int line);

// registers as floating point
template <class To, class From>
To bits(From value) {
    return simt::bit_cast<To>(value);
}
inline float from_f32(u32 v) {
    return bits<float>(v);
}
inline double from_f64(u64 v) {
    return bits<double>(v);
}
inline float from_bf16(u16 v) {
    return bits<float>(u32{v} << 16);
}
inline u32 to_f32(double v) {
    return bits<u32>(static_cast<float>(v));
}
inline u64 to_f64(double v) {
    return bits<u64>(v);
}
inline u16 to_bf16(double v) {
    const u32 u = bits<u32>(static_cast<float>(v));
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return static_cast<u16>((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}
inline u32 to_tf32_rna(double v) {
    return (bits<u32>(static_cast<float>(v)) + 0x1000u) & 0xffffe000u;
}
inline u32 pack(u16 high, u16 low) {
    return u32{high} << 16 | low;
}

template <class Fn>
u32 halves(u32 a, u32 b, u32 c, Fn each) {
    return pack(each(u16(a >> 16), u16(b >> 16), u16(c >> 16)), each(u16(a), u16(b), u16(c)));
}

// The nearest T of a rounded value; NaN gives 0, what T cannot hold its limit.
template <class T>
T saturate(double v) {
    if (v != v) return 0;
    constexpr double low = static_cast<double>(std::numeric_limits<T>::min());
    constexpr double high = static_cast<double>(std::numeric_limits<T>::max());
    return v <= low ? std::numeric_limits<T>::min() : v >= high ? std::numeric_limits<T>::max() : static_cast<T>(v);
}
template <class T, class From>
T clamp(From v) {
    const s128 wide = v, low = std::numeric_limits<T>::min(), high = std::numeric_limits<T>::max();
    return static_cast<T>(wide < low ? low : wide > high ? high : wide);
}

template <class T>
T float_min(T a, T b) {
    return a != a ? b : b != b ? a : a < b || (a == b && std::signbit(a)) ? a : b;
}
template <class T>
T float_max(T a, T b) {
    return a != a ? b : b != b ? a : a > b || (a == b && !std::signbit(a)) ? a : b;
}

// integers
template <class T>
T shift_left(T a, u32 n) {
    return n >= sizeof(T) * 8 ? T(0) : static_cast<T>(a << n);
}
template <class T>
T shift_right(T a, u32 n) {
    return n >= sizeof(T) * 8 ? (a < T(0) ? T(-1) : T(0)) : static_cast<T>(a >> n);
}
inline u32 permute(u32 a, u32 b, u32 select) {
    const u64 v = u64{b} << 32 | a;
    u32 result = 0;
    for (int i = 0; i < 4; ++i) {
        const u32 control = select >> 4 * i;
        u8 byte = static_cast<u8>(v >> 8 * (control & 7));
        if ((control & 8) != 0) byte = (byte & 0x80) != 0 ? 0xff : 0;
        result |= u32{byte} << 8 * i;
    }
    return result;
}
inline u32 lop3(u32 a, u32 b, u32 c, u32 table) {
    u32 result = 0;
    for (int i = 0; i < 8; ++i) {
        if ((table >> i & 1) != 0) result |= ((i & 4) ? a : ~a) & ((i & 2) ? b : ~b) & ((i & 1) ? c : ~c);
    }
    return result;
}
template <class T>
T field_extract(T a, u32 position, u32 length) {
    constexpr u32 width = sizeof(T) * 8;
    position &= 255;
    length &= 255;
    if (length == 0) return 0;
    if (std::is_unsigned_v<T> && position >= width) return 0;
    const T moved = static_cast<T>(a >> min(position, width - 1));
    if (length >= width || (!std::is_unsigned_v<T> && position + length > width)) return moved;
    using U = std::make_unsigned_t<T>;
    return static_cast<T>(static_cast<T>(static_cast<U>(moved) << (width - length)) >> (width - length));
}
template <class T>
T field_insert(T a, T b, u32 position, u32 length) {
    constexpr u32 width = sizeof(T) * 8;
    position &= 255;
    length &= 255;
    if (position >= width || length == 0) return b;
    const T mask = static_cast<T>((length >= width ? ~T(0) : static_cast<T>((T(1) << length) - 1)) << position);
    return static_cast<T>((b & ~mask) | (static_cast<T>(a << position) & mask));
}
template <class T>
T reverse_bits(T a) {
    T result = 0;
    for (u32 i = 0; i < sizeof(T) * 8; ++i) result |= static_cast<T>(a >> i & 1) << (sizeof(T) * 8 - 1 - i);
    return result;
}
inline u32 find_high(u64 a, bool as_shift, u32 width) {  // of the bits that bfind looks at
    if (a == 0) return ~0u;
    const u32 position = 63 - static_cast<u32>(__builtin_clzll(a));
    return as_shift ? width - 1 - position : position;
}
inline u32 funnel(bool left, bool clamp, u32 a, u32 b, u32 c) {
    const u32 n = clamp ? min(c, 32u) : c & 31;
    const u64 v = u64{b} << 32 | a;
    return static_cast<u32>(left ? (n == 32 ? v << 32 >> 32 : v << n >> 32) : v >> n);
}

// atomics: of the value at a checked address; one OS thread runs them, or several
template <class T, class Fn>
T atomic(char* address, Fn change) {
    T* word = reinterpret_cast<T*>(address);
    T old = __atomic_load_n(word, __ATOMIC_SEQ_CST);
    while (!__atomic_compare_exchange_n(word, &old, static_cast<T>(change(old)), false, __ATOMIC_SEQ_CST,
                                        __ATOMIC_SEQ_CST)) {
    }
    return old;
}

// warps
enum ShuffleMode { kIndex, kUp, kDown, kButterfly };

u32 shuffle(ShuffleMode mode, u32 value, u32 b, u32 c, u32 mask, bool* valid, int line);

inline u32 ballot(bool predicate, u32 mask, int line) {
    return simt::ballot(mask, predicate, "vote.sync", Site{nullptr, line});
}
inline u32 present(u32 mask, int line) {
    return simt::ballot(mask, true, "vote.sync", Site{nullptr, line});
}
template <class T>
u32 match_any(T value, u32 mask, int line) {
    return simt::match<T>(mask, value, "match.any.sync", Site{nullptr, line});
}
template <class T>
u32 match_all(T value, u32 mask, bool* same, int line) {
    const u32 equal = simt::match<T>(mask, value, "match.all.sync", Site{nullptr, line});
    if (same != nullptr) *same = equal == mask;
    return equal == mask ? mask : 0;
}
template <class T, class Fn>
T reduce(T value, u32 mask, Fn join, int line) {
    return simt::reduce<T>(mask, value, join, "redux.sync", Site{nullptr, line});
}
inline void sync_warp(u32 mask, int line) {
    const Quiet quiet;
    simt::exchange<int>(mask, 0, "bar.warp.sync", Site{nullptr, line});
}
inline simt::Votes barrier(u32 id, u32 threads, bool predicate, int line) {
    return simt::arrive_and_wait(id, threads, predicate, "bar", Site{"PTX", line});  // compilers do not double barriers
}

// An element of a matrix from the low bits of a register; of tf32 the low 13 are not looked at. One object a type, so
// that all mma of a shape are one function.
inline constexpr auto element_tf32 = [](u32 v) { return bits<float>(v & 0xffffe000u); };
inline constexpr auto element_bf16 = [](u32 v) { return from_bf16(static_cast<u16>(v)); };
inline constexpr auto element_f16 = [](u32 v) { return from_f16(static_cast<u16>(v)); };
inline constexpr auto element_s8 = [](u32 v) { return s32{static_cast<s8>(v)}; };
inline constexpr auto element_u8 = [](u32 v) { return s32{static_cast<u8>(v)}; };

void load_matrices(int count, bool transposed, u32* d, u64 address, int line);
void store_matrices(int count, bool transposed, const u32* v, u64 address, int line);

// A copy of `bytes`, of which `read` come from the source (0: the source is not looked at).
void copy_async(u64 to, u64 from, u32 bytes, u32 read, int line);

struct KernelFacts {
    const char* name;
    std::size_t parameter_bytes, static_shared;
    void (*body)(const char* parameters);
    const SourceLine* lines;
    std::size_t line_count;
    const Range* variables;
    std::size_t variable_count;
};

void run(const KernelFacts& kernel, const void* parameters, std::size_t bytes, const u32* grid, const u32* shape,
         u32 dynamic_shared, int cooperative, const Range* ranges, std::size_t count);

}  // namespace ptx
