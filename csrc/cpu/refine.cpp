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

// One map at a time, with a frame of -1 around it. Its images are numbered as they are met, to be counted. A row is an
// odd number of places long, so that the two colours of the chessboard are the even and the odd places.
// CHANNELS: their number where it is known, or 0.
template <int CHANNELS>
class Map {
  public:
    explicit Map(const Refining& job)
        : job_(job),
          pitch_((job.side + 2) | 1),
          places_((job.side + 2) * pitch_),
          steps_{-pitch_, -1, 1, pitch_},
          stale_(static_cast<std::size_t>(places_) / 64 + 1),
          waiting_(stale_.size()),
          numbers_(stale_.size() * 64, -1),
          cells_(numbers_.size()),
          roots_(numbers_.size()),
          sizes_(numbers_.size()),
          next_(numbers_.size()),
          last_(numbers_.size()) {
        for (int y = 0; y < job.side; ++y) {
            for (int x = 0; x < job.side; ++x) cells_[at(y, x)] = y * job.side + x;
        }
    }

    void refine(std::int32_t* map) {
        number_images(map);
        std::fill(stale_.begin(), stale_.end(), ~std::uint64_t{0});
        std::fill(waiting_.begin(), waiting_.end(), 0);
        for (int round = 0; round < job_.rounds; ++round) {
            find_parts();
            move_parts();
            bool moved = true;
            for (int sweep = 0; sweep < job_.sweeps && moved; ++sweep) {
                const bool even = move_cells(0), odd = move_cells(1);
                moved = even || odd;
            }
        }
        for (int y = 0; y < job_.side; ++y) {
            for (int x = 0; x < job_.side; ++x) {
                const std::int32_t found = numbers_[at(y, x)];
                *map++ = found < 0 ? -1 : images_[found];
            }
        }
    }

  private:
    std::size_t at(int y, int x) const { return static_cast<std::size_t>(y + 1) * pitch_ + x + 1; }

    int channels() const { return CHANNELS ? CHANNELS : job_.channels; }

    void number_images(const std::int32_t* map) {
        const std::int64_t length = std::int64_t{job_.side} * job_.side * (job_.vectors ? 1 : job_.channels);
        images_.clear(), first_.clear(), counts_.assign(1, 0);
        for (int y = 0; y < job_.side; ++y) {
            std::int32_t found = -1;
            for (int x = 0; x < job_.side; ++x) {
                const std::int32_t image = *map++;
                if (image < 0) {
                    found = -1;
                } else if (found < 0 || images_[found] != image) {
                    const auto met = std::find(images_.begin(), images_.end(), image);
                    found = static_cast<std::int32_t>(met - images_.begin());
                    if (met == images_.end()) {
                        images_.push_back(image);
                        first_.push_back(job_.cells + image * length);
                        counts_.push_back(0);
                    }
                }
                numbers_[at(y, x)] = found;
                ++counts_[found + 1];
            }
        }
    }

    // The connected parts of one image: each place's root is the first cell of its part, from which `next_` leads
    // through the others in raster order. (Places without an image make parts, too.)
    void find_parts() {
        const auto root = [&](int place) {
            while (roots_[place] != place) place = roots_[place];
            return place;
        };
        sizes_[0] = 0;  // of all that is without an image and reaches the frame, whose root is 0
        last_[0] = 0;
        int before = 0;
        for (int place = pitch_ + 1; place < places_ - pitch_; ++place) {
            const bool left = numbers_[place - 1] == numbers_[place], up = numbers_[place - pitch_] == numbers_[place];
            const int above = roots_[place - pitch_];
            if (left && up && before != above) {
                const int a = root(before), b = root(above);
                roots_[std::max(a, b)] = std::min(a, b);
            }
            const int beside = left ? before : place;
            before = roots_[place] = up ? above : beside;
            sizes_[place] = 0;
            last_[place] = place;
        }
        for (int place = pitch_ + 1; place < places_ - pitch_; ++place) {
            const int first = roots_[place] = roots_[roots_[place]];
            ++sizes_[first];
            next_[last_[first]] = place;
            last_[first] = place;
        }
    }

