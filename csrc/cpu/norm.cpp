#include "cpu/norm.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/parallel.h"

namespace lpkernel {

namespace {

constexpr std::int64_t PART = 4096;     // numbers: 16 KiB of float32, half of a first-level cache
constexpr std::int64_t TASK = 1 << 16;  // of a thread's turn

std::int64_t times_in(std::int64_t numbers, std::int64_t size) {
    return std::max<std::int64_t>(1, numbers / size);
}

// (groups) -> (channels)
std::vector<float> each_channel(const std::vector<double>& values, int channels) {
    std::vector<float> each(static_cast<std::size_t>(channels));
    const std::size_t own = each.size() / values.size();
    for (std::size_t c = 0; c < each.size(); ++c) each[c] = static_cast<float>(values[c / own]);
    return each;
}

// task(first, count, scratch, more) over `count` items of `size` numbers in parts of at most PART numbers; scratch and
// more have room for a part as float32.
template <class Task>
void in_parts(std::int64_t count, std::int64_t size, int threads, const Task& task) {
    const std::int64_t part = times_in(PART, size), turn = part * times_in(TASK, part * size);
    parallel((count + turn - 1) / turn, threads, [&](std::int64_t number) {
        std::vector<float> scratch(static_cast<std::size_t>(part * size)), more(scratch.size());
        const std::int64_t stop = std::min(count, (number + 1) * turn);
        for (std::int64_t i = number * turn; i < stop; i += part) {
            task(i, std::min(part, stop - i), scratch.data(), more.data());
        }
    });
}

}  // namespace

Statistics statistics(const Norm& of, const Kernels& run, int threads, double* sums, double* squares) {
    const std::int64_t blocks = of.count / of.block, size = of.block * of.channels;
    const auto means = [&](const float* centre, double* each) {
        in_parts(blocks, size, threads, [&](std::int64_t first, std::int64_t count, float* wide, float* columns) {
            const float* pixels = of.pixels ? of.pixels + first * size : wide;
            if (of.bfloats) run.widen(of.bfloats + first * size, count * size, wide);
            run.block_sums(
                {pixels, centre, count, of.block, of.channels, of.groups, columns, each + first * of.groups});
        });
        std::vector<double> mean(static_cast<std::size_t>(of.groups));
        for (std::int64_t b = 0; b < blocks; ++b) {
            for (double& sum : mean) sum += *each++;
        }
        for (double& sum : mean) sum /= static_cast<double>(of.count) * (of.channels / of.groups);
        return mean;
    };
    Statistics found;
    found.mean = means(nullptr, sums);
    found.variance = means(each_channel(found.mean, of.channels).data(), squares);
    return found;
}

void normalise(const Norm& of, const Kernels& run, int threads, const Statistics& by) {
    std::vector<double> steepness;
    for (const double variance : by.variance) steepness.push_back(1.0 / std::sqrt(variance + of.eps));
    const std::vector<float> centre = each_channel(by.mean, of.channels);
    std::vector<float> scale = each_channel(steepness, of.channels), shift(scale.size());
    for (std::size_t c = 0; c < scale.size(); ++c) {
        if (of.weight) scale[c] *= of.weight[c];
        if (of.bias) shift[c] = of.bias[c];
    }
    in_parts(of.count, of.channels, threads, [&](std::int64_t first, std::int64_t count, float* wide, float* found) {
        const std::int64_t from = first * of.channels, numbers = count * of.channels;
        const bool in_place = of.pixels && of.out == of.pixels;
        const float* pixels = of.pixels ? of.pixels + from : wide;
        float* out = of.pixels && !in_place ? of.out + from : found;
        if (of.bfloats) run.widen(of.bfloats + from, numbers, wide);
        run.scaled({pixels, centre.data(), scale.data(), shift.data(), count, of.channels, out});
        if (of.bfloats) run.narrow(out, numbers, of.bfloats_out + from);
        if (in_place) std::memcpy(of.out + from, out, static_cast<std::size_t>(numbers) * sizeof(float));
    });
}

}  // namespace lpkernel
