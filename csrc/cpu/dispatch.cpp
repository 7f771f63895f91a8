// Which kernels run: decided by the processor's features when first needed.

#include <stdexcept>

#include "cpu/kernels.h"

namespace lpkernel {

namespace {

// Tables that this machine can run, best first. __builtin_cpu_supports also checks that the system saves the registers.
// On aarch64 there is only the baseline, which is NEON there.
std::vector<const Kernels*> tables() {
    std::vector<const Kernels*> found;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") &&
                        __builtin_cpu_supports("avx512vbmi");
    if (avx2 && avx512) found.push_back(&kernels_avx512);
    if (avx2) found.push_back(&kernels_avx2);
#endif
    found.push_back(&kernels_baseline);
    return found;
}

}  // namespace

const Kernels& kernels(const std::string& isa) {
    static const std::vector<const Kernels*> found = tables();
    if (isa.empty()) return *found.front();
    std::string names;
    for (const Kernels* table : found) {
        if (isa == table->name) return *table;
        names += names.empty() ? table->name : std::string(", ") + table->name;
    }
    throw std::invalid_argument("LPKERNEL_ISA: got '" + isa + "', this machine runs " + names);
}

std::vector<std::string> available() {
    std::vector<std::string> names;
    for (const Kernels* table : tables()) names.emplace_back(table->name);
    return names;
}

}  // namespace lpkernel
