// The smallest keys that a warp has met, in shared memory.
//
// A key is distance << 32 | index, signed because distances with an offset may be negative: the minimum wins, so ties
// go to the lowest index. A list holds its `want` smallest keys ascending, EMPTY where there are fewer. Indices are
// below 2^31, so no key equals EMPTY. Most bank images fail the comparison with the list's last distance, one
// instruction each; an insertion costs a warp about 25.

#pragma once

#include "cuda/portable.cuh"

namespace lpkernel::cuda {

using Key = std::int64_t;
constexpr Key EMPTY = INT64_MAX;
constexpr unsigned WARP = 0xffffffffu;

__device__ __forceinline__ Key make_key(int distance, unsigned index) {
    return static_cast<Key>(static_cast<std::uint64_t>(static_cast<unsigned>(distance)) << 32 | index);
}
__device__ __forceinline__ int key_distance(Key key) {
    return static_cast<int>(key >> 32);
}
__device__ __forceinline__ int lane_id() {
    return static_cast<int>(threadIdx.x & 31);
}

// Puts `key`, the same in all lanes and smaller than the last entry, in its place; the last entry is dropped.
__device__ __forceinline__ void insert(Key* list, int want, Key key) {
    const int lane = lane_id();
    int place = 0;
    for (int base = 0; base < want; base += 32) {
        const int i = base + lane;
        place += __popc(__ballot_sync(WARP, i < want && list[i] < key));
    }
    for (int base = (want - 1) & ~31; base + 31 >= place && base >= 0; base -= 32) {
        const int i = base + lane;
        const bool moves = i < want && i >= place;
        const Key moved = !moves ? EMPTY : i == place ? key : list[i - 1];
        __syncwarp();
        if (moves) list[i] = moved;
        __syncwarp();
    }
}

// Offers the keys of all lanes to the warp's list; lanes without one pass EMPTY. Returns the last entry.
__device__ __forceinline__ Key offer(Key* list, int want, Key key) {
    Key last = list[want - 1];
    unsigned todo = __ballot_sync(WARP, key < last);
    while (todo) {
        const int from = __ffs(static_cast<int>(todo)) - 1;
        insert(list, want, __shfl_sync(WARP, key, from));
        last = list[want - 1];
        todo &= todo - 1;
        todo &= __ballot_sync(WARP, key < last);
    }
    return last;
}

// A distance that at least `want` <= 32 of the lanes do not exceed. INT32_MAX stands for none.
__device__ __forceinline__ int reached_by(int distance, int want) {
    int limit = INT32_MAX;
    for (int taken = 0; taken < want; ++taken) {
        limit = __reduce_min_sync(WARP, distance);
        const unsigned equal = __ballot_sync(WARP, distance == limit);
        if (lane_id() == __ffs(static_cast<int>(equal)) - 1) distance = INT32_MAX;
    }
    return limit;
}

}  // namespace lpkernel::cuda
