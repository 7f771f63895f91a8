// lpkernel._cuda.refine: seams of maps on the device, from Python. Buffers as in bind/cuda_scan.h.

#pragma once

#include "bind/cuda_scan.h"
#include "cuda/refine.h"

namespace lpkernel::cuda {

inline void run_refine(const pybind11::dict& numbers, const pybind11::dict& buffers, int device,
                       std::uintptr_t stream) {
    const auto number = [&](const char* name) { return number_of(numbers, name); };
    const std::int64_t images = number("images"), side = number("side"), cells = side * side, part = number("part"),
                       most = number("most"), rounds = number("rounds"), sweeps = number("sweeps"),
                       allowed = number("allowed"), codes = number("codes"), width = number("width"),
                       shift = number("code_shift"), rows = number("rows");
    RefineArgs args{};
    args.pitch = number("pitch");
    expect(images >= 1 && images < std::int64_t{1} << 30, "images");
    expect(side >= 1 && side <= REFINE_SIDE, "side: expected 1 to 64");
    expect(part >= 0 && part <= REFINE_PART && part <= cells, "part: expected up to 256 cells");
    expect(most >= 0 && most <= cells, "most: expected up to all cells");
    expect(rounds >= 0 && rounds <= 100 && sweeps >= 0 && sweeps <= 100, "rounds or sweeps: expected 0 to 100");
    expect(allowed >= 1 && allowed <= MOST_IMAGES, "allowed: expected an image or more");
    expect(args.pitch >= allowed && args.pitch < std::int64_t{1} << 31, "pitch");
    expect(codes >= 0 && codes <= INT16_CODES && codes % TABLE_STEP == 0 && rows >= 0 && rows <= codes,
           "codes: expected a multiple of 4 up to 32768, 0 for latents");
    expect(codes ? width == 1 : width >= 1 && width <= 1 << 20 && width % CELL_VALUES == 0,
           "width: expected 1 for codes, a multiple of 8 for latents");
    expect(shift == 0 || (shift == CODE_SHIFT && codes > 0 && codes <= MOST_ROW_CODES),
           "code_shift: expected 0, or 4 for codes");
    args.image_count = static_cast<int>(images);
    args.side = static_cast<int>(side);
    args.part = static_cast<int>(part);
    args.most = static_cast<int>(most);
    args.rounds = static_cast<int>(rounds);
    args.sweeps = static_cast<int>(sweeps);
    args.allowed = static_cast<int>(allowed);
    args.codes = static_cast<int>(codes);
    args.width = static_cast<int>(width);
    args.code_shift = static_cast<int>(shift);
    plan_refine(args);
    expect(number("shared") == args.shared.bytes, "shared: the launch table and the kernel disagree");
    KnownBuffers known;
    take_buffer(args.bank, buffers, "bank", cells * args.pitch * width, known);
    take_buffer(args.table, buffers, "table", rows * codes, known);
    take_buffer(args.candidates, buffers, "candidates", allowed, known);
    take_buffer(args.maps, buffers, "maps", images * cells, known);

    const pybind11::gil_scoped_release free;
    const OnDevice here(device);
    check(refine(args, reinterpret_cast<cudaStream_t>(stream)), "refine");
}

inline void bind_refine(pybind11::module_& module) {
    namespace py = pybind11;
    py::dict limits = module.attr("LIMITS").cast<py::dict>();
    limits["REFINE_SIDE"] = REFINE_SIDE;
    module.def("refine", &run_refine, py::arg("numbers"), py::arg("buffers"), py::arg("device"), py::arg("stream"),
               "Starts refining the seams of maps in place; see csrc/cuda/refine.h.");
}

}  // namespace lpkernel::cuda
