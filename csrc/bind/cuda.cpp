// lpkernel._cuda: the CUDA code as a Python module. No torch headers: a build needs nvcc, a C++ compiler and pybind11.
//
// Device buffers are passed as (address, bytes) and checked against the shape they must hold; the caller answers for
// what they hold, and for keeping them alive until the stream is done. Streams are the integers that torch calls
// cuda_stream. CUDA errors raise RuntimeError with their name.
//
//   masked_topk(queries, bank, patch_mask | None, per_query: bool, candidate_mask | None, weights | None, Q, B, D, K,
//               is_int16: bool, distances, indices, scratch, device: int, stream: int,
//               launch: (tile, query_warps, bank_warps, slabs, stride))
//   masked_topk_scratch(Q, B, D, K, per_query, weighted: bool, launch) -> bytes of `scratch`, 16-byte aligned
//     stride: tensor cores screen the bank, with every stride-th row as a sample; 0 to compare all directly
//   masked_topk_blocks(K, is_int16, per_query, launch, device) -> blocks that a multiprocessor holds at once
//   masked_topk_bytes(K, is_int16, per_query, launch) -> bytes of shared memory of a block
//   scan, scan_blocks, steps: bind/cuda_scan.h; walk, walk_tables: bind/cuda_walk.h
//   device_count(), build_info()

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>

#include "bind/cuda_refine.h"
#include "bind/cuda_scan.h"
#include "bind/cuda_walk.h"
#include "bind/expect.h"
#include "bind/span.h"
#include "cuda/portable.cuh"
#include "cuda/screen.h"
#include "cuda/topk.h"

namespace py = pybind11;

