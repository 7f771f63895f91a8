// The scheduler of the test runtime.
//
// One fiber a CUDA thread. A wave is a set of blocks that live at the same time on one OS thread: one block of an
// ordinary launch (four under ThreadSanitizer, to see races between blocks), all blocks of a cooperative one. The
// scheduler runs the fibers of a wave round robin, each until it waits (barrier, warp operation) or yields
// (__nanosleep). When all that can run only yields, or nothing can run, it reports who waits where, and aborts.

#include "runtime.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>
#include <utility>

namespace simt {

void die(const char* format, ...) {
    std::va_list list;
    va_start(list, format);
    std::fputs("simt: ", stderr);
    std::vfprintf(stderr, format, list);
    std::fputc('\n', stderr);
    va_end(list);
    std::abort();
}

namespace {

struct Scheduler {
    void* sp = nullptr;
    Context context;
    void (*body)(const void*) = nullptr;
    const void* argument = nullptr;
};

thread_local Scheduler* scheduler = nullptr;

__attribute__((naked, noinline)) void switch_stack(void** /*save*/, void* /*load*/) {
    asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15; movq %rsp,(%rdi);"
        "movq %rsi,%rsp; popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
}

void resume(Block& owner, Fiber& next) {
    block = &owner;
    fiber = &next;
    Scheduler& from = *scheduler;
    from.context.leave(next.place->context);
    switch_stack(&from.sp, next.place->sp);
    from.context.back();
    fiber = nullptr;
    block = nullptr;
}

void suspend() {
    Place& from = *fiber->place;
    from.context.leave(scheduler->context);
    switch_stack(&from.sp, scheduler->sp);
    from.context.back();
}

void open(Barrier& barrier) {
    const unsigned side = barrier.generation & 1;
    barrier.sums[side] = barrier.sum;
    barrier.anys[side] = barrier.any;
    barrier.alls[side] = barrier.all;
    barrier.sum = barrier.any = 0;
    barrier.all = 1;
    barrier.arrived = 0;
    ++barrier.generation;
}

}  // namespace

void wait(const unsigned* generation, unsigned seen, const char* what, Site site) {
    fiber->generation = generation;
    fiber->seen = seen;
    fiber->what = what;
    fiber->site = site;
    while (*generation == seen) suspend();
    fiber->generation = nullptr;
}

void yield_to_others() {
    Quiet quiet;
    fiber->yielded = true;
    fiber->what = "__nanosleep";
    suspend();
}

Votes arrive_and_wait(unsigned id, unsigned expected, int predicate, const char* what, Site site) {
    Quiet quiet;
    if (id >= kNamedBarriers) die("%s: barrier %u of %u", what, id, kNamedBarriers);
    Barrier& barrier = block->barriers[id];
    if (barrier.arrived == 0) {
        barrier.what = what;
        barrier.site = site;
        barrier.expected = expected;
        barrier.first = fiber->linear;
    } else if (barrier.expected != expected || !same_text(barrier.what, what) ||
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

namespace {

__attribute__((noinline)) void run_thread() {
    acquire(&block->live);
    scheduler->body(scheduler->argument);
    release(&block->threads);
    const Quiet quiet;
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

// Runs one thread after another: those of later waves and launches, too, maybe of other OS threads.
[[noreturn]] void fiber_main() {
    Context::entered(scheduler->context);
    for (;;) {
        run_thread();
        suspend();
    }
}

// Places are kept for the next launch: ThreadSanitizer needs a millisecond to make a context.
class Places {
  public:
    Place* take() {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (free_.empty()) make();
        Place* place = free_.back();
        free_.pop_back();
        return place;
    }
    void give(Place* place) {
        const std::lock_guard<std::mutex> lock(mutex_);
        free_.push_back(place);
    }

  private:
    void make() {
        constexpr unsigned kSlab = 64;
        if (all_.size() % kSlab == 0) {
            void* slab = mmap(nullptr, kSlab * kStackBytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (slab == MAP_FAILED) die("no memory for stacks");
            slab_ = static_cast<char*>(slab);
        }
        Place& place = all_.emplace_back();
        place.stack = slab_ + (all_.size() - 1) % kSlab * kStackBytes;
        place.context.set_stack(place.stack, kStackBytes);
        place.context.create();
        void** top = reinterpret_cast<void**>(place.stack + kStackBytes - 64);
        *--top = nullptr;
        *--top = reinterpret_cast<void*>(&fiber_main);
        for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
        place.sp = top;
        free_.push_back(&place);
    }

    std::mutex mutex_;
    std::deque<Place> all_;
    std::vector<Place*> free_;
    char* slab_ = nullptr;
};
Places places;

// SIMT_ORDER=fwd (default), rev, or a seed: in which order threads of a block, and blocks, get their turns.
std::vector<unsigned> turn_order(unsigned count) {
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

void set_up(Block& owner) {
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
    }
    release(&owner.live);
}

[[noreturn]] void report_stuck(const std::deque<Block*>& wave, const char* why) {
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
void run_wave(const std::deque<Block*>& wave, const std::vector<unsigned>& order) {
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

}  // namespace

void run_grid(dim3 grid, dim3 shape, std::size_t shared, bool cooperative, void (*body)(const void*),
              const void* argument) {
    const unsigned threads = shape.x * shape.y * shape.z;
    const unsigned blocks = grid.x * grid.y * grid.z;
    const std::vector<unsigned> order = turn_order(threads), block_order = turn_order(blocks);
    const unsigned resident = cooperative ? blocks : std::min(blocks, kThreadSanitizer ? 4u : 1u);
    std::atomic<unsigned> next{0};

    const auto work = [&] {
        const Quiet quiet;
        Scheduler mine;
        mine.body = body;
        mine.argument = argument;
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
            for (Fiber& f : owner.fibers) f.place = places.take();
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
            for (const Fiber& f : owner.fibers) places.give(f.place);
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
