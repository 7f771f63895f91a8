// What the bindings share: buffers that come from Python, CUDA errors as exceptions, the device of a call.

#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/portable.cuh"

namespace lpkernel::cuda {

// Raises RuntimeError "what: cudaErrorName: its text". Needs no GIL.
inline void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    (void)cudaGetLastError();  // so that the next call does not see it
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorName(error) + ": " + cudaGetErrorString(error));
}

// Makes a device current while it lives.
class OnDevice {
  public:
    explicit OnDevice(int device) {
        check(cudaGetDevice(&before_), "cudaGetDevice");
        if (device != before_) check(cudaSetDevice(device), "cudaSetDevice");
        changed_ = device != before_;
    }
    ~OnDevice() {
        if (changed_) (void)cudaSetDevice(before_);
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

  private:
    int before_ = 0;
    bool changed_ = false;
};

// The buffer `pair`, an (address, bytes) from Python, as `count` values of T; kernels started while `known` lives may
// touch them. nullptr for 0 values. Raises ValueError for a buffer that is null, misaligned or too small.
template <class T>
T* span(const pybind11::handle& pair, const char* name, std::int64_t count, KnownBuffers& known) {
    const auto numbers = pair.cast<pybind11::tuple>();
    if (numbers.size() != 2) throw pybind11::value_error(std::string(name) + ": expected (address, bytes)");
    const auto address = numbers[0].cast<std::uint64_t>();
    const auto bytes = numbers[1].cast<std::int64_t>();
    const std::string got = std::string(name) + ": got " + std::to_string(bytes) + " bytes";
    if (count < 0 || count > INT64_MAX / static_cast<std::int64_t>(sizeof(T))) {
        throw pybind11::value_error(got + " for a shape that is negative or overflows");
    }
    const auto need = count * static_cast<std::int64_t>(sizeof(T));
    if (bytes < need) throw pybind11::value_error(got + ", expected at least " + std::to_string(need));
    if (count == 0) return nullptr;
    if (address == 0) throw pybind11::value_error(std::string(name) + ": null address");
    if (address % alignof(T) != 0) {
        throw pybind11::value_error(std::string(name) + ": address is no multiple of " + std::to_string(alignof(T)));
    }
    T* values = reinterpret_cast<T*>(address);
    known.add(values, static_cast<std::size_t>(need));
    return values;
}

}  // namespace lpkernel::cuda
