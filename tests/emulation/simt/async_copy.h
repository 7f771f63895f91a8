// cp.async: a copy is done as late as allowed, when its group is waited for, so that a missing or short wait leaves
// what was there before (shared memory starts as floating NaN).

#pragma once

#include "runtime.h"

namespace simt {

inline void start_copy(void* to, const void* from, std::size_t bytes, std::size_t zeros) {
    const std::size_t bits = reinterpret_cast<std::uintptr_t>(to) | reinterpret_cast<std::uintptr_t>(from);
    if ((bytes != 4 && bytes != 8 && bytes != 16) || bits % bytes != 0 || zeros > bytes) {
        die("cp.async of %zu bytes (%zu of them zeros) from %p to %p by thread %u: a size or address that it cannot "
            "take",
            bytes, zeros, from, to, fiber->linear);
    }
    const Quiet quiet;
    fiber->copies.push_back({static_cast<char*>(to), static_cast<const char*>(from),
                             static_cast<unsigned>(bytes - zeros), static_cast<unsigned>(zeros), fiber->group});
}

inline void commit_copies() {
    ++fiber->group;
}

// Waits until at most `pending` of this thread's groups are under way.
inline void wait_for_copies(int pending) {
    std::size_t done = 0;
    for (; done < fiber->copies.size() && fiber->copies[done].group < fiber->group - pending; ++done) {
        const Copy& copy = fiber->copies[done];
        if (copy.bytes != 0) std::memcpy(copy.to, copy.from, copy.bytes);
        std::memset(copy.to + copy.bytes, 0, copy.zeros);
    }
    fiber->copies.erase(fiber->copies.begin(), fiber->copies.begin() + static_cast<std::ptrdiff_t>(done));
}

}  // namespace simt

inline void __pipeline_memcpy_async(void* to, const void* from, std::size_t bytes, std::size_t zeros = 0) {
    simt::start_copy(to, from, bytes, zeros);
}
inline void __pipeline_commit() {
    simt::commit_copies();
}
inline void __pipeline_wait_prior(int pending) {
    simt::wait_for_copies(pending);
}
