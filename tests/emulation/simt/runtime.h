// Fibers, blocks and barriers of the test runtime; simt.h says what it is for. runtime.cpp, which is linked into every
// library, has what need not be compiled with each kernel.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
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
inline constexpr std::size_t kMaxPayload = 96;
inline constexpr unsigned kMaxIdleRounds = 2000;  // of the scheduler, in which every running fiber only yielded
inline constexpr unsigned kNamedBarriers = 16;

[[noreturn]] void die(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Where an operation stands: a source line, or (file null) a line of PTX, which may stand for several source lines.
struct Site {
    const char* file = nullptr;
    int line = 0;
};

// Addresses of memory.
struct Range {
    std::uint64_t low, high;
};

struct Copy {  // a cp.async under way: `bytes` from the source, then zeros
    char* to;
    const char* from;
    unsigned bytes, zeros;
    int group;
};

inline bool same_text(const char* a, const char* b) {
    return a == b || std::strcmp(a, b) == 0;
}

// What a fiber runs on.
struct Place {
    void* sp = nullptr;
    char* stack = nullptr;
    Context context;
};

struct Fiber {
    Place* place = nullptr;
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

inline thread_local Block* block = nullptr;
inline thread_local Fiber* fiber = nullptr;

struct Votes {
    int sum, any, all;
};

// Lets other threads run until *generation is no longer `seen`.
void wait(const unsigned* generation, unsigned seen, const char* what, Site site);

void yield_to_others();

// Waits at barrier `id` for `expected` threads (0: all that have not exited). Votes of their predicates.
Votes arrive_and_wait(unsigned id, unsigned expected, int predicate, const char* what, Site site);

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
    } else if (op.mask != mask || !same_text(op.what, what) || (site.file != nullptr && op.site.line != site.line)) {
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

// Runs body(argument) once for every thread of the grid.
void run_grid(dim3 grid, dim3 shape, std::size_t shared, bool cooperative, void (*body)(const void*),
              const void* argument);

template <class Body>
void run_grid(dim3 grid, dim3 shape, std::size_t shared, bool cooperative, const Body& body) {
    run_grid(
        grid, shape, shared, cooperative, [](const void* argument) { (*static_cast<const Body*>(argument))(); }, &body);
}

}  // namespace simt

#define threadIdx (simt::fiber->index)
#define blockIdx (simt::block->index)
#define blockDim (simt::block->shape)
#define gridDim (simt::block->grid)
