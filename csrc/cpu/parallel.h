// Tasks over threads: one pool for the process, which lives on between calls (parallel.cpp).

#pragma once

#include <cstdint>

namespace lpkernel {

namespace detail {
void run_tasks(std::int64_t count, int threads, void (*run)(const void* task, std::int64_t i), const void* task);
}

// Runs task(i) for i in [0, count), on up to `threads` threads, in any order; the calling thread always works too, so
// a call ends whatever the other threads do, and may come from any thread or task. After an exception no further task
// begins, and the first exception is thrown again here.
template <class Task>
void parallel(std::int64_t count, int threads, const Task& task) {
    const auto run = [](const void* of, std::int64_t i) { (*static_cast<const Task*>(of))(i); };
    detail::run_tasks(count, threads, run, &task);
}

// Whether this thread has asked the same a moment ago, so that the others, if it then used them, are still awake. To
// wake one takes as long as work of some microseconds.
bool again();

// To be called a few times a second by long work, where it may throw: it throws in a task whose call has ended by an
// exception, and on a thread with an Interruptible it calls check() now and then.
void poll();

// While it lives, its thread calls check() about twenty times a second from poll() and while it waits for other
// threads; an exception from check() ends the call.
class Interruptible {
  public:
    using Check = void (*)();
    explicit Interruptible(Check check);
    ~Interruptible();
    Interruptible(const Interruptible&) = delete;
    Interruptible& operator=(const Interruptible&) = delete;

  private:
    Check before_;
};

}  // namespace lpkernel
