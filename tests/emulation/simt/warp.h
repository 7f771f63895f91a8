// Barriers of a block and operations of a warp. Each names its source line, so that threads which reach the same
// barrier or shuffle from different lines are reported as divergent.

#pragma once

#include "runtime.h"

#define SIMT_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define SIMT_SITE (simt::Site{file, line})

inline void __syncthreads(SIMT_HERE) {
    simt::arrive_and_wait(0, 0, 0, "__syncthreads", SIMT_SITE);
}
inline int __syncthreads_count(int predicate, SIMT_HERE) {
    return simt::arrive_and_wait(0, 0, predicate, "__syncthreads_count", SIMT_SITE).sum;
}
inline int __syncthreads_or(int predicate, SIMT_HERE) {
    return simt::arrive_and_wait(0, 0, predicate, "__syncthreads_or", SIMT_SITE).any;
}
inline int __syncthreads_and(int predicate, SIMT_HERE) {
    return simt::arrive_and_wait(0, 0, predicate, "__syncthreads_and", SIMT_SITE).all;
}

inline void __syncwarp(unsigned mask = ~0u, SIMT_HERE) {
    simt::Quiet quiet;
    simt::exchange<int>(mask, 0, "__syncwarp", SIMT_SITE);
}
inline unsigned __activemask() {
    return simt::warp().live;
}
inline void __nanosleep(unsigned) {
    simt::yield_to_others();
}

namespace simt {

// The value of lane `source`, or of this lane where that lies outside [low, high).
template <class T>
T shuffle(unsigned mask, T value, int source, int low, int high, const char* what, Site site) {
    Quiet quiet;
    const Exchange<T> all = exchange<T>(mask, value, what, site);
    if (source < low || source >= high) source = static_cast<int>(lane());
    if (!all.has(static_cast<unsigned>(source))) {
        die("%s line %d: thread %u reads lane %d, which does not take part (mask %08x)", what, site.line, fiber->linear,
            source, all.present());
    }
    return all.at(static_cast<unsigned>(source));
}

template <class T, class Fn>
T reduce(unsigned mask, T value, Fn join, const char* what, Site site) {
    Quiet quiet;
    const Exchange<T> all = exchange<T>(mask, value, what, site);
    bool first = true;
    T result{};
    for (unsigned i = 0; i < kWarp; ++i) {
        if (!all.has(i)) continue;
        result = first ? all.at(i) : join(result, all.at(i));
        first = false;
    }
    return result;
}

inline unsigned ballot(unsigned mask, bool predicate, const char* what, Site site) {
    Quiet quiet;
    const Exchange<int> all = exchange<int>(mask, predicate, what, site);
    unsigned result = 0;
    for (unsigned i = 0; i < kWarp; ++i) {
        if (all.has(i) && all.at(i) != 0) result |= 1u << i;
    }
    return result;
}

template <class T>
unsigned match(unsigned mask, T value, const char* what, Site site) {
    Quiet quiet;
    const Exchange<T> all = exchange<T>(mask, value, what, site);
    unsigned result = 0;
    for (unsigned i = 0; i < kWarp; ++i) {
        if (all.has(i) && all.at(i) == value) result |= 1u << i;
    }
    return result;
}

inline int segment(int width) {
    return static_cast<int>(lane()) & ~(width - 1);
}

}  // namespace simt

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, SIMT_HERE) {
    const int low = simt::segment(width);
    return simt::shuffle(mask, value, low + (source & (width - 1)), low, low + width, "__shfl_sync", SIMT_SITE);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_HERE) {
    const int low = simt::segment(width), source = static_cast<int>(simt::lane()) - static_cast<int>(delta);
    return simt::shuffle(mask, value, source, low, low + width, "__shfl_up_sync", SIMT_SITE);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_HERE) {
    const int low = simt::segment(width), source = static_cast<int>(simt::lane() + delta);
    return simt::shuffle(mask, value, source, low, low + width, "__shfl_down_sync", SIMT_SITE);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, SIMT_HERE) {
    const int low = simt::segment(width), source = static_cast<int>(simt::lane()) ^ bits;
    return simt::shuffle(mask, value, source, 0, low + width, "__shfl_xor_sync", SIMT_SITE);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, SIMT_HERE) {
    return simt::ballot(mask, predicate != 0, "__ballot_sync", SIMT_SITE);
}
inline int __any_sync(unsigned mask, int predicate, SIMT_HERE) {
    return simt::ballot(mask, predicate != 0, "__any_sync", SIMT_SITE) != 0;
}
inline int __all_sync(unsigned mask, int predicate, SIMT_HERE) {
    return simt::ballot(mask, predicate == 0, "__all_sync", SIMT_SITE) == 0;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, SIMT_HERE) {
    return simt::match(mask, value, "__match_any_sync", SIMT_SITE);
}

template <class T>
T __reduce_add_sync(unsigned mask, T value, SIMT_HERE) {
    return simt::reduce(mask, value, [](T a, T b) { return a + b; }, "__reduce_add_sync", SIMT_SITE);
}
template <class T>
T __reduce_min_sync(unsigned mask, T value, SIMT_HERE) {
    return simt::reduce(mask, value, [](T a, T b) { return a < b ? a : b; }, "__reduce_min_sync", SIMT_SITE);
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, SIMT_HERE) {
    return simt::reduce(mask, value, [](T a, T b) { return a > b ? a : b; }, "__reduce_max_sync", SIMT_SITE);
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value, SIMT_HERE) {
    return simt::reduce(mask, value, [](unsigned a, unsigned b) { return a & b; }, "__reduce_and_sync", SIMT_SITE);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, SIMT_HERE) {
    return simt::reduce(mask, value, [](unsigned a, unsigned b) { return a | b; }, "__reduce_or_sync", SIMT_SITE);
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned value, SIMT_HERE) {
    return simt::reduce(mask, value, [](unsigned a, unsigned b) { return a ^ b; }, "__reduce_xor_sync", SIMT_SITE);
}

#undef SIMT_HERE
#undef SIMT_SITE
