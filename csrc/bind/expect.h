// What the bindings of every module refuse an argument with.

#pragma once

#include <pybind11/pybind11.h>

namespace lpkernel {

// Raises ValueError `what` unless `right`.
inline void expect(bool right, const char* what) {
    if (!right) throw pybind11::value_error(what);
}

}  // namespace lpkernel
