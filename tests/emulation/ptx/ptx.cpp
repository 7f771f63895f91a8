// What translated kernels call that need not be compiled with each of them.

#include "ptx.h"

#include <cxxabi.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <mutex>
#include <vector>

namespace ptx {

u64 counts[1 << 16];

namespace {

struct State {
    const char* kernel = "";
    const SourceLine* lines = nullptr;
    std::size_t line_count = 0;
    std::vector<Range> ranges;
};
State state;
std::mutex running;
thread_local std::size_t last_hit = 0;

}  // namespace

void bad(const char* what, u64 address, u32 bytes, int line) {
    const char* file = "no source line";
    int source = 0;
    for (std::size_t i = 0; i < state.line_count; ++i) {
        if (state.lines[i].ptx == line) {
            file = state.lines[i].file;
            source = state.lines[i].line;
        }
    }
    const char* name = abi::__cxa_demangle(state.kernel, nullptr, nullptr, nullptr);
    simt::die("%s: %s, address %#llx, %u bytes, PTX line %d (%s:%d), block (%u,%u,%u) thread %u",
              name != nullptr ? name : state.kernel, what, static_cast<unsigned long long>(address), bytes, line, file,
              source, blockIdx.x, blockIdx.y, blockIdx.z, simt::fiber->linear);
}

char* in_ranges(u64 address, u32 bytes) {
    const std::vector<Range>& ranges = state.ranges;
    const auto inside = [&](const Range& range) { return address >= range.low && address + bytes <= range.high; };
    if (last_hit < ranges.size() && inside(ranges[last_hit])) return reinterpret_cast<char*>(address);
    for (std::size_t i = 0; i < ranges.size(); ++i) {
        if (inside(ranges[i])) {
            last_hit = i;
            return reinterpret_cast<char*>(address);
        }
    }
    return nullptr;
}

// A generic address may lie anywhere; only its own kind of memory is searched.
char* generic(u64 address, u32 bytes, int line) {
    if (address % bytes != 0) bad("misaligned access", address, bytes, line);
    if (char* found = in_ranges(address, bytes)) return found;
    const u64 block_low = reinterpret_cast<u64>(simt::block->shared),
              stack = reinterpret_cast<u64>(simt::fiber->place->stack);
    const bool in_shared = address >= block_low && address + bytes <= block_low + simt::block->shared_bytes;
    if (in_shared || (address >= stack && address + bytes <= stack + simt::kStackBytes)) {
        return reinterpret_cast<char*>(address);
    }
    bad("access out of bounds", address, bytes, line);
}

u32 shuffle(ShuffleMode mode, u32 value, u32 b, u32 c, u32 mask, bool* valid, int line) {
    const Quiet quiet;
    const Exchange<u32> all = simt::exchange<u32>(mask, value, "shfl.sync", Site{nullptr, line});
    const int lane = static_cast<int>(simt::lane()), segment = c >> 8 & 31, bound = c & 31, by = b & 31;
    const int high = (lane & segment) | (bound & ~segment), low = lane & segment;
    int source = 0;
    bool ok = false;
    switch (mode) {
        case kIndex:
            source = low | (by & ~segment);
            ok = source <= high;
            break;
        case kUp:
            source = lane - by;
            ok = source >= high;
            break;
        case kDown:
            source = lane + by;
            ok = source <= high;
            break;
        case kButterfly:
            source = lane ^ by;
            ok = source <= high;
            break;
    }
    if (!ok) source = lane;
    if (!all.has(static_cast<u32>(source))) {
        bad("shfl.sync from a lane that takes no part", static_cast<u64>(source), 4, line);
    }
    if (valid != nullptr) *valid = ok;
    return all.at(static_cast<u32>(source));
}

void load_matrices(int count, bool transposed, u32* d, u64 address, int line) {
    const Quiet quiet;
    const Exchange<u64> all = simt::exchange<u64>(~0u, address, "ldmatrix", Site{nullptr, line});
    const u32 lane = simt::lane();
    for (int matrix = 0; matrix < count; ++matrix) {
        u16 pair[2];
        for (u32 k = 0; k < 2; ++k) {
            const u32 row = transposed ? 2 * (lane % 4) + k : lane / 4,
                      column = transposed ? lane / 4 : 2 * (lane % 4) + k;
            std::memcpy(&pair[k], shared(all.at(static_cast<u32>(matrix) * 8 + row), 16, line) + 2 * column, 2);
        }
        d[matrix] = pack(pair[1], pair[0]);
    }
}

void store_matrices(int count, bool transposed, const u32* v, u64 address, int line) {
    const Quiet quiet;
    const Exchange<u64> all = simt::exchange<u64>(~0u, address, "stmatrix", Site{nullptr, line});
    const u32 lane = simt::lane();
    for (int matrix = 0; matrix < count; ++matrix) {
        for (u32 k = 0; k < 2; ++k) {
            const u32 row = transposed ? 2 * (lane % 4) + k : lane / 4,
                      column = transposed ? lane / 4 : 2 * (lane % 4) + k;
            const u16 half = static_cast<u16>(v[matrix] >> 16 * k);
            std::memcpy(shared(all.at(static_cast<u32>(matrix) * 8 + row), 16, line) + 2 * column, &half, 2);
        }
    }
    simt::exchange<u64>(~0u, address, "stmatrix", Site{nullptr, line});
}

void copy_async(u64 to, u64 from, u32 bytes, u32 read, int line) {
    char* target = shared(to, bytes, line);
    if (from % bytes != 0) bad("misaligned cp.async", from, bytes, line);
    if (read > bytes) bad("cp.async that reads more than it writes", from, read, line);
    char* source = read == 0 ? target : in_ranges(from, read);
    if (source == nullptr) bad("cp.async out of bounds", from, read, line);
    const Quiet quiet;
    simt::fiber->copies.push_back({target, source, read, bytes - read, simt::fiber->group});
}

void run(const KernelFacts& kernel, const void* parameters, std::size_t bytes, const u32* grid, const u32* shape,
         u32 dynamic_shared, int cooperative, const Range* ranges, std::size_t count) {
    const std::lock_guard<std::mutex> lock(running);
    if (bytes != kernel.parameter_bytes) {
        simt::die("%s takes %zu bytes of parameters, not %zu", kernel.name, kernel.parameter_bytes, bytes);
    }
    state.kernel = kernel.name;
    state.lines = kernel.lines;
    state.line_count = kernel.line_count;
    state.ranges.assign(ranges, ranges + count);
    state.ranges.insert(state.ranges.end(), kernel.variables, kernel.variables + kernel.variable_count);
    const std::vector<std::max_align_t> store((bytes + sizeof(std::max_align_t)) / sizeof(std::max_align_t));
    char* copy = reinterpret_cast<char*>(const_cast<std::max_align_t*>(store.data()));
    std::memcpy(copy, parameters, bytes);
    state.ranges.push_back({reinterpret_cast<u64>(copy), reinterpret_cast<u64>(copy) + bytes});
    simt::run_grid(dim3(grid[0], grid[1], grid[2]), dim3(shape[0], shape[1], shape[2]),
                   kernel.static_shared + dynamic_shared, cooperative != 0, [&] { kernel.body(copy); });
    state.ranges.clear();
}

}  // namespace ptx

extern "C" __attribute__((visibility("default"))) u64* ptx_counts() {
    return ptx::counts;
}
