// A whole plan for many images in one kernel launch: what the host passes to the device. No Python.

#pragma once

#include <cstdint>

#include "common/limits.h"
#include "cuda/portable.cuh"

namespace lpkernel::cuda {

// How distances are computed; see distance_codes.cuh and distance_latents.cuh.
enum class Form : int { CodeRows = 0, CodeGather = 1, Latents = 2 };

constexpr int MOST_THREADS = 384;     // leaves 168 registers for each
constexpr int FETCHERS = 64;          // threads of a block that bring table rows, in CodeRows
constexpr int MOST_ROW_CODES = 4096;  // codes that CodeRows can store times 16
constexpr int MOST_IMAGES = 1 << 30;
constexpr int MOST_CUT = 32;    // patch side of a plan with boundaries: one lane per column
constexpr int CELL_VALUES = 8;  // latent channels come in multiples of this: 16 bytes
constexpr int CODE_STEP = 8;    // codes of a cell, and
constexpr int TABLE_STEP = 4;   // entries of a table row do, too
constexpr int CODE_SHIFT = 4;   // of stored codes, where CodeRows may take them

// Byte offsets of what a block keeps in its shared memory, each a multiple of 16.
struct SharedMap {
    int window = 0;   // the compared cells of the block's images; before it, at 0, the table rows
    int where = 0;    // where these cells begin in the bank
    int lists = 0;    // nearest bank images so far, one list per warp and image
    int scalars = 0;  // five numbers per image
    int paths = 0;    // where boundaries run, two per image
    int sums = 0;     // their accumulated errors, two overlaps per image
    int bytes = 0;
    int list_pitch = 0;  // in entries: K, made odd so that lanes reading one rank of many lists hit different banks
};

// The shape of a launch. `tile` images walk through the plan together; `group` blocks share one tile, each with its
// part of the bank; `split` lanes share the cells of one bank image (CodeGather and Latents); `span` compared cells
// are staged at a time, and the table rows of `depth` cells (CodeRows).
struct ScanShape {
    Form form = Form::CodeGather;
    int tile = 1, group = 1, threads = 32, split = 1, span = 1, depth = 0;
    int k = 1, codes = 0, width = 1;  // neighbours, rows of the table, values of a cell
    int cut = 0;                      // patch side where the plan has boundaries, else 0
};

// Bank images that a thread of CodeRows owns at a time.
constexpr int row_images(int tile) {
    return tile == 1 ? 32 : 16;
}

constexpr int align16(int bytes) {
    return (bytes + 15) / 16 * 16;
}

constexpr SharedMap shared_map(const ScanShape& shape) {
    const bool rows = shape.form == Form::CodeRows;
    const int values = shape.form == Form::Latents ? shape.width : 1;
    SharedMap map;
    map.window = align16(rows ? 2 * shape.depth * shape.codes * shape.tile * 4 : 0);
    map.where = map.window + align16(shape.span * shape.tile * values * 4);
    map.lists = map.where + align16(shape.span * 8);
    map.list_pitch = shape.k | 1;
    map.scalars = map.lists + align16(shape.tile * (shape.threads / 32) * map.list_pitch * 8);
    map.paths = map.scalars + align16(5 * shape.tile * 4);
    map.sums = map.paths + align16(2 * shape.tile * shape.cut * 4);
    map.bytes = map.sums + align16(2 * shape.tile * shape.cut * shape.cut * 4);
    return map;
}

// The argument of the kernel. Letters: n images, A allowed bank images, S scales, M the last side, W = width.
struct ScanArgs {
    // The plan, as lpkernel.plan.FlatPlan.
    const std::int32_t* scales;  // (S, 5)
    const std::int32_t* steps;   // (T, 4)
    const std::int32_t* cells;
    const std::int32_t* resize;  // (S, 3, M)
    const std::int32_t* cuts;    // (T, 3)
    // The bank, cell-major: codes (M * M, pitch), shifted left by code_shift, pitch a multiple of 8; latents (all cells
    // of all scales, A, W), W a multiple of 8, with pitch = A.
    const std::int16_t* bank;
    const std::int32_t* table;       // (V, codes): V rows of a multiple of 4 entries
    const std::int32_t* candidates;  // (A) bank index of each allowed image
    const std::int32_t* offsets;     // (T, A) subtracted from distances, or null
    // Starting canvases: begin (S, 2) is, for each scale, the first cell in `start` and the number of canvases there
    // (0, 1 or n).
    const std::int32_t* begin;
    const std::int16_t* start;    // (cells, W)
    const std::uint32_t* images;  // (n) random counters
    // Scratch.
    std::int16_t* canvas;   // (blocks, 2, tile, M * M, W)
    std::int64_t* partial;  // (groups, 2, tile, k, group), keys; unused when group is 1
    unsigned* counters;     // (groups), zero
    std::int32_t* sources;  // (n, M, M)
    std::int64_t pitch;
    std::uint64_t seed;
    std::uint32_t first_step;  // random counter of the first step
    int allowed;               // A, at most MOST_IMAGES
    int scale_count, image_count, side;
    int code_shift;  // CODE_SHIFT for CodeRows
    ScanShape shape;
    SharedMap shared;
};

// Blocks of this shape that one multiprocessor of the current device holds. cudaErrorInvalidValue when there is no
// kernel of this shape.
cudaError_t scan_resident(const ScanShape& shape, int& blocks);

// Runs the plan of `args` with `groups` groups of blocks on a stream of the current device; returns once started.
// With group > 1 all groups * group blocks must be resident at once.
cudaError_t scan(const ScanArgs& args, int groups, cudaStream_t stream);

}  // namespace lpkernel::cuda
