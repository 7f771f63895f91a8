// Fibers, blocks, barriers and the scheduler of the test runtime; simt.h says what it is for.
//
// One fiber a CUDA thread. A wave is a set of blocks that live at the same time on one OS thread: one block of an
// ordinary launch (four under ThreadSanitizer, to see races between blocks), all blocks of a cooperative one. The
// scheduler runs the fibers of a wave round robin, each until it waits (barrier, warp operation) or yields
// (__nanosleep). When all that can run only yields, or nothing can run, it reports who waits where, and aborts.

#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "sanitizers.h"
#include "types.h"

#if !defined(__x86_64__)
#error "the fibers of simt.h are written for x86-64"
#endif

namespace simt {

inline constexpr std::size_t kStackBytes = 256 << 10;
inline constexpr unsigned kWarp = 32;
inline constexpr unsigned kMaxThreads = 1024;
inline constexpr std::size_t kMaxPayload = 32;
inline constexpr unsigned kMaxIdleRounds = 2000;  // of the scheduler, in which every running fiber only yielded
inline constexpr unsigned kNamedBarriers = 16;

[[noreturn]] inline void die(const char* format, ...) __attribute__((format(printf, 1, 2)));
inline void die(const char* format, ...) {
    std::va_list list;
    va_start(list, format);
    std::fputs("simt: ", stderr);
    std::vfprintf(stderr, format, list);
    std::fputc('\n', stderr);
    va_end(list);
    std::abort();
}

// Where an operation stands: a source line, or (file null) a line of PTX, which may stand for several source lines.
struct Site {
    const char* file = nullptr;
    int line = 0;
};

struct Copy {  // a cp.async under way: `bytes` from the source, then zeros
    char* to;
    const char* from;
    unsigned bytes, zeros;
    int group;
};

struct Fiber {
    void* sp = nullptr;
    char* stack = nullptr;
    uint3 index{};
    unsigned linear = 0;
    bool done = false;
    bool yielded = false;                  // came back through __nanosleep
    const unsigned* generation = nullptr;  // waits until this leaves `seen`
    unsigned seen = 0;
    const char* what = "";  // for reports
    Site site;
    std::vector<Copy> copies;
    int group = 0;
    Context context;
};

struct Barrier {
    unsigned generation = 0, arrived = 0, expected = 0;
    int sum = 0, any = 0, all = 1;                 // of the predicates so far
    int sums[2] = {}, anys[2] = {}, alls[2] = {};  // of the last two generations
    unsigned first = 0;                            // thread that came first
    const char* what = "";
    Site site;
};

struct WarpOp {
    unsigned generation = 0, mask = 0, arrived = 0, present[2] = {}, first = 0;
    const char* what = "";
    Site site;
    alignas(16) char slot[2][kWarp][kMaxPayload];
};

struct Warp {
    unsigned live = 0;
    std::unique_ptr<WarpOp> ops[kWarp];  // by the lowest lane of the mask, made at its first use
};

struct Block {
    dim3 grid, shape;
    uint3 index{};
    unsigned threads = 0, live = 0;
    Barrier barriers[kNamedBarriers];
    std::vector<Warp> warps;
    std::vector<Fiber> fibers;
    std::vector<char> shared_store;
    char* shared = nullptr;
    std::size_t shared_bytes = 0;
};

struct Scheduler {
    void* sp = nullptr;
    Context context;
    const std::function<void()>* body = nullptr;
};

inline thread_local Scheduler* scheduler = nullptr;
inline thread_local Block* block = nullptr;
inline thread_local Fiber* fiber = nullptr;

__attribute__((naked, noinline)) static void switch_stack(void** /*save*/, void* /*load*/) {
    asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15; movq %rsp,(%rdi);"
        "movq %rsi,%rsp; popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
}

inline void resume(Block& owner, Fiber& next) {
    block = &owner;
    fiber = &next;
    Scheduler& from = *scheduler;
    from.context.leave(next.context, false);
    switch_stack(&from.sp, next.sp);
    from.context.back();
    fiber = nullptr;
    block = nullptr;
}

inline void suspend(bool last = false) {
    Fiber& from = *fiber;
    from.context.leave(scheduler->context, last);
    switch_stack(&from.sp, scheduler->sp);
    from.context.back();
}

inline void wait(const unsigned* generation, unsigned seen, const char* what, Site site) {
    fiber->generation = generation;
    fiber->seen = seen;
    fiber->what = what;
    fiber->site = site;
    while (*generation == seen) suspend();
    fiber->generation = nullptr;
}

inline void yield_to_others() {
    Quiet quiet;
    fiber->yielded = true;
    fiber->what = "__nanosleep";
    suspend();
}

inline void open(Barrier& barrier) {
    const unsigned side = barrier.generation & 1;
    barrier.sums[side] = barrier.sum;
    barrier.anys[side] = barrier.any;
    barrier.alls[side] = barrier.all;
    barrier.sum = barrier.any = 0;
    barrier.all = 1;
    barrier.arrived = 0;
    ++barrier.generation;
}

struct Votes {
    int sum, any, all;
};

// Waits at barrier `id` for `expected` threads (0: all that have not exited). Votes of their predicates.
inline Votes arrive_and_wait(unsigned id, unsigned expected, int predicate, const char* what, Site site) {
    Quiet quiet;
    if (id >= kNamedBarriers) die("%s: barrier %u of %u", what, id, kNamedBarriers);
    Barrier& barrier = block->barriers[id];
    if (barrier.arrived == 0) {
        barrier.what = what;
        barrier.site = site;
        barrier.expected = expected;
        barrier.first = fiber->linear;
    } else if (barrier.expected != expected || std::strcmp(barrier.what, what) != 0 ||
               (site.file != nullptr && barrier.site.line != site.line)) {
        die("divergent barrier in block (%u,%u,%u): thread %u at %s line %d, thread %u at %s line %d", block->index.x,
            block->index.y, block->index.z, barrier.first, barrier.what, barrier.site.line, fiber->linear, what,
            site.line);
    }
    const unsigned now = barrier.generation, side = now & 1;
    barrier.sum += predicate != 0;
    barrier.any |= predicate != 0;
    barrier.all &= predicate != 0;
    release(&barrier.sums[side]);
    if (++barrier.arrived >= (expected != 0 ? expected : block->live)) {
        open(barrier);
    } else {
        wait(&barrier.generation, now, what, site);
    }
    acquire(&barrier.sums[side]);
    return {barrier.sums[side], barrier.anys[side], barrier.alls[side]};
}

inline unsigned lane() {
    return fiber->linear % kWarp;
}
inline Warp& warp() {
    return block->warps[fiber->linear / kWarp];
}

inline void complete(WarpOp& op) {
    op.present[op.generation & 1] = op.arrived;
    op.arrived = 0;
    ++op.generation;
}

template <class T>
struct Exchange {  // what the lanes of a warp operation brought
    const WarpOp& op;
    unsigned side;

