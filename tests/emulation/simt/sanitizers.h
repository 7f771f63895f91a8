// What the sanitizers must be told about fibers. Without a sanitizer everything here is empty.
//
// ThreadSanitizer sees each CUDA thread as a thread of its own: switching gives no order between two of them, only
// release() and acquire() do, which the barriers and warp operations of runtime.h call.

#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#endif

namespace simt {

#if defined(__SANITIZE_THREAD__)
inline constexpr bool kThreadSanitizer = true;
#else
inline constexpr bool kThreadSanitizer = false;
#endif

// While one lives, ThreadSanitizer ignores this fiber's accesses: they are the runtime's, not the kernel's.
struct Quiet {
#if defined(__SANITIZE_THREAD__)
    Quiet() {
        AnnotateIgnoreReadsBegin("", 0);
        AnnotateIgnoreWritesBegin("", 0);
    }
    ~Quiet() {
        AnnotateIgnoreWritesEnd("", 0);
        AnnotateIgnoreReadsEnd("", 0);
    }
#else
    Quiet() {}
    ~Quiet() {}
#endif
    Quiet(const Quiet&) = delete;
    Quiet& operator=(const Quiet&) = delete;
};

inline void release([[maybe_unused]] void* address) {
#if defined(__SANITIZE_THREAD__)
    __tsan_release(address);
#endif
}

inline void acquire([[maybe_unused]] void* address) {
#if defined(__SANITIZE_THREAD__)
    __tsan_acquire(address);
#endif
}

// What the sanitizers keep about one stack: a fiber's or the scheduler's.
struct Context {
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    const void* stack = nullptr;
    std::size_t size = 0;
#endif
#if defined(__SANITIZE_THREAD__)
    void* fiber = nullptr;
#endif

    void create() {
#if defined(__SANITIZE_THREAD__)
        fiber = __tsan_create_fiber(0);
#endif
    }

    void create_current() {
#if defined(__SANITIZE_THREAD__)
        fiber = __tsan_get_current_fiber();
#endif
    }

    void set_stack([[maybe_unused]] const void* bottom, [[maybe_unused]] std::size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
        stack = bottom;
        size = bytes;
#endif
    }

    // Called on the stack of `this`, before and after leaving it for `to`.
    void leave([[maybe_unused]] const Context& to) {
#if defined(__SANITIZE_THREAD__)
        void* next = nullptr;
        {
            const Quiet quiet;  // an ended thread reads this after its release; it lies on the launcher's stack
            next = to.fiber;
        }
        __tsan_switch_to_fiber(next, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_start_switch_fiber(&fake, to.stack, to.size);
#endif
    }
    void back() {
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
    }

    // First thing on a new stack, entered from `from`, whose stack becomes known here.
    static void entered([[maybe_unused]] Context& from) {
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(nullptr, &from.stack, &from.size);
#endif
    }
};

}  // namespace simt