    // Moves the parts of up to `part` cells in the order of their first cells.
    void move_parts() {
        for (int first = pitch_ + 1; first < places_ - pitch_; ++first) {
            const int size = sizes_[first];
            const std::int32_t own = numbers_[first];
            if (!size || size > job_.part || own < 0) continue;
            part_.assign(1, first);
            while (static_cast<int>(part_.size()) < size) part_.push_back(next_[part_.back()]);
            const std::int32_t best = size == 1 ? cheapest(first).image : cheapest_of_part();
            if (best == own) continue;
            count(own, best, size);
            for (const int place : part_) become(place, best);
        }
    }

    // Moves cells of one colour, no two of which are neighbours; returns whether any has moved.
    bool move_cells(int colour) {
        constexpr std::uint64_t EVEN = 0x5555555555555555;
        const std::uint64_t mine = EVEN << (at(0, colour) % 2);
        moves_.clear();  // counts are those of the beginning, so that the order of the cells does not matter
        for (std::size_t word = 0; word < stale_.size(); ++word) {
            std::uint64_t left = stale_[word] & mine;
            stale_[word] &= ~mine;
            for (; left; left &= left - 1) {
                const int place = static_cast<int>(word * 64) + __builtin_ctzll(left);
                const std::int32_t own = numbers_[place];
                if (own < 0) continue;
                const Choice best = cheapest(place);
                if (best.full) mark(waiting_, place);
                if (best.image == own) continue;
                become(place, best.image);
                moves_.push_back({own, best.image});
            }
        }
        for (const auto& [from, to] : moves_) count(from, to, 1);
        return !moves_.empty();
    }

    // Where an image is no longer full, cells beside it may have waited for that.
    void count(std::int32_t from, std::int32_t to, int cells) {
        const bool full = is_full(from, 1);
        counts_[from + 1] -= cells;
        counts_[to + 1] += cells;
        if (!full || is_full(from, 1)) return;
        for (std::size_t word = 0; word < stale_.size(); ++word) {
            stale_[word] |= waiting_[word];
            waiting_[word] = 0;
        }
    }

    bool is_full(std::int32_t image, std::int64_t more) const { return counts_[image + 1] + more > job_.most; }

    static void mark(std::vector<std::uint64_t>& bits, int place) {
        bits[place / 64] |= std::uint64_t{1} << place % 64;
    }

    void become(int place, std::int32_t image) {
        numbers_[place] = image;
        mark(stale_, place);
        for (const int step : steps_) mark(stale_, place + step);
    }

    // An image, and whether one beside the cell was full.
    struct Choice {
        std::int32_t image;
        bool full;
    };

    // The cheapest image for a cell. Bits of neighbours instead of branches, which would be hard to predict.
    Choice cheapest(int place) const {
        const std::int32_t own = numbers_[place];
        std::int32_t beside[NEAR];
        unsigned there = 0, other = 0, full = 0, again = 0, same[NEAR];
        for (int i = 0; i < NEAR; ++i) {
            beside[i] = numbers_[place + steps_[i]];
            there |= unsigned{beside[i] >= 0} << i;
            other |= unsigned{beside[i] != own} << i;
            full |= unsigned{is_full(beside[i], 1)} << i;
            same[i] = 1u << i;
            for (int j = 0; j < i; ++j) {
                const unsigned equal = beside[j] == beside[i];
                again |= equal << i;
                same[i] |= equal << j;
                same[j] |= equal << i;
            }
        }
        other &= there;
        Choice best{own, (other & full) != 0};
        unsigned candidates = other & ~full & ~again;
        if (!candidates) return best;
        std::int64_t least = cost(own, place, beside, other, NO_LIMIT);
        for (; candidates && least; candidates &= candidates - 1) {
            const int i = __builtin_ctz(candidates);
            const std::int64_t found = cost(beside[i], place, beside, there & ~same[i], least);
            if (found < least) least = found, best.image = beside[i];
        }
        return best;
    }

    // The cost of a cell's seams to `some` neighbours if it were of that image; of fewer once those cost `limit` or
    // more.
    std::int64_t cost(std::int32_t image, int place, const std::int32_t* beside, unsigned some,
                      std::int64_t limit) const {
        std::int64_t sum = 0;
        for (; some && sum < limit; some &= some - 1) {
            const int i = __builtin_ctz(some);
            sum += apart(image, beside[i], place, place + steps_[i]);
        }
        return sum;
    }

