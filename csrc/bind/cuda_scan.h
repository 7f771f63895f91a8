// lpkernel._cuda.scan: plans on the device, from Python. Buffers are (address, bytes) pairs, each checked against the
// shape that it must hold; the caller answers for what they hold.

#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "bind/expect.h"
#include "bind/span.h"
#include "cuda/portable.cuh"
#include "cuda/scan.h"
#include "cuda/steps.h"

namespace lpkernel::cuda {

inline ScanShape scan_shape(const pybind11::dict& from) {
    const auto number = [&](const char* name) { return from[name].cast<int>(); };
    const auto form = from["form"].cast<std::string>();
    expect(form == "rows" || form == "gather" || form == "latents", "form: expected rows, gather or latents");
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
    expect(shape.tile >= 1 && shape.tile <= 4 && shape.group >= 1 && shape.group <= 1 << 16, "tile or group");
    const int fewest = shape.form == Form::CodeRows ? FETCHERS + 32 : 32;
    expect(shape.threads >= fewest && shape.threads <= MOST_THREADS && shape.threads % 32 == 0, "threads");
    expect(shape.split >= 1 && shape.split <= 32 && !(shape.split & (shape.split - 1)) &&
               (shape.form != Form::CodeRows || shape.split == 1),
           "split: expected a power of two, 1 for rows");
    expect(shape.k >= 1 && shape.k <= MOST_NEIGHBOURS, "k: expected 1 to 128");
    expect(shape.width >= 1 && shape.width <= 1 << 20 && (in_codes ? shape.width == 1 : shape.width % CELL_VALUES == 0),
           "width: expected 1 for codes, a multiple of 8 for latents");
    expect(
        in_codes ? shape.codes >= 4 && shape.codes <= INT16_CODES && shape.codes % TABLE_STEP == 0 : shape.codes == 0,
        "codes: expected a multiple of 4 up to 32768, 0 for latents");
    expect(shape.span >= 1 && static_cast<std::int64_t>(shape.span) * shape.tile * shape.width <= 1 << 17, "span");
    expect(shape.form == Form::CodeRows
               ? shape.depth >= 1 && static_cast<std::int64_t>(shape.depth) * shape.codes * shape.tile <= 1 << 17
               : shape.depth == 0,
           "depth");
    expect(shape.cut >= 0 && shape.cut <= MOST_CUT, "cut: expected a patch of up to 32 cells");
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

inline std::int64_t number_of(const pybind11::dict& numbers, const char* name) {
    return numbers[name].cast<std::int64_t>();
}

// Takes a buffer of `count` values.
template <class T>
void take_buffer(T*& into, const pybind11::dict& buffers, const char* name, std::int64_t count, KnownBuffers& known) {
    into = span<T>(buffers[name], name, count, known);
}

// Takes the plan, the images and the results, for every engine; the shape of `args` is already known.
inline void take_plan(ScanArgs& args, const pybind11::dict& numbers, const pybind11::dict& buffers,
                      KnownBuffers& known) {
    const auto number = [&](const char* name) { return number_of(numbers, name); };
    const ScanShape& shape = args.shape;
    const std::int64_t scales = number("scales"), steps = number("steps"), images = number("images"),
                       side = number("side"), allowed = number("allowed"), offsets = number("offsets");
    expect(scales >= 1 && scales <= 4096 && steps >= 0 && steps < std::int64_t{1} << 31, "scales or steps");
    expect(images >= 1 && images < std::int64_t{1} << 30, "images");
    expect(side >= 1 && side <= MOST_SIDE && side * side * shape.width * shape.tile < std::int64_t{1} << 31, "side");
    expect(allowed >= 1 && allowed <= MOST_IMAGES && shape.k <= allowed, "allowed: expected k or more images");
    expect(number("pitch") >= allowed && number("pitch") < std::int64_t{1} << 31, "pitch");
    expect(offsets == 0 || offsets == steps * allowed, "offsets: expected one a step and allowed image, or none");
    args.scale_count = static_cast<int>(scales);
    args.image_count = static_cast<int>(images);
    args.side = static_cast<int>(side);
    args.allowed = static_cast<int>(allowed);
    args.pitch = number("pitch");
    args.seed = numbers["seed"].cast<std::uint64_t>();
    args.first_step = static_cast<std::uint32_t>(number("first_step"));

    const auto take = [&](auto*& into, const char* name, std::int64_t count) {
        take_buffer(into, buffers, name, count, known);
    };
    take(args.scales, "scales", scales * 5);
    take(args.steps, "steps", steps * 4);
    take(args.cells, "cells", number("cells"));
    take(args.resize, "resize", scales * 3 * side);
    take(args.cuts, "cuts", steps * 3);
    take(args.bank, "bank", number("bank_cells") * args.pitch * shape.width);
    take(args.candidates, "candidates", allowed);
    take(args.offsets, "offsets", offsets);
    take(args.begin, "begin", scales * 2);
    take(args.start, "start", number("start_cells") * shape.width);
    take(args.images, "images", images);
    take(args.sources, "sources", images * side * side);
}

inline void run_scan(const pybind11::dict& shape_from, const pybind11::dict& numbers, const pybind11::dict& buffers,
                     int device, std::uintptr_t stream) {
    const auto number = [&](const char* name) { return number_of(numbers, name); };
    ScanArgs args{};
    args.shape = scan_shape(shape_from);
    args.shared = shared_map(args.shape);
    expect(number("shared") == args.shared.bytes, "shared: the launch table and the kernel disagree");
    const ScanShape& shape = args.shape;
    const std::int64_t groups = number("groups"), rows = number("rows");
    expect(groups >= 1 && groups * shape.group <= 1 << 24, "groups");
    expect(rows <= shape.codes, "rows: more than codes");
    args.code_shift = static_cast<int>(number("code_shift"));
    expect(args.code_shift == CODE_SHIFT ? shape.codes <= MOST_ROW_CODES
                                         : args.code_shift == 0 && shape.form != Form::CodeRows,
           "code_shift: expected 4 for rows, 4 or 0 for gather, 0 for latents");
    KnownBuffers known;
    take_plan(args, numbers, buffers, known);
    expect(shape.width > 1 || args.pitch % CODE_STEP == 0, "pitch");
    const std::int64_t canvas = std::int64_t{args.side} * args.side * shape.width;
    take_buffer(args.table, buffers, "table", rows * shape.codes, known);
    take_buffer(args.canvas, buffers, "canvas", groups * shape.group * 2 * shape.tile * canvas, known);
    take_buffer(args.partial, buffers, "partial", shape.group > 1 ? groups * 2 * shape.tile * shape.k * shape.group : 0,
                known);
    take_buffer(args.counters, buffers, "counters", groups, known);

    const pybind11::gil_scoped_release free;
    const OnDevice here(device);
    check(scan(args, static_cast<int>(groups), reinterpret_cast<cudaStream_t>(stream)), "scan");
}

// A tile from Python: images and bank images of a block.
inline StepTile step_tile(int images, int bank) {
    StepTile tile;
    tile.image_blocks = images / 32;
    expect((images == 64 || images == 128) && bank == tile.bank(),
           "tile: expected 64 or 128 images and 128 bank images");
    return tile;
}

// How many floats the minima of an image take.
inline int step_groups(int images, int bank, int allowed, int k) {
    expect(allowed >= 1 && allowed <= MOST_IMAGES && k >= 1 && k <= MOST_NEIGHBOURS, "allowed or k");
    StepArgs args{};
    args.scan.allowed = allowed;
    args.scan.shape.k = k;
    plan_steps(args, step_tile(images, bank));
    return args.groups;
}

inline void run_steps(const pybind11::tuple& tile_from, const pybind11::dict& numbers, const pybind11::dict& buffers,
                      int device, std::uintptr_t stream) {
    const auto number = [&](const char* name) { return number_of(numbers, name); };
    const StepTile tile = step_tile(tile_from[0].cast<int>(), tile_from[1].cast<int>());
    StepArgs args{};
    ScanArgs& scan = args.scan;
    scan.shape.k = static_cast<int>(number("k"));
    scan.shape.width = static_cast<int>(number("width"));
    scan.shape.cut = static_cast<int>(number("cut"));
    expect(scan.shape.k >= 1 && scan.shape.k <= MOST_NEIGHBOURS, "k: expected 1 to 128");
    expect(scan.shape.width >= SLICE && scan.shape.width <= 1 << 20 && scan.shape.width % SLICE == 0,
           "width: expected a multiple of 16");
    expect(scan.shape.cut >= 0 && scan.shape.cut <= MOST_CUT, "cut: expected a patch of up to 32 cells");
    KnownBuffers known;
    take_plan(scan, numbers, buffers, known);
    expect(scan.pitch % tile.bank() == 0, "pitch: expected a multiple of the tile");
    args.rows = static_cast<int>(number("rows"));
    expect(args.rows >= 1 && args.rows <= scan.image_count, "rows: expected 1 to the number of images");
    expect(std::int64_t{args.rows} * scan.side * scan.side * scan.shape.width < std::int64_t{1} << 33,
           "rows: more canvas than 32-bit places of 8 values tell");
    plan_steps(args, tile);
    args.overlaps = number("overlaps") != 0;
    const std::int64_t rows = args.rows, steps_there = number("steps");
    const std::int64_t canvas = std::int64_t{scan.side} * scan.side * scan.shape.width;
    take_buffer(scan.canvas, buffers, "canvas", rows * 2 * canvas, known);
    take_buffer(args.constants, buffers, "constants", steps_there * scan.pitch, known);
    take_buffer(args.minima, buffers, "minima", rows * args.groups, known);
    take_buffer(args.limits, buffers, "limits", rows, known);
    take_buffer(args.counts, buffers, "counts", rows, known);
    take_buffer(args.survivors, buffers, "survivors", rows * MOST_LISTED, known);
    const std::int32_t *host_scales, *host_steps;
    const float* slacks;
    take_buffer(host_scales, buffers, "host_scales", std::int64_t{scan.scale_count} * 5, known);
    take_buffer(host_steps, buffers, "host_steps", steps_there * 4, known);
    take_buffer(slacks, buffers, "slacks", steps_there, known);

    const pybind11::gil_scoped_release free;
    const OnDevice here(device);
    check(steps(args, tile, host_scales, host_steps, slacks, reinterpret_cast<cudaStream_t>(stream)), "steps");
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
    limits["MOST_LISTED"] = MOST_LISTED;
    limits["MOST_SLICED"] = MOST_SLICED;
    limits["SLICE"] = SLICE;
    limits["MOST_SIDE"] = MOST_SIDE;
    limits["CODE_SHIFT"] = CODE_SHIFT;
    limits["CODE_STEP"] = CODE_STEP;
    limits["CHANNEL_STEP"] = CELL_VALUES;
    limits["TABLE_STEP"] = TABLE_STEP;
    py::dict chunk;
    for (const int tile : {1, 4}) chunk[py::int_(tile)] = row_images(tile);
    limits["CHUNK"] = chunk;
    module.attr("LIMITS") = limits;
    module.def("scan_blocks", &scan_blocks, py::arg("shape"), py::arg("device"),
               "Blocks of a launch shape that a multiprocessor holds at once.");
    module.def("scan", &run_scan, py::arg("shape"), py::arg("numbers"), py::arg("buffers"), py::arg("device"),
               py::arg("stream"), "Starts a scan; see csrc/cuda/scan.h for the buffers, each (address, bytes).");
    module.def("step_groups", &step_groups, py::arg("images"), py::arg("bank"), py::arg("allowed"), py::arg("K"),
               "Minima of an image in a plan that runs step by step.");
    module.def("step_choose_bytes", &step_choose_bytes, py::arg("compared"), py::arg("width"), py::arg("cut"),
               "Bytes of shared memory that a block takes in a plan that runs step by step.");
    module.def(
        "steps", &run_steps, py::arg("tile"), py::arg("numbers"), py::arg("buffers"), py::arg("device"),
        py::arg("stream"),
        "Starts a plan step by step; see csrc/cuda/steps.h. host_scales, host_steps and slacks are on the host.");
}

}  // namespace lpkernel::cuda
