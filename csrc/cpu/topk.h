// masked_topk: the k nearest of B rows to each of Q queries over the entries that a mask marks.

#pragma once

#include <cstdint>
#include <vector>

#include "cpu/kernels.h"

namespace lpkernel {

template <class T>
struct Topk {
    const T* queries;  // (Q, D)
    const T* bank;     // (B, D)
    std::int64_t count, width, k;
    const bool* shared_mask = nullptr;  // (D), or nullptr
    const bool* own_mask = nullptr;     // (Q, D), or nullptr; at most one of the two
    const double* weights = nullptr;    // (B) finite and above 0, or nullptr; float32 only
    std::int64_t allowed = 0;           // how many bank rows are allowed
    std::vector<std::int64_t> rows;     // these, ascending; empty where all are allowed
    int threads = 1;
    std::int64_t packed_from;  // queries from which the bank is packed
};

// distances (Q, k), indices (Q, k), ascending by (distance, index); slots beyond the allowed rows hold
// (INT32_MAX or +inf, -1). int16: exact; D * (max - min)^2 < 2^31. float32: the float32 rounding of the direct
// sum in float64, of weight times that sum where there are weights; NaN last. Memory: O(min(Q, 8192) (k threads + D))
// and one packed block for each thread, or all blocks of a bank that takes up to 4 MiB packed.
void topk(const Topk<std::int16_t>& job, const Kernels& run, std::int32_t* distances, std::int64_t* indices);
void topk(const Topk<float>& job, const Kernels& run, float* distances, std::int64_t* indices);

// About how many values a search compares; choosing among rows counts as some.
template <class T>
double work_of(const Topk<T>& job) {
    constexpr double CHOICE = 1 << 10;
    const double of_query = static_cast<double>(job.allowed) * static_cast<double>(job.width + 4);
    return static_cast<double>(job.count) * (of_query + (job.k > 1 ? CHOICE : 0));
}

// Whether a search takes so few microseconds that it is done before another thread begins.
template <class T>
bool soon(const Topk<T>& job) {
    constexpr double SOON = 1 << 17;
    return work_of(job) < SOON;
}

}  // namespace lpkernel