namespace {

using lpkernel::expect;
using lpkernel::cuda::check;
using lpkernel::cuda::KnownBuffers;
using lpkernel::cuda::OnDevice;
using lpkernel::cuda::ScreenArgs;
using lpkernel::cuda::span;
using lpkernel::cuda::TopkArgs;
using lpkernel::cuda::TopkShape;

constexpr std::int64_t MOST = std::int64_t{1} << 30;  // of Q, B and D

// Devices that can be used; 0 where there is no driver.
int device_count() {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    const std::string name = cudaGetErrorName(error);
    if (name == "cudaErrorNoDevice" || name == "cudaErrorInsufficientDriver") {
        (void)cudaGetLastError();
        return 0;
    }
    check(error, "cudaGetDeviceCount");
    return count;
}

py::dict build_info() {
    py::dict info;
    int version = 0;
    check(cudaRuntimeGetVersion(&version), "cudaRuntimeGetVersion");
    info["runtime"] = std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
    info["cxx_standard"] = static_cast<long>(__cplusplus);
#if defined(SIMT_TEST)
    info["emulated"] = true;
#else
    info["emulated"] = false;
#endif
    return info;
}

TopkShape topk_shape(const py::tuple& launch) {
    expect(launch.size() == 5, "launch: expected (tile, query_warps, bank_warps, slabs, stride)");
    TopkShape shape;
    shape.tile = launch[0].cast<int>();
    shape.query_warps = launch[1].cast<int>();
    shape.bank_warps = launch[2].cast<int>();
    shape.slabs = launch[3].cast<int>();
    const auto warps = [](int count) { return count >= 1 && count <= lpkernel::cuda::MOST_TOPK_WARPS; };
    expect(shape.tile == 2 || shape.tile == 8, "launch: tile is 2 or 8");
    expect(warps(shape.query_warps) && warps(shape.bank_warps) && warps(shape.query_warps * shape.bank_warps),
           "launch: 1 to 8 warps");
    expect(shape.slabs >= 1 && shape.slabs <= 65535, "launch: 1 to 65535 slabs");
    return shape;
}

// The launch of these sizes, without its buffers and not yet planned.
TopkArgs topk_args(std::int64_t q, std::int64_t b, std::int64_t d, std::int64_t k, const py::tuple& launch) {
    expect(q >= 1 && q <= MOST && b >= 1 && b <= MOST && d >= 0 && d <= MOST, "Q, B or D: expected 1 to 2^30");
    expect(k >= 1 && k <= lpkernel::MOST_NEIGHBOURS, "K: expected 1 to 128");
    TopkArgs args{};
    args.query_count = static_cast<int>(q);
    args.bank_count = static_cast<int>(b);
    args.width = static_cast<int>(d);
    args.k = static_cast<int>(k);
    args.shape = topk_shape(launch);
    return args;
}

// Scratch: keys (Q, slabs, K), then what a screen keeps, from a multiple of 256 bytes on.
std::int64_t partial_keys(const TopkArgs& args) {
    const std::int64_t keys = std::int64_t{args.query_count} * args.shape.slabs * args.k;
    return args.shape.slabs > 1 ? (keys + 31) / 32 * 32 : 0;
}

// The screened search of `args`, its buffers behind the keys in `scratch`; plan.stride is 0 where there is none.
ScreenArgs screen_args(const TopkArgs& args, const py::tuple& launch, std::int64_t* scratch) {
    const auto stride = launch[4].cast<int>();
    expect(stride >= 0 && stride <= 1024, "launch: stride is 0 to 1024");
    ScreenArgs screened{};
    screened.topk = args;
    screened.plan = lpkernel::cuda::plan_screen(args, stride);
    if (scratch && screened.plan.stride) lpkernel::cuda::place_screen(screened, scratch + partial_keys(args));
    return screened;
}

std::int64_t scratch_bytes(const TopkArgs& args, const py::tuple& launch) {
    ScreenArgs screened = screen_args(args, launch, nullptr);
    return partial_keys(args) * 8 + (screened.plan.stride ? lpkernel::cuda::place_screen(screened, nullptr) : 0);
}

std::int64_t masked_topk_scratch(std::int64_t q, std::int64_t b, std::int64_t d, std::int64_t k, bool per_query,
                                 bool weighted, const py::tuple& launch) {
    static constexpr double ANY_WEIGHTS = 1.0;  // sizes depend only on whether there are any
    TopkArgs args = topk_args(q, b, d, k, launch);
    args.own_mask = per_query && d > 0;
    args.weights = weighted ? &ANY_WEIGHTS : nullptr;
    lpkernel::cuda::plan_topk(args);
    return scratch_bytes(args, launch);
}

int masked_topk_blocks(int k, bool integers, bool per_query, const py::tuple& launch, int device) {
    expect(k >= 1 && k <= lpkernel::MOST_NEIGHBOURS, "K: expected 1 to 128");
    const TopkShape shape = topk_shape(launch);
    const OnDevice here(device);
    int blocks = 0;
    check(lpkernel::cuda::topk_resident(shape, k, integers, per_query, blocks), "masked_topk_blocks");
    return blocks;
}

int masked_topk_bytes(int k, bool integers, bool per_query, const py::tuple& launch) {
    expect(k >= 1 && k <= lpkernel::MOST_NEIGHBOURS, "K: expected 1 to 128");
    return lpkernel::cuda::topk_map(topk_shape(launch), k, integers ? 2 : 4, per_query).bytes;
}

// Fills in the buffers of one type of values.
template <class Value, class Distance>
void take_buffers(TopkArgs& args, const py::handle& queries, const py::handle& bank, const py::handle& distances,
                  KnownBuffers& known) {
    const std::int64_t width = args.width;
    args.queries = span<const Value>(queries, "queries", args.query_count * width, known);
    args.bank = span<const Value>(bank, "bank", args.bank_count * width, known);
    args.distances = span<Distance>(distances, "distances", std::int64_t{args.query_count} * args.k, known);
}

void masked_topk(const py::object& queries, const py::object& bank, const py::object& patch_mask, bool per_query,
                 const py::object& candidate_mask, const py::object& weights, std::int64_t q, std::int64_t b,
                 std::int64_t d, std::int64_t k, bool is_int16, const py::object& distances, const py::object& indices,
                 const py::object& scratch, int device, std::uintptr_t stream, const py::tuple& launch) {
    TopkArgs args = topk_args(q, b, d, k, launch);
    KnownBuffers known;
    args.integers = is_int16;
    if (is_int16) {
        take_buffers<std::int16_t, std::int32_t>(args, queries, bank, distances, known);
    } else {
        take_buffers<float, float>(args, queries, bank, distances, known);
    }
    args.own_mask = per_query && !patch_mask.is_none() && d > 0;
    if (!patch_mask.is_none()) {
        args.patch_mask = span<const std::uint8_t>(patch_mask, "patch_mask", per_query ? q * d : d, known);
    }
    if (!candidate_mask.is_none()) {
        args.candidate_mask = span<const std::uint8_t>(candidate_mask, "candidate_mask", b, known);
    }
    if (!weights.is_none()) {
        expect(!is_int16, "weights: of float32 rows alone");
        args.weights = span<const double>(weights, "weights", b, known);
    }
    args.indices = span<std::int64_t>(indices, "indices", q * k, known);
    lpkernel::cuda::plan_topk(args);
    const std::int64_t bytes = scratch_bytes(args, launch);
    args.partial = span<std::int64_t>(scratch, "scratch", bytes / 8, known);
    expect(reinterpret_cast<std::uintptr_t>(args.partial) % 16 == 0, "scratch: address is no multiple of 16");
    const ScreenArgs screened = screen_args(args, launch, args.partial);

    const py::gil_scoped_release free;
    const OnDevice here(device);
    const auto on = reinterpret_cast<cudaStream_t>(stream);
    check(screened.plan.stride ? lpkernel::cuda::screen(screened, on) : lpkernel::cuda::topk(args, on), "masked_topk");
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
    module.doc() = "Compiled CUDA code of lpkernel; reach it through lpkernel._native.";
    module.def("build_info", &build_info,
               "How this file was compiled: runtime (version of the CUDA runtime in it), cxx_standard, emulated.");
    module.def("device_count", &device_count, "CUDA devices that can be used; 0 where there is no driver.");
    module.def("masked_topk_scratch", &masked_topk_scratch, py::arg("Q"), py::arg("B"), py::arg("D"), py::arg("K"),
               py::arg("per_query"), py::arg("weighted"), py::arg("launch"),
               "Bytes of scratch that masked_topk needs.");
    module.def("masked_topk_blocks", &masked_topk_blocks, py::arg("K"), py::arg("is_int16"), py::arg("per_query"),
               py::arg("launch"), py::arg("device"), "Blocks of a launch that a multiprocessor holds at once.");
    module.def("masked_topk_bytes", &masked_topk_bytes, py::arg("K"), py::arg("is_int16"), py::arg("per_query"),
               py::arg("launch"), "Bytes of shared memory that a block of a launch takes.");
    module.def("masked_topk", &masked_topk, py::arg("queries"), py::arg("bank"), py::arg("patch_mask"),
               py::arg("per_query"), py::arg("candidate_mask"), py::arg("weights"), py::arg("Q"), py::arg("B"),
               py::arg("D"), py::arg("K"), py::arg("is_int16"), py::arg("distances"), py::arg("indices"),
               py::arg("scratch"), py::arg("device"), py::arg("stream"), py::arg("launch"),
               "Starts a search; see the top of csrc/bind/cuda.cpp and lpkernel.masked_topk.");
    lpkernel::cuda::bind_scan(module);
    lpkernel::cuda::bind_walk(module);
    lpkernel::cuda::bind_refine(module);
}
