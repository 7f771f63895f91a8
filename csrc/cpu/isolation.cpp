// By sums, as small banks are searched: the distances of one image's cells to NEAR references are summed over all
// cells above and to the left, and each step is a few boxes, four corners each. A large bank of codes has few different
// cells, so the rows of distances of every code at every cell are tabulated first, (codes, cells, NEAR) int32, 16 MB
// for 1024 codes at side 16, and each cell of an image costs one cache line.
//
// Limits: as for scan(), every distance below 2^31.

#include "cpu/isolation.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "cpu/parallel.h"

namespace lpkernel {

namespace {

constexpr std::int64_t TABLE = 64 << 20;  // bytes of the rows of codes, at most
constexpr std::int64_t TOGETHER = 64;     // images, or codes, of one task
constexpr std::int32_t FAR = 0x7FFFFFFF;

// The boxes of all steps, and where those of each step end.
struct Boxes {
    std::vector<Box> boxes;
    std::vector<std::int32_t> ends;

    explicit Boxes(const Raster& raster) {
        const std::vector<std::int32_t> owner(raster.writer.size(), 0);
        for (const Step& step : raster.steps) {
            cut_boxes(step.compare, owner, raster.side, boxes);
            ends.push_back(static_cast<std::int32_t>(boxes.size()));
        }
    }
};

}  // namespace

ByStep isolation(const Raster& raster, const Layer& layer, const Content& content, const Kernels& run, int threads) {
    const std::int64_t size = layer.size(), total = std::min(size, MOST_REFERENCES),
                       cells = std::int64_t{raster.side} * raster.side;
    const auto steps = static_cast<std::int64_t>(raster.steps.size());
    const std::int64_t nearest = std::max<std::int64_t>(1, (5 * total + size / 2) / size);
    const Boxes boxes(raster);
    std::vector<std::int32_t> least(static_cast<std::size_t>(size * steps * nearest), FAR);
    std::vector<std::int32_t> every(static_cast<std::size_t>(cells));
    std::iota(every.begin(), every.end(), 0);
    const std::int64_t table_size = layer.codes() * cells * NEAR;
    const bool tabulated =
        layer.codes() && size > layer.codes() && table_size * std::int64_t{sizeof(std::int32_t)} <= TABLE;
    Aligned<std::int32_t> table(tabulated ? static_cast<std::size_t>(table_size) : 0);
    const auto tasks = [&](std::int64_t count, const auto& task) {
        parallel((count + TOGETHER - 1) / TOGETHER, threads,
                 [&](std::int64_t i) { task(i * TOGETHER, std::min(count, (i + 1) * TOGETHER)); });
    };
    const std::int64_t at_once = tabulated ? NEAR : BLOCK;  // references; tables of more would not fit the cache
    for (std::int64_t first = 0; first < total; first += at_once) {
        std::int64_t positions[BLOCK], images[BLOCK];
        const std::int64_t lanes = std::min(at_once, total - first);
        for (std::int64_t lane = 0; lane < lanes; ++lane) {
            positions[lane] = (first + lane) * size / total;
            images[lane] = content.allowed[positions[lane]];
        }
        Content chosen = content;
        chosen.allowed = images;
        const auto references = layer.likewise(chosen, lanes, run);
        const auto rows_of = [&](const std::int16_t* values, std::int32_t* out) {
            references->cell_rows(every.data(), static_cast<int>(cells), values, run, out);
        };
        if (tabulated) {
            tasks(layer.codes(), [&](std::int64_t code, std::int64_t last) {
                for (; code < last; ++code) {
                    const std::vector<std::int16_t> same(every.size(), static_cast<std::int16_t>(code));
                    rows_of(same.data(), table.data() + code * cells * NEAR);
                }
            });
        }
        tasks(size, [&](std::int64_t a, std::int64_t last) {
            Aligned<std::int32_t> own(tabulated ? 0 : static_cast<std::size_t>(cells * references->padded()));
            std::vector<std::int32_t> sums(static_cast<std::size_t>((raster.side + 1) * (raster.side + 1) * NEAR));
            std::vector<const std::int32_t*> rows(every.size()), next(every.size());
            const auto values_of = [&](std::int64_t image) { return content.image(image, cells, layer.width(), run); };
            const auto look_up = [&](std::int64_t image) {  // and prefetch, while the previous image is summed
                const std::int16_t* codes = values_of(image);
                for (std::int64_t cell = 0; cell < cells; ++cell) {
                    const auto code = static_cast<std::uint16_t>(codes[cell]);
                    if (code >= layer.codes()) throw std::invalid_argument(CODES_CHANGED);
                    next[cell] = table.data() + (code * cells + cell) * NEAR;
                    __builtin_prefetch(next[cell]);
                }
            };
            if (tabulated) look_up(a);
            for (; a < last; ++a) {
                if (tabulated) {
                    rows.swap(next);
                    if (a + 1 < last) look_up(a + 1);
                } else {
                    rows_of(values_of(a), own.data());
                }
                for (std::int64_t near = 0; near < lanes; near += NEAR) {
                    for (std::int64_t cell = 0; !tabulated && cell < cells; ++cell) {
                        rows[cell] = own.data() + cell * references->padded() + near;
                    }
                    const std::int64_t *begin = positions + near, *end = positions + std::min(lanes, near + NEAR);
                    const std::int64_t* self = std::find(begin, end, a);
                    LeastSums job{};
                    job.rows = rows.data();
                    job.side = raster.side;
                    job.lanes = static_cast<int>(end - begin);
                    job.left_out = self == end ? -1 : static_cast<int>(self - begin);
                    job.boxes = boxes.boxes.data();
                    job.ends = boxes.ends.data();
                    job.steps = static_cast<int>(steps);
                    job.nearest = static_cast<int>(nearest);
                    job.sums = sums.data();
                    job.least = least.data() + a * steps * nearest;
                    run.least_sums(job);
                }
            }
        });
    }
    ByStep found;
    found.stride = (size + BLOCK - 1) / BLOCK * BLOCK;
    found.values.resize(static_cast<std::size_t>(steps * found.stride + BLOCK));  // views read rows from any position
    found.most.resize(static_cast<std::size_t>(steps));
    for (std::int64_t a = 0; a < size; ++a) {
        const bool is_reference = (a * total + size - 1) / size * size / total == a;
        const std::int64_t others = std::min(nearest, total - is_reference);
        for (std::int64_t s = 0; s < steps && others; ++s) {
            const std::int32_t* from = least.data() + (a * steps + s) * nearest;
            const std::int64_t mean = std::accumulate(from, from + others, std::int64_t{0}) / others;
            found.values[s * found.stride + a] = static_cast<std::int32_t>(std::max<std::int64_t>(0, mean));
            found.most[s] = std::max(found.most[s], found.values[s * found.stride + a]);
        }
    }
    return found;
}

ByStep offsets(const ByStep& isolation, int parts) {
    ByStep found = isolation;
    for (std::vector<std::int32_t>* values : {&found.values, &found.most}) {
        for (std::int32_t& value : *values) value = static_cast<std::int32_t>(std::int64_t{value} * parts >> 8);
    }
    return found;
}

}  // namespace lpkernel
