// The nearest images met so far: the `need` smallest keys (distance + 2^31) << 32 | index, as a heap with the largest
// on top. A scan may rank by a distance less an image's isolation, which may be below 0.
//
// A key is a total order, so the result depends neither on the order of the pushes nor on how the bank was
// divided: ties of the distance go to the lowest index, and heaps of parts merge exactly. A scan draws its rank
// among the neighbours before it searches, so it needs no more than that rank + 1.

#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

namespace lpkernel {

class Smallest {
  public:
    static constexpr std::int32_t ANY = 0x7FFFFFFF;

    // limit: no distance above it is among the `need` smallest (known from any `need` images measured before).
    void reset(std::int64_t need, std::int32_t limit = ANY) {
        need_ = static_cast<std::size_t>(need);
        limit_ = limit;
        keys_.clear();
    }

    // Indices that are pushed from now on count from here.
    void count_from(std::int64_t first) { first_ = first; }

    // Distances above this are of no use.
    std::int32_t limit() const { return limit_; }

    std::int64_t need() const { return static_cast<std::int64_t>(need_); }

    static std::int32_t distance(std::uint64_t key) {
        return static_cast<std::int32_t>(static_cast<std::uint32_t>(key >> 32) ^ SIGN);
    }

    static std::int64_t index(std::uint64_t key) { return static_cast<std::int64_t>(key & 0xFFFFFFFFu); }

    static std::uint64_t key(std::int32_t distance, std::int64_t index) {
        const std::uint32_t above = static_cast<std::uint32_t>(distance) ^ SIGN;
        return std::uint64_t{above} << 32 | static_cast<std::uint64_t>(index);
    }

    void push(std::int32_t distance, std::int64_t index) { push(key(distance, first_ + index)); }

    void push(std::uint64_t key) {
        if (keys_.size() == need_) {
            if (key >= keys_.front()) return;
            std::pop_heap(keys_.begin(), keys_.end());
            keys_.back() = key;
            std::push_heap(keys_.begin(), keys_.end());
        } else {
            keys_.push_back(key);
            if (keys_.size() < need_) return;
            std::make_heap(keys_.begin(), keys_.end());
        }
        limit_ = std::min(limit_, distance(keys_.front()));
    }

    // As if these keys were pushed into an empty heap: each is placed by how many come before it.
    void assign(const std::uint64_t* keys, const std::int32_t* ranks, int count) {
        const auto kept = std::min(need_, static_cast<std::size_t>(count));
        keys_.resize(kept);
        for (int i = 0; i < count; ++i) {
            const auto before = static_cast<std::size_t>(ranks[i]);
            if (before < kept) keys_[kept - 1 - before] = keys[i];  // the largest first: a heap
        }
        if (kept == need_) limit_ = std::min(limit_, distance(keys_.front()));
    }

    bool empty() const { return keys_.empty(); }

    void merge(const Smallest& other) {
        for (const std::uint64_t key : other.keys_) push(key);
    }

    const std::vector<std::uint64_t>& keys() const { return keys_; }  // a heap once there are `need`
    std::vector<std::uint64_t>& sorted() {                            // ascending; no push after this
        if (std::is_sorted(keys_.rbegin(), keys_.rend())) {
            std::reverse(keys_.begin(), keys_.end());
        } else {
            std::sort(keys_.begin(), keys_.end());
        }
        return keys_;
    }

    static constexpr std::uint32_t SIGN = 0x80000000u;

  private:
    std::vector<std::uint64_t> keys_;
    std::size_t need_ = 1;
    std::int64_t first_ = 0;
    std::int32_t limit_ = ANY;
};

// The single nearest image, with the same functions.
class Nearest {
  public:
    void reset(std::int64_t, std::int32_t limit = Smallest::ANY) {
        key_[0] = NONE;
        limit_ = limit;
    }

    std::int32_t limit() const { return limit_; }
    std::int64_t need() const { return 1; }

    void push(std::int32_t distance, std::int64_t index) { push(Smallest::key(distance, index)); }

    void push(std::uint64_t key) {
        if (key >= key_[0]) return;
        key_[0] = key;
        limit_ = std::min(limit_, Smallest::distance(key));
    }

    bool empty() const { return key_[0] == NONE; }

    void merge(const Nearest& other) { push(other.key_[0]); }
    const std::array<std::uint64_t, 1>& sorted() const { return key_; }

  private:
    static constexpr std::uint64_t NONE = ~std::uint64_t{0};

    std::array<std::uint64_t, 1> key_{NONE};
    std::int32_t limit_ = Smallest::ANY;
};

}  // namespace lpkernel
