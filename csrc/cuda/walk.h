// Plans over small banks by tables of distances, one block per image: what the host passes to the device. No Python.

#pragma once

#include <cstdint>

#include "cuda/scan.h"

namespace lpkernel::cuda {

constexpr int WALK_IMAGES = 2048;  // allowed bank images, at most: 4 per thread
constexpr int WALK_SIDE = 64;      // largest side: the sources of two scales lie in shared memory
constexpr int WALK_THREADS = 512;  // of a block that walks, at most
constexpr int WALK_SPAN = 288;     // rows that are staged at a time: a multiple of those that a thread has in flight
constexpr int WALK_SPLIT = 4;      // lanes that share the rows of one bank image, at most
constexpr int MEASURE_THREADS = 128;
constexpr int MEASURED = 8;       // images, or bank images, whose cell a block measures
constexpr int WALK_VALUES = 512;  // latent channels of a cell, at most
constexpr int ROW_STEP = 8;       // entries of a row of distances come in multiples of this: 32 bytes

// Byte offsets of what a walking block keeps in its shared memory, each a multiple of 16.
struct WalkMap {
    int window = 0;  // rows of the staged cells; before it, at 0, the sources of two scales
    int lists = 0;   // nearest bank images, one list per warp
    int paths = 0;   // where boundaries run
    int sums = 0;    // their accumulated errors
    int bytes = 0;
};

// The argument of the kernels. In `scan` the bank is that of DeviceBank (codes or latents), canvas (rows, 2, M * M, W);
// partial, counters, pitch of keys and most of `shape` (all but k, codes, width, cut) are not used.
struct WalkArgs {
    ScanArgs scan;
    std::int32_t* tables;    // (cells of all scales, A, pitch): squared distances of a cell's images; a row of zeros
    std::int32_t* measured;  // (rows, M * M, pitch): distances of what a cell began its scale with
    std::int32_t* state;     // (rows, M * M): sources at the end of a scale, -1 where a cell is as it began
    int pitch = 0;           // of rows of distances: A padded to a multiple of ROW_STEP
    bool carries = false;    // scales after the first start from the sources of the one before; all in one launch
    int rows = 0, base = 0;  // images at a time, and the first of them
    int threads = 0;         // of a block that walks
    int split = 1;           // lanes that share the rows of one bank image
    WalkMap shared;
    std::int64_t zeros = 0;  // where in `tables` the row of zeros is
    // The scales of a launch, and where the first one's cells begin in the tables and in a bank of latents.
    int first_scale = 0, scale_end = 0;
    std::int64_t first_cell = 0;
};

// Threads, split and shared memory of the blocks that walk.
void plan_walk(WalkArgs& args);

// Fills the part of `args.tables` that belongs to the bank of `args`, one scale's cells after another from its first
// one on; scales (S, 5) is on the host, all else on the device. Returns once started.
cudaError_t walk_tables(WalkArgs args, const std::int32_t* scales, cudaStream_t stream);

// Runs the plan; scales (S, 5) and begin (S, 2) are on the host. Returns once started.
cudaError_t walk(WalkArgs args, const std::int32_t* scales, const std::int32_t* begin, cudaStream_t stream);

}  // namespace lpkernel::cuda
