#include "cpu/norm.h"

#include <cmath>

namespace lpkernel {

namespace {

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
    const double size = static_cast<double>(of.count) * (of.channels / of.groups);
    std::vector<float> columns(static_cast<std::size_t>(of.channels));
    const auto means = [&](const float* centre, double* each) {
        run.block_sums({of.pixels, centre, blocks, of.block, of.channels, of.groups, columns.data(), each});
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
    run.scaled({of.pixels, centre.data(), scale.data(), shift.data(), of.count, of.channels, of.out});
}

}  // namespace lpkernel
