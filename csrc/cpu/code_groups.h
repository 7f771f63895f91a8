// Groups of near codes: the least distance of a code to a group bounds its distance to every code in it.

#pragma once

#include <cstdint>
#include <vector>

#include "cpu/kernels.h"

namespace lpkernel {

struct CodeGroups {
    std::vector<std::uint8_t> of;       // (codes) half * GROUPS + group of each
    std::vector<std::int32_t> nearest;  // (codes, 2, GROUPS) distance to the nearest code of each half of a group

    // table: (codes, codes) distances; counts: how often each code occurs, which matters for how good the bounds are.
    CodeGroups(const std::int32_t* table, int codes, const std::vector<std::int64_t>& counts);
};

}  // namespace lpkernel