    // The cheapest image for the cells of part_.
    std::int32_t cheapest_of_part() {
        const int part = part_.front();
        const std::int32_t own = numbers_[part];
        std::int32_t best = own;
        std::int64_t least = cost_of_part(own, NO_LIMIT);
        near_.clear();
        for (const int place : part_) {
            for (const int step : steps_) {
                const std::int32_t other = numbers_[place + step];
                if (other < 0 || other == own || roots_[place + step] == part) continue;
                if (std::find(near_.begin(), near_.end(), other) != near_.end()) continue;
                near_.push_back(other);
                if (is_full(other, static_cast<std::int64_t>(part_.size()))) continue;
                const std::int64_t found = cost_of_part(other, least);
                if (found < least) least = found, best = other;
            }
        }
        return best;
    }

    // The cost of the seams around the part if it were of that image; of only some once those cost `limit` or more.
    std::int64_t cost_of_part(std::int32_t image, std::int64_t limit) const {
        const int part = part_.front();
        std::int64_t sum = 0;
        for (const int place : part_) {
            for (const int step : steps_) {
                const std::int32_t other = numbers_[place + step];
                if (other < 0 || other == image || roots_[place + step] == part) continue;
                sum += apart(image, other, place, place + step);
                if (sum >= limit) return sum;
            }
        }
        return sum;
    }

    // The squared distance of two images at two places: two distances below 2^31.
    std::uint32_t apart(std::int32_t a, std::int32_t b, int place, int beside) const {
        constexpr int AT_ONCE = 2 * LANES;  // 16-bit values in a vector
        Ints sums = zero();
        std::uint32_t rest = 0;
        for (const int cell : {cells_[place], cells_[beside]}) {
            const std::int16_t *first = values(a, cell), *second = values(b, cell);
            int c = 0;
            for (; c + AT_ONCE <= channels(); c += AT_ONCE) {
                const Ints difference = sub16(load(first + c), load(second + c));
                sums = add_products(sums, difference, difference);
            }
            for (; c < channels(); ++c) {
                const std::int32_t difference = first[c] - second[c];
                rest += static_cast<std::uint32_t>(difference) * static_cast<std::uint32_t>(difference);
            }
        }
        std::uint32_t lanes[LANES];
        store(lanes, sums);
        return std::accumulate(lanes, lanes + LANES, rest);
    }

    const std::int16_t* values(std::int32_t number, int cell) const {
        const std::int16_t* cells = first_[number];
        if (!job_.vectors) return cells + std::int64_t{cell} * channels();
        const auto code = static_cast<std::uint16_t>(cells[cell]);
        if (code >= job_.codes) throw std::invalid_argument(CODES_CHANGED);
        return job_.vectors + std::int64_t{code} * channels();
    }

    const Refining& job_;
    int pitch_, places_;
    int steps_[NEAR];
    std::vector<std::uint64_t> stale_;    // bits of places to look at again: they or neighbours have moved
    std::vector<std::uint64_t> waiting_;  // bits of places beside an image that was full
    std::vector<std::int32_t> numbers_;   // of the places' images
    std::vector<int> cells_;              // of the places
    std::vector<int> roots_, sizes_, next_, last_;
    std::vector<int> part_;  // places
    std::vector<std::int32_t> images_, near_;
    std::vector<const std::int16_t*> first_;  // cells of each image
    std::vector<std::int64_t> counts_;        // cells without an image, and of each image
    std::vector<std::pair<std::int32_t, std::int32_t>> moves_;
};

template <int CHANNELS>
void refine_maps(const Refining& job, int threads) {
    const std::int64_t cells = std::int64_t{job.side} * job.side;
    parallel((job.images + TOGETHER - 1) / TOGETHER, threads, [&](std::int64_t task) {
        Map<CHANNELS> map(job);
        for (std::int64_t i = task * TOGETHER; i < std::min(job.images, (task + 1) * TOGETHER); ++i) {
            map.refine(job.maps + i * cells);
        }
        poll();
    });
}

}  // namespace

void refine(const Refining& job, int threads) {
    job.channels == 16 ? refine_maps<16>(job, threads) : refine_maps<0>(job, threads);
}

}  // namespace lpkernel
