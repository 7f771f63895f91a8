// The minimum error boundaries of a step (Efros and Freeman 2001), as in lpkernel.backends.specification.kept_by_cut.
//
// E(r, c) is the squared distance of canvas cell and new cell, over an overlap of P rows and `width` columns. The
// boundary is the path of least sum from top to bottom that moves by at most one column a row:
//   acc(r, c) = E(r, c) + min of acc(r - 1, c - 1), acc(r - 1, c), acc(r - 1, c + 1).
// Cells left of it stay as they are; the same holds, transposed, for the rows on top.
//
// One warp finds one path, with a lane per column. All lanes together write the errors of an overlap to shared memory,
// where they are summed in place; from the last row upwards each row takes a minimum over the warp and a ballot.
// Traffic: 2 cells for each of the P * (left + top) errors; shared memory 2 * (P * P + P) * 4 bytes an image.
// Ties: the lowest column, from the last row upwards. Limits: P <= 32, sums below 2^31.

#pragma once

#include "cuda/block.cuh"

namespace lpkernel::cuda {

class Boundaries {
  public:
    __device__ __forceinline__ Boundaries() {}

    // The boundaries of step t, at a scale of this side.
    __device__ __forceinline__ Boundaries(const ScanArgs& args, int t, int side) : patch_(args.shape.cut), side_(side) {
        if (patch_ == 0) return;
        const std::int32_t* cut = args.cuts + 3 * t;
        if (cut[1] | cut[2]) cut_ = cut;
    }

    __device__ __forceinline__ bool some() const { return cut_ != nullptr; }

    // Puts the paths of all images in block.paths; error(q, cell) is E of a cell of image q. Ends without a barrier.
    template <int TQ, class Error>
    __device__ __forceinline__ void find(const Block& block, Error error) const {
        const int lane = lane_id();
        const int warp = static_cast<int>(threadIdx.x) / 32, warps = static_cast<int>(blockDim.x) / 32;
        for (int task = warp; task < 2 * TQ; task += warps) {
            const int q = task / 2, width = task % 2 ? cut_[2] : cut_[1];
            const int down = task % 2 ? 1 : side_, across = task % 2 ? side_ : 1;
            int *sums = block.sums + task * patch_ * patch_, *path = block.paths + task * patch_;
#pragma unroll 1
            for (int i = lane; i < patch_ * width; i += 32) {
                sums[i] = error(q, cut_[0] + i / width * down + i % width * across);
            }
            __syncwarp();
            int sum = lane < width ? sums[lane] : INT32_MAX;
#pragma unroll 1
            for (int row = 1; row < patch_; ++row) {
                const int beside = min(__shfl_up_sync(WARP, sum, 1), __shfl_down_sync(WARP, sum, 1));
                if (lane < width) sum = sums[row * width + lane] += min(sum, beside);
            }
            bool open = lane < width;
#pragma unroll 1
            for (int row = patch_ - 1; row >= 0; --row) {
                const int value = open ? sums[row * width + lane] : INT32_MAX;
                const int least = __reduce_min_sync(WARP, value);
                const int column = __ffs(static_cast<int>(__ballot_sync(WARP, open && value == least))) - 1;
                if (lane == 0) path[row] = max(column, 0);  // 0 without an overlap
                open = lane < width && abs(lane - column) <= 1;
            }
        }
    }

    // Whether a path of image q leaves a cell of the patch to the canvas.
    __device__ __forceinline__ bool keep(const Block& block, int q, int cell) const {
        if (!some()) return false;
        const int row = cell / side_ - cut_[0] / side_, column = cell % side_ - cut_[0] % side_;
        const int* path = block.paths + 2 * q * patch_;
        return column < path[row] || row < path[patch_ + column];
    }

  private:
    const std::int32_t* cut_ = nullptr;
    int patch_ = 0, side_ = 1;
};

}  // namespace lpkernel::cuda
