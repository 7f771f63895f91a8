// The pool of threads. A call puts its job up, works on it, takes it down, and waits for the threads that joined it and
// for no others, so a busy pool only means less help. Threads are made as calls need them and stay; where the system
// refuses one, calls go on with fewer. They are detached and the pool is never destroyed, so the process may end at any
// time.
//
// Steps of a plan are microseconds apart: a waiting thread spins for SPIN, then sleeps.
//
// fork() copies only one thread. The pool's lock is held meanwhile, so its state is consistent, and the child begins
// with an empty pool. A call under way in the thread that forks (a signal handler may fork) fails in the child.

#include "cpu/parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define LPKERNEL_FORKS 1
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lpkernel {

namespace {

using Clock = std::chrono::steady_clock;

constexpr auto SPIN = std::chrono::microseconds(100);
constexpr auto PATIENCE = std::chrono::milliseconds(50);  // between two checks for an interrupt

struct Stopped {};  // thrown out of a task whose job has failed elsewhere

struct Job {
    void (*run)(const void* task, std::int64_t i);
    const void* task;
    std::int64_t count;
    int wanted;      // threads that may still join; under the pool's lock, as is what follows
    unsigned forks;  // the process's count when the job began
    std::exception_ptr error;
    std::atomic<int> helpers{0};  // threads at work on it, besides its own
    std::atomic<std::int64_t> next{0};
    std::atomic<bool> stop{false};
};

struct Pool {
    std::mutex lock;
    std::condition_variable put_up, left;
    std::vector<Job*> jobs;  // those that may be joined
    int threads = 0;
    int needed = 0;                  // threads that the jobs have and want
    int sleepers = 0;                // threads that wait on put_up
    std::atomic<unsigned> turns{0};  // jobs put up so far
};

alignas(Pool) unsigned char room[sizeof(Pool)];
unsigned forks = 0;

#if defined(LPKERNEL_FORKS)
Pool& pool();

void begin_fork() {
    pool().lock.lock();
}

void end_fork() {
    pool().lock.unlock();
}

void begin_child() {
    ++forks;
    new (room) Pool;  // over the old one, whose threads and jobs are not in this process
}
#endif

Pool& pool() {
    static Pool* const made = [] {
        Pool* const first = new (room) Pool;
#if defined(LPKERNEL_FORKS)
        pthread_atfork(begin_fork, end_fork, begin_child);
#endif
        return first;
    }();
    return *made;
}

thread_local Job* current = nullptr;
thread_local Interruptible::Check interrupt = nullptr;
thread_local Clock::time_point asked;

void ask() {
    if (!interrupt) return;
    const Clock::time_point now = Clock::now();
    if (now - asked < PATIENCE) return;
    asked = now;
    interrupt();
}

void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Waits until ready(), but not much longer than SPIN; returns whether it is.
template <class Ready>
bool spin(const Ready& ready) {
    constexpr int TURNS = 64;  // between two readings of the clock
    const Clock::time_point end = Clock::now() + SPIN;
    do {
        for (int i = 0; i < TURNS; ++i) {
            if (ready()) return true;
            relax();
        }
        std::this_thread::yield();  // to whoever has work, where there are more threads than processors
    } while (Clock::now() < end);
    return ready();
}

// Takes the pool's lock. It is held for well below a microsecond, and jobs are put up and finished by several threads
// at the same moment: to sleep until it is free would take far longer than the work.
void take(std::unique_lock<std::mutex>& held) {
    constexpr int TRIES = 200;
    for (int i = 0; i < TRIES; ++i) {
        if (held.try_lock()) return;
        relax();
    }
    held.lock();
}

std::unique_lock<std::mutex> hold(Pool& of) {
    std::unique_lock<std::mutex> held(of.lock, std::defer_lock);
    take(held);
    return held;
}

void fail(Job& job) {
    const auto held = hold(pool());
    if (!job.error) job.error = std::current_exception();
    job.stop.store(true, std::memory_order_relaxed);
}

void work(Job& job) {
    Job* const outer = current;
    current = &job;
    try {
        while (!job.stop.load(std::memory_order_relaxed)) {
            const std::int64_t i = job.next.fetch_add(1, std::memory_order_relaxed);
            if (i >= job.count) break;
            job.run(job.task, i);
        }
    } catch (const Stopped&) {
    } catch (...) {
        fail(job);
    }
    current = outer;
}

void serve(Pool& of) {
    auto held = hold(of);
    for (;;) {
        const auto open = std::find_if(of.jobs.begin(), of.jobs.end(), [](const Job* job) { return job->wanted > 0; });
        if (open == of.jobs.end()) {
            const unsigned seen = of.turns.load(std::memory_order_relaxed);
            const auto more = [&] { return of.turns.load(std::memory_order_relaxed) != seen; };
            held.unlock();
            const bool soon = spin(more);
            take(held);
            if (soon) continue;
            ++of.sleepers;
            of.put_up.wait(held, more);
            --of.sleepers;
            continue;
        }
        Job& job = **open;
        --job.wanted;
        job.helpers.fetch_add(1, std::memory_order_relaxed);
        held.unlock();
        work(job);
        take(held);
        --of.needed;
        job.helpers.fetch_sub(1, std::memory_order_release);  // from here on the job may be gone
        of.left.notify_all();
    }
}

// Puts the job up for `helpers` threads; makes those that are missing.
void put_up(Pool& of, Job& job, int helpers) {
    const auto held = hold(of);
    of.jobs.push_back(&job);
    of.needed += helpers;
    try {
        for (; of.threads < of.needed; ++of.threads) std::thread(serve, std::ref(of)).detach();
    } catch (const std::exception&) {  // the system has no more
    }
    of.turns.fetch_add(1, std::memory_order_relaxed);
    if (of.sleepers > 0) of.put_up.notify_all();
}

// Whether this is the child of a process that forked while working on the job, whose other threads are not here.
bool forked(Job& job) {
    if (job.forks == forks) return false;
    if (!job.error) job.error = std::make_exception_ptr(std::runtime_error("forked in the middle of a call"));
    return true;
}

// Waits for the threads that have joined the job.
void take_down(Pool& of, Job& job) {
    auto held = hold(of);
    if (forked(job)) return;
    of.jobs.erase(std::find(of.jobs.begin(), of.jobs.end(), &job));
    of.needed -= job.wanted;
    const auto alone = [&] { return job.helpers.load(std::memory_order_acquire) == 0; };
    held.unlock();
    if (spin(alone)) return;
    for (;;) {
        held.lock();
        const bool done = of.left.wait_for(held, PATIENCE, alone);
        held.unlock();
        if (done) return;
        try {
            ask();
        } catch (...) {
            fail(job);
        }
        if (forked(job)) return;
    }
}

}  // namespace

void detail::run_tasks(std::int64_t count, int threads, void (*run)(const void* task, std::int64_t i),
                       const void* task) {
    const std::int64_t helpers = std::min<std::int64_t>(count, threads) - 1;
    if (helpers < 1) {
        for (std::int64_t i = 0; i < count; ++i) run(task, i);
        return;
    }
    Pool& of = pool();
    Job job{run, task, count, static_cast<int>(helpers), forks, nullptr};
    put_up(of, job, static_cast<int>(helpers));
    work(job);
    take_down(of, job);
    if (job.error) std::rethrow_exception(job.error);
}

bool again() {
    thread_local Clock::time_point last;
    const Clock::time_point now = Clock::now();
    const bool lately = now - last < SPIN;
    last = now;
    return lately;
}

void poll() {
    if (current && current->stop.load(std::memory_order_relaxed)) throw Stopped();
    ask();
}

Interruptible::Interruptible(Check check) : before_(interrupt) {
    interrupt = check;
    asked = Clock::now();
}

Interruptible::~Interruptible() {
    interrupt = before_;
}

}  // namespace lpkernel
