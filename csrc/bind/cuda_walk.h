// lpkernel._cuda.walk and walk_tables: plans over small banks, from Python. Buffers as in bind/cuda_scan.h.

#pragma once

#include "bind/cuda_scan.h"
#include "cuda/walk.h"

namespace lpkernel::cuda {

// Sets what the shape of `args` says of a bank and a plan.
inline void take_walk(WalkArgs& args, const pybind11::dict& numbers) {
    ScanShape& shape = args.scan.shape;
    const auto number = [&](const char* name) { return number_of(numbers, name); };
    shape.k = static_cast<int>(number("k"));
    shape.codes = static_cast<int>(number("codes"));
    shape.width = static_cast<int>(number("width"));
    shape.cut = static_cast<int>(number("cut"));
    args.scan.code_shift = static_cast<int>(number("code_shift"));
    expect(shape.k >= 1 && shape.k <= MOST_NEIGHBOURS, "k: expected 1 to 128");
    expect(shape.codes >= 0 && shape.codes <= INT16_CODES && shape.codes % TABLE_STEP == 0,
           "codes: expected a multiple of 4 up to 32768, 0 for latents");
    expect(shape.codes ? shape.width == 1
                       : shape.width >= 1 && shape.width <= WALK_VALUES && shape.width % CELL_VALUES == 0,
           "width: expected 1 for codes, a multiple of 8 up to 512 for latents");
    expect(shape.cut >= 0 && shape.cut <= MOST_CUT, "cut: expected a patch of up to 32 cells");
    const std::int64_t shift = args.scan.code_shift;
    expect(shift == 0 || (shift == CODE_SHIFT && shape.codes > 0 && shape.codes <= MOST_ROW_CODES),
           "code_shift: expected 0, or 4 for codes");
    expect(number("allowed") >= 1 && number("allowed") <= WALK_IMAGES, "allowed: expected 1 to 2048 images");
    args.pitch = (static_cast<int>(number("allowed")) + ROW_STEP - 1) / ROW_STEP * ROW_STEP;
}

// Fills in the distances of all pairs of a bank's images at the cells of some scales, from `first_cell` of `tables` on.
inline void run_walk_tables(const pybind11::dict& numbers, const pybind11::dict& buffers, int device,
                            std::uintptr_t stream) {
    const auto number = [&](const char* name) { return number_of(numbers, name); };
    WalkArgs args{};
    ScanArgs& scan = args.scan;
    take_walk(args, numbers);
    const std::int64_t scales = number("scales"), cells = number("bank_cells"), first = number("first_cell");
    expect(scales >= 1 && scales <= 4096 && first >= 0, "scales or first_cell");
    scan.scale_count = static_cast<int>(scales);
    scan.side = static_cast<int>(number("side"));
    scan.allowed = static_cast<int>(number("allowed"));
    scan.pitch = number("pitch");
    expect(scan.side >= 1 && scan.side <= WALK_SIDE && scan.pitch >= scan.allowed, "side or pitch");
    KnownBuffers known;
    const std::int32_t* host_scales;
    const std::int64_t rows = std::int64_t{scan.allowed} * args.pitch;
    take_buffer(host_scales, buffers, "host_scales", scales * 5, known);
    take_buffer(scan.scales, buffers, "scales", scales * 5, known);
    take_buffer(scan.bank, buffers, "bank", cells * scan.pitch * scan.shape.width, known);
    take_buffer(scan.table, buffers, "table", number("rows") * scan.shape.codes, known);
    take_buffer(args.tables, buffers, "tables", (first + cells) * rows, known);
    args.tables += first * rows;

    const pybind11::gil_scoped_release free;
    const OnDevice here(device);
    check(walk_tables(args, host_scales, reinterpret_cast<cudaStream_t>(stream)), "walk_tables");
}

inline void run_walk(const pybind11::dict& numbers, const pybind11::dict& buffers, int device, std::uintptr_t stream) {
    const auto number = [&](const char* name) { return number_of(numbers, name); };
    WalkArgs args{};
    ScanArgs& scan = args.scan;
    take_walk(args, numbers);
    KnownBuffers known;
    take_plan(scan, numbers, buffers, known);
    expect(scan.side <= WALK_SIDE, "side: expected up to 64");
    args.carries = number("carries") != 0;
    args.rows = static_cast<int>(number("batch"));
    expect(args.rows >= 1 && args.rows <= scan.image_count, "batch: expected 1 to the number of images");
    plan_walk(args);
    const std::int64_t map = std::int64_t{scan.side} * scan.side, begins = number("begins") != 0 ? args.rows : 0;
    args.zeros = number("table_cells") * scan.allowed * args.pitch;
    take_buffer(scan.table, buffers, "table", number("rows") * scan.shape.codes, known);
    take_buffer(scan.canvas, buffers, "canvas", begins * 2 * map * scan.shape.width, known);
    take_buffer(args.measured, buffers, "measured", begins * map * args.pitch, known);
    take_buffer(args.state, buffers, "state", begins * map, known);
    take_buffer(args.tables, buffers, "tables", args.zeros + args.pitch, known);
    const std::int32_t *host_scales, *host_begin;
    take_buffer(host_scales, buffers, "host_scales", std::int64_t{scan.scale_count} * 5, known);
    take_buffer(host_begin, buffers, "host_begin", std::int64_t{scan.scale_count} * 2, known);

    const pybind11::gil_scoped_release free;
    const OnDevice here(device);
    check(walk(args, host_scales, host_begin, reinterpret_cast<cudaStream_t>(stream)), "walk");
}

inline void bind_walk(pybind11::module_& module) {
    namespace py = pybind11;
    py::dict limits = module.attr("LIMITS").cast<py::dict>();
    limits["ROW_STEP"] = ROW_STEP;
    limits["WALK_IMAGES"] = WALK_IMAGES;
    limits["WALK_SIDE"] = WALK_SIDE;
    limits["WALK_VALUES"] = WALK_VALUES;
    module.def("walk_tables", &run_walk_tables, py::arg("numbers"), py::arg("buffers"), py::arg("device"),
               py::arg("stream"), "Fills tables of distances; see csrc/cuda/walk.h. host_scales is on the host.");
    module.def("walk", &run_walk, py::arg("numbers"), py::arg("buffers"), py::arg("device"), py::arg("stream"),
               "Starts a plan over a small bank; see csrc/cuda/walk.h. host_scales and host_begin are on the host.");
}

}  // namespace lpkernel::cuda
