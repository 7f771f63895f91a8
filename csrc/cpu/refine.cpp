#include "cpu/refine.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <utility>
#include <vector>

#include "cpu/layer.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace lpkernel {

namespace {

constexpr std::int64_t TOGETHER = 4;  // images of one task
constexpr int NEAR = 4;
constexpr std::int64_t NO_LIMIT = std::numeric_limits<std::int64_t>::max();

// One map at a time, with a frame of -1 around it. Its images are numbered as they are met, to be counted.
class Map {
  public:
    explicit Map(const Refining& job) : job_(job), pitch_(job.side + 2), steps_{-pitch_, -1, 1, pitch_} {}

    void refine(std::int32_t* map) {
        const int side = job_.side;
        const std::int64_t length = std::int64_t{side} * side * (job_.vectors ? 1 : job_.channels);
        images_.clear(), first_.clear(), counts_.clear();
        numbers_.assign(static_cast<std::size_t>(pitch_) * pitch_, -1);
        for (int y = 0; y < side; ++y) {
            for (int x = 0; x < side; ++x) {
                const std::int32_t image = map[y * side + x];
                if (image < 0) continue;
                std::int32_t found = x ? number(at(y, x) - 1) : -1;
                if (found < 0 || images_[static_cast<std::size_t>(found)] != image) {
                    const auto met = std::find(images_.begin(), images_.end(), image);
                    found = static_cast<std::int32_t>(met - images_.begin());
                    if (met == images_.end()) {
                        images_.push_back(image);
                        first_.push_back(job_.cells + image * length);
                        counts_.push_back(0);
                    }
                }
                number(at(y, x)) = found;
                ++counts_[static_cast<std::size_t>(found)];
            }
        }
        stale_.assign(numbers_.size(), 1);
        for (int round = 0; round < job_.rounds; ++round) {
            move_parts();
            bool moved = true;
            for (int sweep = 0; sweep < job_.sweeps && moved; ++sweep) {
                const bool even = move_cells(0), odd = move_cells(1);
                moved = even || odd;
            }
        }
        for (int y = 0; y < side; ++y) {
            for (int x = 0; x < side; ++x) {
                const std::int32_t found = number(at(y, x));
                map[y * side + x] = found < 0 ? -1 : images_[static_cast<std::size_t>(found)];
            }
        }
    }

  private:
    int at(int y, int x) const { return (y + 1) * pitch_ + x + 1; }
    std::int32_t& number(int place) { return numbers_[static_cast<std::size_t>(place)]; }
    std::int32_t number(int place) const { return numbers_[static_cast<std::size_t>(place)]; }
    int cell(int place) const { return (place / pitch_ - 1) * job_.side + place % pitch_ - 1; }

    // Moves cells of one colour of a chessboard, no two of which are neighbours; returns whether any has moved.
    bool move_cells(int colour) {
        own_part_.assign(numbers_.size(), -1);
        moves_.clear();  // counts are those of the beginning, so that the order of the cells does not matter
        for (int y = 0; y < job_.side; ++y) {
            for (int x = (y + colour) & 1; x < job_.side; x += 2) {
                const int place = at(y, x);
                const std::int32_t own = number(place);
                if (own < 0 || !stale_[static_cast<std::size_t>(place)]) continue;
                const Choice best = cheapest(&place, 1, 0);
                stale_[static_cast<std::size_t>(place)] = best.full;
                if (best.image == own) continue;
                become(place, best.image);
                moves_.push_back({own, best.image});
            }
        }
        for (const auto& [from, to] : moves_) {
            --counts_[static_cast<std::size_t>(from)];
            ++counts_[static_cast<std::size_t>(to)];
        }
        return !moves_.empty();
    }

    // Moves the connected parts of one image of up to `part` cells, as they are before any moves, in the order of their
    // first cells.
    void move_parts() {
        own_part_.assign(numbers_.size(), -1);
        places_.clear();
        ends_.assign(1, 0);
        for (int first = 0; first < static_cast<int>(numbers_.size()); ++first) {
            if (number(first) < 0 || own_part_[static_cast<std::size_t>(first)] >= 0) continue;
            const auto part = static_cast<int>(ends_.size()) - 1;
            const auto add = [&](int place) {
                own_part_[static_cast<std::size_t>(place)] = part;
                places_.push_back(place);
            };
            add(first);
            for (std::size_t next = static_cast<std::size_t>(ends_.back()); next < places_.size(); ++next) {
                for (const int step : steps_) {
                    const int place = places_[next] + step;
                    if (number(place) == number(first) && own_part_[static_cast<std::size_t>(place)] < 0) add(place);
                }
            }
            if (static_cast<std::int64_t>(places_.size()) - ends_.back() <= job_.part) {
                std::sort(places_.begin() + ends_.back(), places_.end());
            }
            ends_.push_back(static_cast<int>(places_.size()));
        }
        for (int part = 0; part + 1 < static_cast<int>(ends_.size()); ++part) {
            const int* places = places_.data() + ends_[static_cast<std::size_t>(part)];
            const int size = ends_[static_cast<std::size_t>(part) + 1] - ends_[static_cast<std::size_t>(part)];
            if (size > job_.part) continue;
            const std::int32_t own = number(*places), best = cheapest(places, size, part).image;
            counts_[static_cast<std::size_t>(own)] -= size;
            counts_[static_cast<std::size_t>(best)] += size;
            for (int i = 0; i < size && best != own; ++i) become(places[i], best);
        }
    }

