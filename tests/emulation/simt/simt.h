// A test runtime that executes CUDA C++ kernels on the CPU, compiled by g++ with -DSIMT_TEST (x86-64, C++17). No part
// of the product: it is there so that the kernels can be run, and their mistakes found, where no GPU is.
//
// What runs: one fiber a CUDA thread (runtime.h); barriers, shuffles, votes and reductions (warp.h); arithmetic,
// loads and atomics (intrinsics.h); mma.sync (matrix.h); cp.async (async_copy.h); dynamic shared memory; cooperative
// launches, whose blocks all live at once on one OS thread; a small CUDA runtime for host code (cudart.h).
// csrc/cuda/portable.cuh is the include that chooses between this and CUDA.
//
// What it finds, on its own:
//   - a barrier or warp operation that threads reach from different lines, with different masks, or not at all
//     ("divergent ...", "deadlock: ..."), a shuffle from a lane that takes no part;
//   - blocks that wait for one that does not come ("livelock: ...");
//   - a missing barrier: SIMT_ORDER=fwd, rev or a seed permutes the order of threads and blocks, and the answer
//   changes;
//   - a short or missing cp.async wait: copies land as late as allowed, shared memory starts as NaN;
//   - sizes and addresses that cp.async cannot take, launches that CUDA would refuse.
// With -fsanitize=address: accesses out of bounds, of global and of dynamic shared memory. With undefined: misaligned
// vectors, shifts, overflow. With thread: races within and between blocks, by source line (SIMT_THREADS=1, the
// default).
//
// What it does not have: __shared__ and __constant__ variables, textures, clusters, TMA, wgmma, dynamic parallelism.

#pragma once

#include "async_copy.h"
#include "cudart.h"
#include "intrinsics.h"
#include "matrix.h"
#include "runtime.h"
#include "types.h"
#include "warp.h"

#define __global__ __attribute__((visibility("default")))
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)

inline constexpr int warpSize = 32;
