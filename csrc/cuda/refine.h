// Seams of finished source maps, refined where they lie on the device: what the host passes there. No Python.

#pragma once

#include <cstdint>

#include "cuda/scan.h"

namespace lpkernel::cuda {

constexpr int REFINE_SIDE = 64;      // largest side: what a block knows of its map lies in shared memory
constexpr int REFINE_PART = 256;     // most cells of a part that may move
constexpr int REFINE_THREADS = 256;  // of a block, at most

// Byte offsets of what a block keeps in its shared memory, each a multiple of 16.
struct RefineMap {
    int labels = 0;  // before them, at 0, the images of the map's labels
    int counts = 0;  // cells of each label, and
    int next = 0;    // as they will be counted next
    int roots = 0;   // first cell of each cell's part, and
    int other = 0;   // the roots of a step later, or sizes of parts
    int part = 0;    // cells of the part that may move,
    int pairs = 0;   // neighbours in and beside it, and
    int beside = 0;  // the labels beside it
    int bytes = 0;
};

// The argument of the kernel. Letters as in ScanArgs.
struct RefineArgs {
    const std::int16_t* bank;        // of the last scale: codes (M * M, pitch), or latents (M * M, pitch, W)
    const std::int32_t* table;       // (V, codes), for codes
    const std::int32_t* candidates;  // (A) bank index of each allowed image, ascending
    std::int32_t* maps;              // (n, M, M) bank indices of allowed images, or -1; refined in place
    std::int64_t pitch;
    int allowed, image_count, side;
    int codes, width, code_shift;  // codes: 0 for latents
    int rounds, sweeps;            // rounds of one pass over the parts and at most so many sweeps over the cells
    int part, most;                // most cells of a part that may move, and of a map that one image may have
    int threads;                   // of a block
    RefineMap shared;
};

// Threads and shared memory of the blocks.
void plan_refine(RefineArgs& args);

// Refines the maps; returns once started.
cudaError_t refine(const RefineArgs& args, cudaStream_t stream);

}  // namespace lpkernel::cuda
