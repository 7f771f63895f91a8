// A plan run step by step for many images, distances by tensor cores: what the host passes to the device. No Python.

#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/scan.h"

namespace lpkernel::cuda {

constexpr int SLICE = 16;          // channels of a cell that an operand takes at a time; W is a multiple of it
constexpr int MOST_SLICED = 2048;  // magnitude up to which whole numbers are exact in float16
constexpr int STEP_SLICES = 4;     // slices of a row in a stage: 128 bytes
constexpr int MOST_GROUPS = 1024;  // minima of an image: 32 per lane
constexpr int MOST_LISTED = 1024;  // survivors of an image that are kept
constexpr int CHOOSE_THREADS = 256;
constexpr float NO_LIMIT = 1e38f;  // below the constant of positions without an image

// A block multiplies 32 * image_blocks images by 64 * BANK_WARPS bank images, with two rows of BANK_WARPS warps.
struct StepTile {
    static constexpr int BANK_WARPS = 2;  // of 64 bank images each
    int image_blocks = 4;                 // of 16 images each, per warp: 2 or 4

    int images() const { return 32 * image_blocks; }
    int bank() const { return 64 * BANK_WARPS; }
    int threads() const { return 64 * BANK_WARPS; }
};

struct alignas(8) Survivor {
    float score;
    int image;
};

// The argument of the kernels. In `scan` the bank is (cells of all scales, pitch, W) float16, pitch a multiple of the
// tile; start (cells, W) float16; canvas (rows, 2, M * M, W) float16; table, shape (all but width, k and cut), counters
// and partial are not used.
struct StepArgs {
    ScanArgs scan;
    const float* constants;  // (T, pitch): |b|^2 over the compared cells less the offset; huge where there is no image
    float* minima;           // (rows, groups)
    float* limits;           // (rows)
    unsigned* counts;        // (rows): survivors; zero
    Survivor* survivors;     // (rows, MOST_LISTED)
    bool overlaps = false;   // whether kernels may start while those before them end
    int rows = 0;            // images at a time
    int base = 0;            // the first of them
    int image_tiles = 0;
    int sampled = 0, every = 1;  // tiles of the sample: tile i * every, i < sampled
    int parts = 1, groups = 0;   // minima of a lane in a tile (1, 2, 4 or 8), and of an image
    // The step.
    int scale = 0, step = 0;
    std::int64_t first_cell = 0;  // of the scale, in the bank
    int scale_side = 0;
    const std::int32_t *compared_cells = nullptr, *written_cells = nullptr;
    int compared = 0, written = 0;
    float slack = 0;  // at least twice the error of a score
};

// Sets the sizes of the bank's sample, `parts` and `groups`.
void plan_steps(StepArgs& args, const StepTile& tile);

// Bytes of shared memory that the choice of a step takes.
std::size_t step_choose_bytes(int compared, int width, int cut);

// Runs the plan; scales (S, 5), steps (T, 4) and slacks (T) are on the host. The bank and the rest of `args` are on the
// device, `counts` zero. Returns once started.
cudaError_t steps(StepArgs args, const StepTile& tile, const std::int32_t* scales, const std::int32_t* steps,
                  const float* slacks, cudaStream_t stream);

}  // namespace lpkernel::cuda
