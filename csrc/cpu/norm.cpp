#include "cpu/norm.h"

#include <algorithm>
#include <cmath>

namespace lpkernel {

namespace {

constexpr std::int64_t PART = 4096;  // 16 KiB of float32, half of a first-level cache

// (groups) -> (channels)
std::vector<float> each_channel(const std::vector<double>& values, int channels) {
    std::vector<float> each(static_cast<std::size_t>(channels));
    const std::size_t own = each.size() / values.size();
    for (std::size_t c = 0; c < each.size(); ++c) each[c] = static_cast<float>(values[c / own]);
    return each;
}

}  // namespace

Statistics statistics(const Norm& of, const Kernels& run, double* sums, double* squares) {
    const std::int64_t blocks = of.count / of.block;
    const std::int64_t at_once = of.pixels ? blocks : std::max<std::int64_t>(1, PART / (of.block * of.channels));
    std::vector<float> part(of.pixels ? 0 : static_cast<std::size_t>(at_once * of.block * of.channels));
    const double size = static_cast<double>(of.count) * (of.channels / of.groups);
    std::vector<float> columns(static_cast<std::size_t>(of.channels));
    const auto means = [&](const float* centre, double* each) {
        for (std::int64_t b = 0; b < blocks; b += at_once) {
            const std::int64_t count = std::min(at_once, blocks - b);
            const std::int64_t from = b * of.block * of.channels;
            if (of.bfloats) run.widen(of.bfloats + from, count * of.block * of.channels, part.data());
            run.block_sums({of.pixels ? of.pixels : part.data(), centre, count, of.block, of.channels, of.groups,
                            columns.data(), each + b * of.groups});
        }
        std::vector<double> mean(static_cast<std::size_t>(of.groups));
        for (std::int64_t b = 0; b < blocks; ++b) {
            for (double& sum : mean) sum += *each++;
        }
        for (double& sum : mean) sum /= size;
        return mean;
    };
    Statistics found;
    found.mean = means(nullptr, sums);
    found.variance = means(each_channel(found.mean, of.channels).data(), squares);
    return found;
}

void normalise(const Norm& of, const Kernels& run, const Statistics& by) {
    std::vector<double> steepness;
    for (const double variance : by.variance) steepness.push_back(1.0 / std::sqrt(variance + of.eps));
    const std::vector<float> centre = each_channel(by.mean, of.channels);
    std::vector<float> scale = each_channel(steepness, of.channels), shift(scale.size());
    for (std::size_t c = 0; c < scale.size(); ++c) {
        if (of.weight) scale[c] *= of.weight[c];
        if (of.bias) shift[c] = of.bias[c];
    }
    if (of.pixels) {
        run.scaled({of.pixels, centre.data(), scale.data(), shift.data(), of.count, of.channels, of.out});
        return;
    }
    const std::int64_t at_once = std::max<std::int64_t>(1, PART / of.channels);
    std::vector<float> part(static_cast<std::size_t>(at_once * of.channels)), found(part.size());
    for (std::int64_t p = 0; p < of.count; p += at_once) {
        const std::int64_t count = std::min(at_once, of.count - p), from = p * of.channels;
        run.widen(of.bfloats + from, count * of.channels, part.data());
        run.scaled({part.data(), centre.data(), scale.data(), shift.data(), count, of.channels, found.data()});
        run.narrow(found.data(), count * of.channels, of.bfloats_out + from);
    }
}

}  // namespace lpkernel