    unsigned present() const { return op.present[side]; }
    bool has(unsigned lane) const { return (present() >> lane & 1) != 0; }
    T at(unsigned lane) const {
        T value;
        std::memcpy(&value, op.slot[side][lane], sizeof(T));
        return value;
    }
};

// Every lane of `mask` that has not exited brings a value and sees what all brought. To be called under Quiet, which
// must outlive the use of the result.
template <class T>
Exchange<T> exchange(unsigned mask, const T& value, const char* what, Site site) {
    static_assert(sizeof(T) <= kMaxPayload, "too large for a warp operation");
    Warp& mine = warp();
    const unsigned me = 1u << lane();
    if ((mask & me) == 0)
        die("%s line %d: thread %u is not in its own mask %08x", what, site.line, fiber->linear, mask);
    std::unique_ptr<WarpOp>& slot = mine.ops[__builtin_ctz(mask)];
    if (slot == nullptr) slot.reset(new WarpOp);
    WarpOp& op = *slot;
    if (op.arrived == 0) {
        op.mask = mask;
        op.what = what;
        op.site = site;
        op.first = fiber->linear;
    } else if (op.mask != mask || std::strcmp(op.what, what) != 0 ||
               (site.file != nullptr && op.site.line != site.line)) {
        die("divergent warp operation in block (%u,%u,%u): thread %u at %s line %d mask %08x, thread %u at %s line %d "
            "mask %08x",
            block->index.x, block->index.y, block->index.z, op.first, op.what, op.site.line, op.mask, fiber->linear,
            what, site.line, mask);
    }
    const unsigned now = op.generation, side = now & 1;
    std::memcpy(op.slot[side][lane()], &value, sizeof(T));
    op.arrived |= me;
    release(&op.slot[side]);
    if (op.arrived == (mask & mine.live)) {
        complete(op);
    } else {
        wait(&op.generation, now, what, site);
    }
    acquire(&op.slot[side]);
    return {op, side};
}

inline void fiber_main() {
    Context::entered(scheduler->context);
    acquire(&block->live);
    (*scheduler->body)();
    release(&block->threads);
    {
        Quiet quiet;
        fiber->done = true;
        --block->live;
        Warp& mine = warp();
        mine.live &= ~(1u << lane());
        Barrier& all = block->barriers[0];  // exited threads no longer count
        if (block->live != 0 && all.arrived != 0 && all.expected == 0 && all.arrived == block->live) open(all);
        for (const std::unique_ptr<WarpOp>& op : mine.ops) {
            if (op != nullptr && op->arrived != 0 && op->arrived == (op->mask & mine.live)) complete(*op);
        }
    }
    suspend(true);
    __builtin_unreachable();
}

// Stacks are kept for the next launch.
class Stacks {
  public:
    char* take() {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (free_.empty()) {
            constexpr unsigned kSlab = 64;
            void* slab = mmap(nullptr, kSlab * kStackBytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (slab == MAP_FAILED) die("no memory for stacks");
            for (unsigned i = 0; i < kSlab; ++i) free_.push_back(static_cast<char*>(slab) + i * kStackBytes);
        }
        char* stack = free_.back();
        free_.pop_back();
        return stack;
    }
    void give(char* stack) {
        const std::lock_guard<std::mutex> lock(mutex_);
        free_.push_back(stack);
    }

  private:
    std::mutex mutex_;
    std::vector<char*> free_;
};
inline Stacks stacks;

// SIMT_ORDER=fwd (default), rev, or a seed: in which order threads of a block, and blocks, get their turns.
inline std::vector<unsigned> turn_order(unsigned count) {
    std::vector<unsigned> order(count);
    std::iota(order.begin(), order.end(), 0u);
    const char* wanted = std::getenv("SIMT_ORDER");
    if (wanted == nullptr || std::strcmp(wanted, "fwd") == 0) return order;
    if (std::strcmp(wanted, "rev") == 0) {
        std::reverse(order.begin(), order.end());
    } else {
        std::shuffle(order.begin(), order.end(), std::mt19937(static_cast<unsigned>(std::atoi(wanted))));
    }
    return order;
}

inline void set_up(Block& owner) {
    owner.live = owner.threads;
    for (Barrier& barrier : owner.barriers) barrier = Barrier{};
    for (Warp& warp : owner.warps) {
        warp.live = 0;
        for (const std::unique_ptr<WarpOp>& op : warp.ops) {
            if (op != nullptr) op->arrived = 0;
        }
    }
    std::fill(owner.shared_store.begin(), owner.shared_store.end(), '\xff');  // floating NaN
    for (unsigned t = 0; t < owner.threads; ++t) {
        Fiber& f = owner.fibers[t];
        f.done = f.yielded = false;
        f.generation = nullptr;
        f.linear = t;
        f.copies.clear();
        f.group = 0;
        f.index = {t % owner.shape.x, t / owner.shape.x % owner.shape.y, t / (owner.shape.x * owner.shape.y)};
        owner.warps[t / kWarp].live |= 1u << t % kWarp;
        clean_stack(f.stack + kStackBytes - (16 << 10), 16 << 10);
        void** top = reinterpret_cast<void**>(f.stack + kStackBytes - 64);
        *--top = nullptr;
        *--top = reinterpret_cast<void*>(&fiber_main);
        for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
        f.sp = top;
    }
    release(&owner.live);
}

[[noreturn]] inline void report_stuck(const std::deque<Block*>& wave, const char* why) {
    unsigned shown = 0;
    for (const Block* owner : wave) {
        unsigned left = 0, yielding = 0;
        const Fiber* example = nullptr;
        for (const Fiber& f : owner->fibers) {
            if (f.done) continue;
            ++left;
            yielding += f.generation == nullptr;
            if (example == nullptr || (example->generation != nullptr && f.generation == nullptr)) example = &f;
        }
        if (example == nullptr || ++shown > 16) continue;
        std::fprintf(stderr,
                     "  block (%u,%u,%u): %u threads left, %u of them in __nanosleep; thread %u in %s line %d\n",
                     owner->index.x, owner->index.y, owner->index.z, left, yielding, example->linear, example->what,
                     example->site.line);
        const Fiber* shown_fiber = example;
        for (const Fiber& f : owner->fibers) {
            if (f.done || (std::strcmp(f.what, shown_fiber->what) == 0 && f.site.line == shown_fiber->site.line))
                continue;
            std::fprintf(stderr, "    thread %u in %s line %d\n", f.linear, f.what, f.site.line);
            shown_fiber = &f;
        }
    }
    die("%s", why);
}

// Runs the blocks of a wave to their end.
inline void run_wave(const std::deque<Block*>& wave, const std::vector<unsigned>& order) {
    std::size_t left = 0;
    for (Block* owner : wave) {
        set_up(*owner);
        left += owner->threads;
    }
    unsigned idle = 0;
    while (left != 0) {
        bool moved = false, worked = false;
        for (Block* owner : wave) {
            if (owner->live == 0) continue;
            for (const unsigned t : order) {
                Fiber& f = owner->fibers[t];
                if (f.done || (f.generation != nullptr && *f.generation == f.seen)) continue;
                moved = true;
                f.yielded = false;
                resume(*owner, f);
                if (f.done) --left;
                worked = worked || !f.yielded;
            }
        }
        if (!moved) report_stuck(wave, "deadlock: every thread waits");
        idle = worked ? 0 : idle + 1;
        if (idle > kMaxIdleRounds)
            report_stuck(wave, "livelock: what still runs only sleeps, and nothing it waits for comes");
    }
    for (Block* owner : wave) acquire(&owner->threads);
}

// Runs `body` once for every thread of the grid.
inline void run_grid(dim3 grid, dim3 shape, std::size_t shared, bool cooperative, const std::function<void()>& body) {
    const unsigned threads = shape.x * shape.y * shape.z;
    const unsigned blocks = grid.x * grid.y * grid.z;
    const std::vector<unsigned> order = turn_order(threads), block_order = turn_order(blocks);
    const unsigned resident = cooperative ? blocks : std::min(blocks, kThreadSanitizer ? 4u : 1u);
    std::atomic<unsigned> next{0};

    const auto work = [&] {
        const Quiet quiet;
        Scheduler mine;
        mine.body = &body;
        mine.context.create_current();
        scheduler = &mine;
        std::deque<Block> owned(resident);
        for (Block& owner : owned) {
            owner.grid = grid;
            owner.shape = shape;
            owner.threads = threads;
            owner.warps.resize((threads + kWarp - 1) / kWarp);
            owner.fibers.resize(threads);
            owner.shared_bytes = shared;
            owner.shared_store.resize(shared);         // nothing behind it, so that AddressSanitizer sees its end
            owner.shared = owner.shared_store.data();  // operator new aligns to 16 bytes
            for (Fiber& f : owner.fibers) {
                f.stack = stacks.take();
                f.context.set_stack(f.stack, kStackBytes);
                f.context.create();
            }
        }
        for (unsigned first; (first = next.fetch_add(resident)) < blocks;) {
            std::deque<Block*> wave;
            for (unsigned i = first; i < std::min(first + resident, blocks); ++i) {
                Block& owner = owned[i - first];
                const unsigned b = block_order[i];
                owner.index = {b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y)};
                wave.push_back(&owner);
            }
            run_wave(wave, order);
        }
        for (Block& owner : owned) {
            for (Fiber& f : owner.fibers) {
                f.context.destroy();
                stacks.give(f.stack);
            }
        }
        scheduler = nullptr;
    };

    const char* wanted = std::getenv("SIMT_THREADS");  // OS threads that share the blocks of an ordinary launch
    const unsigned workers = wanted != nullptr ? static_cast<unsigned>(std::atoi(wanted)) : 1;
    std::vector<std::thread> pool;
    for (unsigned i = 1; i < workers && i * resident < blocks; ++i) pool.emplace_back(work);
    work();
    for (std::thread& thread : pool) thread.join();
}

}  // namespace simt
