#include "cpu/refine.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "cpu/layer.h"
#include "cpu/parallel.h"

namespace lpkernel {

namespace {

constexpr std::int64_t TOGETHER = 16;  // images of one task
constexpr int NEAR = 4;

// One map at a time, with a frame of -1 around it. Its images are numbered by their order, to be counted.
class Map {
  public:
    explicit Map(const Refining& job) : job_(job), pitch_(job.side + 2), steps_{-pitch_, -1, 1, pitch_} {}

    void refine(std::int32_t* map) {
        const int side = job_.side;
        images_.assign(map, map + std::int64_t{side} * side);
        std::sort(images_.begin(), images_.end());
        images_.erase(std::unique(images_.begin(), images_.end()), images_.end());
        if (images_.front() < 0) images_.erase(images_.begin());
        numbers_.assign(static_cast<std::size_t>(pitch_) * pitch_, -1);
        for (int y = 0; y < side; ++y) {
            for (int x = 0; x < side; ++x) {
                const auto found = std::lower_bound(images_.begin(), images_.end(), map[y * side + x]);
                if (map[y * side + x] >= 0) numbers_[at(y, x)] = static_cast<std::int32_t>(found - images_.begin());
            }
        }
        bool moved = true;
        for (int sweep = 0; sweep < job_.sweeps && moved; ++sweep) {
            const bool even = half_sweep(0), odd = half_sweep(1);
            moved = even || odd;
        }
        for (int y = 0; y < side; ++y) {
            for (int x = 0; x < side; ++x) {
                const std::int32_t number = numbers_[at(y, x)];
                map[y * side + x] = number < 0 ? -1 : images_[static_cast<std::size_t>(number)];
            }
        }
    }

  private:
    std::size_t at(int y, int x) const { return static_cast<std::size_t>((y + 1) * pitch_ + x + 1); }

    // The cells of one colour of a chessboard, none of which is another's neighbour.
    bool half_sweep(int colour) {
        counts_.assign(images_.size(), 0);
        for (const std::int32_t number : numbers_) {
            if (number >= 0) ++counts_[static_cast<std::size_t>(number)];
        }
        bool moved = false;
        for (int y = 0; y < job_.side; ++y) {
            for (int x = (y + colour) & 1; x < job_.side; x += 2) {
                std::int32_t& own = numbers_[at(y, x)];
                if (own < 0) continue;
                std::int32_t near[NEAR];
                bool seam = false;
                for (int q = 0; q < NEAR; ++q) {
                    near[q] = (&own)[steps_[q]];
                    seam = seam || (near[q] >= 0 && near[q] != own);
                }
                if (!seam) continue;
                const std::int32_t best = cheapest(own, near, y, x);
                moved = moved || best != own;
                own = best;
            }
        }
        return moved;
    }

    std::int32_t cheapest(std::int32_t own, const std::int32_t* near, int y, int x) const {
        std::int32_t best = own;
        std::int64_t least = cost(own, near, y, x);
        for (int q = 0; q < NEAR; ++q) {
            const std::int32_t other = near[q];
            if (other < 0 || other == own || std::find(near, near + q, other) != near + q) continue;
            if (counts_[static_cast<std::size_t>(other)] >= job_.most) continue;
            const std::int64_t found = cost(other, near, y, x);
            if (found < least) least = found, best = other;
        }
        return best;
    }

    // Of the seams of cell (y, x) if it were of image `number`.
    std::int64_t cost(std::int32_t number, const std::int32_t* near, int y, int x) const {
        const int down[NEAR] = {-1, 0, 0, 1}, across[NEAR] = {0, -1, 1, 0};
        std::int64_t sum = 0;
        for (int q = 0; q < NEAR; ++q) {
            if (near[q] < 0 || near[q] == number) continue;
            sum += apart(number, near[q], y * job_.side + x);
            sum += apart(number, near[q], (y + down[q]) * job_.side + x + across[q]);
        }
        return sum;
    }

    std::int64_t apart(std::int32_t a, std::int32_t b, int cell) const {
        const std::int16_t *first = values(a, cell), *second = values(b, cell);
        std::int64_t sum = 0;
        for (int c = 0; c < job_.channels; ++c) {
            const std::int32_t difference = first[c] - second[c];
            sum += std::int64_t{difference} * difference;
        }
        return sum;
    }

    const std::int16_t* values(std::int32_t number, int cell) const {
        const std::int64_t place =
            std::int64_t{images_[static_cast<std::size_t>(number)]} * job_.side * job_.side + cell;
        if (!job_.vectors) return job_.cells + place * job_.channels;
        const auto code = static_cast<std::uint16_t>(job_.cells[place]);
        if (code >= job_.codes) throw std::invalid_argument(CODES_CHANGED);
        return job_.vectors + std::int64_t{code} * job_.channels;
    }

    const Refining& job_;
    int pitch_;
    int steps_[NEAR];
    std::vector<std::int32_t> images_, numbers_;
    std::vector<std::int64_t> counts_;
};

}  // namespace

void refine(const Refining& job, int threads) {
    const std::int64_t cells = std::int64_t{job.side} * job.side;
    parallel((job.images + TOGETHER - 1) / TOGETHER, threads, [&](std::int64_t task) {
        Map map(job);
        for (std::int64_t i = task * TOGETHER; i < std::min(job.images, (task + 1) * TOGETHER); ++i) {
            map.refine(job.maps + i * cells);
        }
        poll();
    });
}

}  // namespace lpkernel
