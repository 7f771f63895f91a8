// lpkernel._cuda.scan: plans on the device, from Python. Buffers are (address, bytes) pairs, each checked against the
// shape that it must hold; what they hold is the caller's word.

#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "bind/span.h"
#include "cuda/portable.cuh"
#include "cuda/scan.h"

namespace lpkernel::cuda {

inline void expect_shape(bool right, const char* what) {
    if (!right) throw pybind11::value_error(what);
}

inline ScanShape scan_shape(const pybind11::dict& from) {
    const auto number = [&](const char* name) { return from[name].cast<int>(); };
    const auto form = from["form"].cast<std::string>();
    expect_shape(form == "rows" || form == "gather" || form == "latents", "form: expected rows, gather or latents");
    ScanShape shape;
    shape.form = form == "rows" ? Form::CodeRows : form == "gather" ? Form::CodeGather : Form::Latents;
    shape.tile = number("tile");
    shape.group = number("group");
    shape.threads = number("threads");
    shape.split = number("split");
    shape.span = number("span");
    shape.depth = number("depth");
    shape.k = number("k");
    shape.codes = number("codes");
    shape.width = number("width");
    shape.cut = number("cut");
    const bool in_codes = shape.form != Form::Latents;
    expect_shape(shape.tile >= 1 && shape.tile <= 4 && shape.group >= 1 && shape.group <= 1 << 16, "tile or group");
    const int fewest = shape.form == Form::CodeRows ? FETCHERS + 32 : 32;
    expect_shape(shape.threads >= fewest && shape.threads <= MOST_THREADS && shape.threads % 32 == 0, "threads");
    expect_shape(shape.split >= 1 && shape.split <= 32 && !(shape.split & (shape.split - 1)) &&
                     (shape.form != Form::CodeRows || shape.split == 1),
                 "split: expected a power of two, 1 for rows");
    expect_shape(shape.k >= 1 && shape.k <= MOST_NEIGHBOURS, "k: expected 1 to 128");
    expect_shape(
        shape.width >= 1 && shape.width <= 1 << 20 && (in_codes ? shape.width == 1 : shape.width % CELL_VALUES == 0),
        "width: expected 1 for codes, a multiple of 8 for latents");
    expect_shape(in_codes ? shape.codes >= 4 && shape.codes <= INT16_CODES && shape.codes % 4 == 0 : shape.codes == 0,
                 "codes: expected a multiple of 4 up to 32768, 0 for latents");
    expect_shape(shape.span >= 1 && static_cast<std::int64_t>(shape.span) * shape.tile * shape.width <= 1 << 17,
                 "span");
    expect_shape(shape.form == Form::CodeRows
                     ? shape.depth >= 1 && static_cast<std::int64_t>(shape.depth) * shape.codes * shape.tile <= 1 << 17
                     : shape.depth == 0,
                 "depth");
    expect_shape(shape.cut >= 0 && shape.cut <= MOST_CUT, "cut: expected a patch of up to 32 cells");
    return shape;
}

// Blocks of a shape that a multiprocessor of the device holds at once.
inline int scan_blocks(const pybind11::dict& from, int device) {
    const ScanShape shape = scan_shape(from);
    const OnDevice here(device);
    int blocks = 0;
    check(scan_resident(shape, blocks), "scan_resident");
    return blocks;
}

inline void run_scan(const pybind11::dict& shape_from, const pybind11::dict& numbers, const pybind11::dict& buffers,
                     int device, std::uintptr_t stream) {
    const auto number = [&](const char* name) { return numbers[name].cast<std::int64_t>(); };
    ScanArgs args{};
    args.shape = scan_shape(shape_from);
    args.shared = shared_map(args.shape);
    expect_shape(number("shared") == args.shared.bytes, "shared: the launch table and the kernel disagree");
    const ScanShape& shape = args.shape;
    const std::int64_t groups = number("groups"), scales = number("scales"), steps = number("steps"),
                       images = number("images"), side = number("side"), allowed = number("allowed"),
                       rows = number("rows"), offsets = number("offsets");
    expect_shape(groups >= 1 && groups * shape.group <= 1 << 24, "groups");
    expect_shape(scales >= 1 && scales <= 4096 && steps >= 0 && steps < std::int64_t{1} << 31, "scales or steps");
    expect_shape(images >= 1 && images < std::int64_t{1} << 30, "images");
    expect_shape(side >= 1 && side <= 4096 && side * side * shape.width * shape.tile < std::int64_t{1} << 31, "side");
    expect_shape(allowed >= 1 && allowed <= MOST_IMAGES && shape.k <= allowed, "allowed: expected k or more images");
    expect_shape(number("pitch") >= allowed && number("pitch") < std::int64_t{1} << 31 &&
                     (shape.width > 1 || number("pitch") % 8 == 0),
                 "pitch");
    expect_shape(rows <= shape.codes, "rows: more than codes");
    expect_shape(offsets == 0 || offsets == steps * allowed, "offsets: expected one a step and allowed image, or none");
    args.code_shift = static_cast<int>(number("code_shift"));
    expect_shape(
        args.code_shift == 4 ? shape.codes <= MOST_ROW_CODES : args.code_shift == 0 && shape.form != Form::CodeRows,
        "code_shift: expected 4 for rows, 4 or 0 for gather, 0 for latents");
    args.scale_count = static_cast<int>(scales);
    args.image_count = static_cast<int>(images);
    args.side = static_cast<int>(side);
    args.allowed = static_cast<int>(allowed);
    args.pitch = number("pitch");
    args.seed = numbers["seed"].cast<std::uint64_t>();
    args.first_step = static_cast<std::uint32_t>(number("first_step"));

    KnownBuffers known;
    const std::int64_t canvas = side * side * shape.width;
    const auto take = [&](auto*& into, const char* name, std::int64_t count) {
        into = span<std::remove_reference_t<decltype(*into)>>(buffers[name], name, count, known);
    };
    take(args.scales, "scales", scales * 5);
    take(args.steps, "steps", steps * 4);
    take(args.cells, "cells", number("cells"));
    take(args.resize, "resize", scales * 3 * side);
    take(args.cuts, "cuts", steps * 3);
    take(args.bank, "bank", number("bank_cells") * args.pitch * shape.width);
    take(args.table, "table", rows * shape.codes);
    take(args.candidates, "candidates", allowed);
    take(args.offsets, "offsets", offsets);
    take(args.begin, "begin", scales * 2);
    take(args.start, "start", number("start_cells") * shape.width);
    take(args.images, "images", images);
    take(args.canvas, "canvas", groups * shape.group * 2 * shape.tile * canvas);
    take(args.partial, "partial", shape.group > 1 ? groups * 2 * shape.tile * shape.k * shape.group : 0);
    take(args.counters, "counters", groups);
    take(args.sources, "sources", images * side * side);

    const pybind11::gil_scoped_release free;
    const OnDevice here(device);
    check(scan(args, static_cast<int>(groups), reinterpret_cast<cudaStream_t>(stream)), "scan");
}

inline void bind_scan(pybind11::module_& module) {
    namespace py = pybind11;
    py::dict limits;
    limits["INT16_CODES"] = INT16_CODES;
    limits["MOST_CUT"] = MOST_CUT;
    limits["MOST_NEIGHBOURS"] = MOST_NEIGHBOURS;
    limits["MOST_ROW_CODES"] = MOST_ROW_CODES;
    limits["MOST_THREADS"] = MOST_THREADS;
    limits["FETCHERS"] = FETCHERS;
    module.attr("LIMITS") = limits;
    module.def("scan_blocks", &scan_blocks, py::arg("shape"), py::arg("device"),
               "Blocks of a launch shape that a multiprocessor holds at once.");
    module.def("scan", &run_scan, py::arg("shape"), py::arg("numbers"), py::arg("buffers"), py::arg("device"),
               py::arg("stream"), "Starts a scan; see csrc/cuda/scan.h for the buffers, each (address, bytes).");
}

}  // namespace lpkernel::cuda
