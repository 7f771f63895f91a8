// lpkernel._cpu: the C++ code as a Python module. No torch headers: a build needs a compiler and pybind11 only.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "common/philox.h"

namespace py = pybind11;

namespace {

std::string compiler() {
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#elif defined(_MSC_VER)
    return "msvc " + std::to_string(_MSC_VER);
#else
    return "unknown";
#endif
}

// The vector extensions that the compiler was free to use, weakest first; empty: scalar code only.
std::vector<std::string> isa() {
    std::vector<std::string> names;
#if defined(__SSE2__) || defined(_M_X64)
    names.emplace_back("sse2");
#endif
#if defined(__AVX2__)
    names.emplace_back("avx2");
#endif
#if defined(__AVX512F__)
    names.emplace_back("avx512f");
#endif
#if defined(__ARM_NEON)
    names.emplace_back("neon");
#endif
    return names;
}

py::dict build_info() {
    py::dict info;
    info["compiler"] = compiler();
    info["cxx_standard"] = static_cast<long>(__cplusplus);
    info["isa"] = isa();
#if defined(_OPENMP)
    info["openmp"] = static_cast<long>(_OPENMP);
#else
    info["openmp"] = py::none();
#endif
#if defined(NDEBUG)
    info["assertions"] = false;
#else
    info["assertions"] = true;
#endif
    return info;
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
    module.doc() = "Compiled CPU code of lpkernel; reach it through lpkernel._native.";
    module.def("philox4x32_10", &lpkernel::philox4x32_10, py::arg("counter"), py::arg("key"),
               "Four words of Philox 4x32-10 from a counter of four and a key of two, each in [0, 2**32).");
    module.def("draw_index", &lpkernel::draw_index, py::arg("u"), py::arg("count"),
               "(u * count) >> 32 for u in [0, 2**32) and count in [1, 2**32).");
    module.def("build_info", &build_info,
               "How this file was compiled: compiler, cxx_standard, isa, openmp (its date, or None), assertions.");
}
