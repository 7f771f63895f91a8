// The compiled kernels of a plan run step by step, and their launches.

#include <algorithm>

#include "cuda/steps.cuh"

namespace lpkernel::cuda {

namespace {

using Kernel = void (*)(StepArgs);

struct Screen {
    Kernel sample, screen;
    int bytes;
};

template <int IMAGES>
Screen screen_of() {
    constexpr int WARPS = StepTile::BANK_WARPS;
    return {step_screen_kernel<IMAGES, WARPS, true>, step_screen_kernel<IMAGES, WARPS, false>,
            StepMemory<IMAGES, WARPS>::BYTES};
}

// The kernels of a tile; null where there is no such tile.
Screen screen_of(const StepTile& tile) {
    switch (tile.image_blocks) {
        case 2:
            return screen_of<2>();
        case 4:
            return screen_of<4>();
        default:
            return {};
    }
}

int tiles(std::int64_t count, int of) {
    return static_cast<int>((count + of - 1) / of);
}

}  // namespace

void plan_steps(StepArgs& args, const StepTile& tile) {
    constexpr int SAMPLE = 8;  // one tile in this many is in the sample
    const int lists = 4 * StepTile::BANK_WARPS, all = tiles(args.scan.allowed, tile.bank());
    args.sampled =
        std::min({all, MOST_GROUPS / lists, std::max(tiles(all, SAMPLE), tiles(2 * args.scan.shape.k, lists))});
    args.every = all / args.sampled;
    args.parts = 1;
    while (args.parts < 8 && args.sampled * lists * args.parts < 8 * args.scan.shape.k &&
           args.sampled * lists * args.parts * 2 <= MOST_GROUPS) {
        args.parts *= 2;
    }
    args.groups = args.sampled * lists * args.parts;
}

std::size_t step_choose_bytes(int compared, int width, int cut) {
    const std::size_t paths = 8 * cut * (cut + 1) + 16;
    return sizeof(Chosen) + paths + static_cast<std::size_t>(compared) * width * 2;
}

cudaError_t steps(StepArgs args, const StepTile& tile, const std::int32_t* scales, const std::int32_t* steps,
                  const float* slacks, cudaStream_t stream) {
    const Screen screen = screen_of(tile);
    if (!screen.screen) return cudaErrorInvalidValue;
    const ScanArgs& scan = args.scan;
    const int most_rows = args.rows, bank_tiles = tiles(scan.allowed, tile.bank());
    args.overlaps = args.overlaps && waits_for_kernels_before(screen.screen);
    cudaError_t error = cudaSuccess;
    bool overlaps = false;  // not with earlier work on the stream, which does not wait
    const auto start = [&](Kernel kernel, int blocks, int threads, std::size_t shared) {
        if (error != cudaSuccess) return;
        LaunchShape shape = linear_launch(blocks, threads, shared, stream);
        shape.overlaps = overlaps;
        overlaps = args.overlaps;
        error = launch(kernel, shape, args);
    };
    for (args.base = 0; args.base < scan.image_count; args.base += most_rows) {
        args.rows = std::min(most_rows, scan.image_count - args.base);
        args.image_tiles = tiles(args.rows, tile.images());
        args.first_cell = 0;
        for (args.scale = 0; args.scale < scan.scale_count; ++args.scale) {
            const std::int32_t* scale = scales + 5 * args.scale;
            args.scale_side = scale[0];
            start(step_enter_kernel, args.rows, CHOOSE_THREADS, 0);
            for (args.step = scale[1]; args.step < scale[1] + scale[2]; ++args.step) {
                const std::int32_t* step = steps + 4 * args.step;
                args.compared_cells = scan.cells + step[0];
                args.compared = step[1];
                args.written_cells = scan.cells + step[2];
                args.written = step[3];
                args.slack = slacks[args.step];
                if (args.compared > 0) {
                    start(screen.sample, args.image_tiles * args.sampled, tile.threads(),
                          static_cast<std::size_t>(screen.bytes));
                    start(step_limit_kernel, tiles(args.rows, 4), 128, 0);
                    start(screen.screen, args.image_tiles * bank_tiles, tile.threads(),
                          static_cast<std::size_t>(screen.bytes));
                }
                start(step_choose_kernel, args.rows, CHOOSE_THREADS,
                      step_choose_bytes(args.compared, scan.shape.width, scan.shape.cut));
            }
            args.first_cell += scale[0] * scale[0];
        }
    }
    return error;
}

}  // namespace lpkernel::cuda