    void become(int place, std::int32_t image) {
        number(place) = image;
        stale_[static_cast<std::size_t>(place)] = true;
        for (const int step : steps_) stale_[static_cast<std::size_t>(place + step)] = true;
    }

    // An image, and whether one beside the cells was full.
    struct Choice {
        std::int32_t image;
        bool full;
    };

    // The cheapest image for some cells of one image: all those that own_part_ calls `part`, or a single cell.
    Choice cheapest(const int* places, int size, int part) {
        const std::int32_t own = number(*places);
        Choice best{own, false};
        std::int64_t least = cost(own, places, size, part, NO_LIMIT);
        if (!least) return best;
        near_.clear();
        for (int i = 0; i < size; ++i) {
            for (const int step : steps_) {
                const std::int32_t other = number(places[i] + step);
                if (other < 0 || other == own || own_part_[static_cast<std::size_t>(places[i] + step)] == part)
                    continue;
                if (std::find(near_.begin(), near_.end(), other) != near_.end()) continue;
                near_.push_back(other);
                if (counts_[static_cast<std::size_t>(other)] + size > job_.most) {
                    best.full = true;
                    continue;
                }
                const std::int64_t found = cost(other, places, size, part, least);
                if (found < least) least = found, best.image = other;
            }
        }
        return best;
    }

    // The cost of the seams around the cells if they were of that image; of only some once those cost `limit` or more.
    std::int64_t cost(std::int32_t image, const int* places, int size, int part, std::int64_t limit) const {
        std::int64_t sum = 0;
        for (int i = 0; i < size; ++i) {
            for (const int step : steps_) {
                const int beside = places[i] + step;
                const std::int32_t other = number(beside);
                if (other < 0 || other == image || own_part_[static_cast<std::size_t>(beside)] == part) continue;
                sum += apart(image, other, cell(places[i]), cell(beside));
                if (sum >= limit) return sum;
            }
        }
        return sum;
    }

    // The squared distance of two images at two cells. A vector's lanes hold sums of both, below 2^32.
    std::int64_t apart(std::int32_t a, std::int32_t b, int cell, int beside) const {
        constexpr int AT_ONCE = 2 * LANES;  // 16-bit values in a vector
        Ints sums = zero();
        std::int64_t rest = 0;
        for (const int at : {cell, beside}) {
            const std::int16_t *first = values(a, at), *second = values(b, at);
            int c = 0;
            for (; c + AT_ONCE <= job_.channels; c += AT_ONCE) {
                const Ints difference = sub16(load(first + c), load(second + c));
                sums = add_products(sums, difference, difference);
            }
            for (; c < job_.channels; ++c) rest += std::int64_t{first[c] - second[c]} * (first[c] - second[c]);
        }
        std::uint32_t lanes[LANES];
        store(lanes, sums);
        return std::accumulate(lanes, lanes + LANES, rest);
    }

    const std::int16_t* values(std::int32_t number, int cell) const {
        const std::int16_t* cells = first_[static_cast<std::size_t>(number)];
        if (!job_.vectors) return cells + std::int64_t{cell} * job_.channels;
        const auto code = static_cast<std::uint16_t>(cells[cell]);
        if (code >= job_.codes) throw std::invalid_argument(CODES_CHANGED);
        return job_.vectors + std::int64_t{code} * job_.channels;
    }

    const Refining& job_;
    int pitch_;
    int steps_[NEAR];
    std::vector<std::int32_t> images_, numbers_, near_;
    std::vector<const std::int16_t*> first_;  // cells of each image
    std::vector<int> own_part_, places_, ends_;
    std::vector<char> stale_;           // cells to look at again: they or neighbours moved, or an image beside was full
    std::vector<std::int64_t> counts_;  // cells of each image
    std::vector<std::pair<std::int32_t, std::int32_t>> moves_;
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
