// Tasks over threads. With OpenMP: a team that lives on between calls; without: one after the other.

#pragma once

#include <cstdint>
#include <exception>

namespace lpkernel {

// Runs task(i) for i in [0, count), on up to `threads` threads, in any order. The first exception is thrown again
// here, since none may leave an OpenMP region.
template <class Task>
void parallel(std::int64_t count, int threads, const Task& task) {
    std::exception_ptr error;
    const int team = static_cast<int>(count < threads ? count : threads);
#if defined(_OPENMP)
#pragma omp parallel for num_threads(team) schedule(dynamic) if (team > 1)
#endif
    for (std::int64_t i = 0; i < count; ++i) {
        try {
            task(i);
        } catch (...) {
#if defined(_OPENMP)
#pragma omp critical(lpkernel_error)
#endif
            if (!error) error = std::current_exception();
        }
    }
    static_cast<void>(team);
    if (error) std::rethrow_exception(error);
}

}  // namespace lpkernel
