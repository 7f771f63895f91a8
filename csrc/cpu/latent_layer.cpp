// Latent domain: distance = sum over compared cells and channels of (canvas - bank)^2, exact in int32.
//
// Layout: BLOCK images at a time, (blocks, cells, channel pairs, BLOCK, 2) int16 and (blocks, cells, BLOCK) int32
// squared norms, so a step reads runs of whole cache lines and one vector lane is one image. With
// |a - b|^2 = |a|^2 + |b|^2 - 2 a.b modulo 2^32, the work is one multiply-add instruction (vpdpwssd or vpmaddwd)
// for each two channels of LANES images. An odd channel is padded by a zero.
//
// Large banks are screened first: six channels, those of the largest variance, are laid out once more in the same way.
// Their part of a distance never exceeds the whole, so it is compared for all images, which reads a quarter of the
// bank; the images of the smallest parts give the limit, and only images whose part is within it get their whole
// distance, from the bank's own array. On latents in order of variance that is three in a thousand. A block of which
// many are left is compared whole. Sums begin at less than 0 where images are ranked by distances less offsets, so
// partial ones stay lower bounds. Tie rule: see smallest.h. Limits: every distance below 2^31.

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>

#include "cpu/layer.h"
#include "cpu/parallel.h"

namespace lpkernel {

namespace {

constexpr std::int64_t CHUNK = 8;    // blocks of which bounds are kept at a time
constexpr std::int64_t SPARSE = 64;  // images for each one that is measured alone, at least
constexpr int MOST = 32;             // queries that pass over the same chunk
constexpr int CROWD = 16;            // images of a block, from which the whole block is compared

// Some channels of a bank as blocks, and the squared norms of their cells.
struct Packed {
    std::vector<int> channels;
    int halves = 0;
    Aligned<std::int16_t> bank;
    Aligned<std::int32_t> norms;
};

class LatentLayer final : public Layer {
  public:
    LatentLayer(const Content& content, std::int64_t size, int side, int channels, const Kernels& run,
                const LayerTuning& tuning)
        : Layer(size, side, channels, 0), cells_(side * side), blocks_((size + BLOCK - 1) / BLOCK) {
        std::vector<int> all(static_cast<std::size_t>(channels));
        std::iota(all.begin(), all.end(), 0);
        whole_ = pack(content, all);
        if (size >= tuning.coarse && channels >= 2 * COARSE) coarse_ = pack(content, most_varied(content));
        if (size <= std::min(tuning.pairs, BLOCK)) make_tables(content, run, tuning.summed);
    }

    std::int64_t parts() const override { return blocks_; }
    std::size_t bytes() const override {
        std::size_t sum = Layer::bytes();
        for (const Packed* packed : {&whole_, &coarse_}) {
            sum += packed->bank.size() * sizeof(std::int16_t) + packed->norms.size() * sizeof(std::int32_t);
        }
        return sum;
    }

    void prepare(Query& query, int count) const override {
        query.norms.clear();
        if (width() % 2) {
            query.padded.assign(static_cast<std::size_t>(count) * whole_.halves * 2, 0);
            for (int i = 0; i < count; ++i) {
                std::copy_n(query.values.data() + i * width(), width(), query.padded.data() + i * whole_.halves * 2);
            }
        }
        if (!coarse_.halves) return;
        query.coarse.resize(static_cast<std::size_t>(count) * COARSE);
        query.coarse_norms.resize(count);
        for (int i = 0; i < count; ++i) {
            std::uint32_t norm = 0;
            for (int c = 0; c < COARSE; ++c) {
                const std::int16_t value = query.values[i * width() + coarse_.channels[c]];
                query.coarse[i * COARSE + c] = value;
                norm += static_cast<std::uint32_t>(value * value);
            }
            query.coarse_norms[i] = static_cast<std::int32_t>(norm);
        }
    }

    void search(const Content& content, const Compared& compared, Query* const* queries, int n, std::int64_t first_part,
                std::int64_t last_part, const Kernels& run) const override {
        const std::int64_t images = (last_part - first_part) * BLOCK;
        bool screened = coarse_.halves > 0;
        for (int q = 0; q < n; ++q) screened = screened && queries[q]->best.need() * SPARSE <= images;
        if (screened) {
            for (int q = 0; q < n; q += MOST) {
                screen(content, compared, queries + q, std::min(MOST, n - q), first_part, last_part, run);
            }
            return;
        }
        for (std::int64_t part = first_part; part < last_part; ++part) {
            for (int q = 0; q < n; q += GROUP) {
                compare(compared, queries + q, std::min(GROUP, n - q), part, ~std::uint64_t{0}, run);
            }
        }
    }

    void cell_rows(const std::int32_t* cells, int count, const std::int16_t* values, const Kernels& run,
                   std::int32_t* out) const override {
        run.cell_rows({whole_.bank.data(), whole_.norms.data(), cells, values, count, width(), padded(), out});
    }

    std::int32_t distance(const Content& content, std::int64_t a, const std::int32_t* cells, int count,
                          const std::int16_t* values, const Kernels& run) const override {
        return run.apart(content.data + content.allowed[a] * cells_ * width(), cells, values, count, width());
    }

    std::int32_t apart(const std::int16_t* a, const std::int16_t* b) const override {
        std::uint32_t sum = 0;
        for (int c = 0; c < width(); ++c) {
            const auto difference = static_cast<std::uint32_t>(a[c] - b[c]);
            sum += difference * difference;
        }
        return static_cast<std::int32_t>(sum);
    }

    std::unique_ptr<Layer> likewise(const Content& content, std::int64_t size, const Kernels& run) const override {
        LayerTuning tuning;
        tuning.coarse = size + 1;
        return std::make_unique<LatentLayer>(content, size, side(), width(), run, tuning);
    }

  private:
    // Whole distances to the wanted images of a block.
    void compare(const Compared& compared, Query* const* queries, int n, std::int64_t part, std::uint64_t wanted,
                 const Kernels& run) const {
        alignas(64) std::int32_t out[GROUP * BLOCK];
        std::uint64_t found[GROUP];
        LatentBlock block = at(whole_, part, compared, out, found);
        block.queries = n;
        for (int q = 0; q < n; ++q) {
            Query& query = *queries[q];
            if (query.norms.empty()) {
                query.norms.resize(compared.count);
                run.norms(query.values.data(), compared.count, width(), query.norms.data());
            }
            block.query[q] = width() % 2 ? query.padded.data() : query.values.data();
            block.own_norms[q] = query.norms.data();
            block.limits[q] = query.best.limit();
        }
        run.latent_block(block);
        for (int q = 0; q < n; ++q) {
            for (std::uint64_t left = found[q] & wanted; left; left &= left - 1) {
                const int lane = __builtin_ctzll(left);
                queries[q]->best.push(out[q * BLOCK + lane], part * BLOCK + lane);
            }
        }
    }

    // Bounds first, for up to MOST queries.
    void screen(const Content& content, const Compared& compared, Query* const* queries, int n, std::int64_t first_part,
                std::int64_t last_part, const Kernels& run) const {
        alignas(64) std::int32_t bounds[CHUNK][MOST][BLOCK];
        std::uint64_t open[CHUNK][MOST];  // images that are not measured yet
        std::vector<std::int64_t> list;
        Smallest promising;
        for (std::int64_t first = first_part; first < last_part; first += CHUNK) {
            const std::int64_t chunk = std::min(CHUNK, last_part - first);
            for (std::int64_t i = 0; i < chunk; ++i) {
                for (int group = 0; group < n; group += GROUP) {
                    LatentBlock block = at(coarse_, first + i, compared, bounds[i][group], open[i] + group);
                    block.queries = std::min(GROUP, n - group);
                    for (int q = 0; q < block.queries; ++q) {
                        const Query& query = *queries[group + q];
                        block.query[q] = query.coarse.data();
                        block.own_norms[q] = query.coarse_norms.data();
                        block.limits[q] = query.best.limit();
                    }
                    run.latent_block(block);
                }
            }
            for (int q = 0; q < n; ++q) {
                Query& query = *queries[q];
                if (query.best.limit() == Smallest::ANY) {
                    promising.reset(query.best.need());
                    for (std::int64_t i = 0; i < chunk; ++i) {
                        std::uint64_t left = open[i][q] & run.at_most(bounds[i][q], promising.limit());
                        for (; left; left &= left - 1) {
                            const int lane = __builtin_ctzll(left);
                            promising.push(bounds[i][q][lane], i * BLOCK + lane);
                        }
                    }
                    list.clear();
                    for (const std::uint64_t key : promising.keys()) {
                        const std::int64_t at = Smallest::index(key);
                        open[at / BLOCK][q] &= ~(std::uint64_t{1} << at % BLOCK);
                        list.push_back(first * BLOCK + at);
                    }
                    measure(content, list, compared, query, run);
                }
                list.clear();
                for (std::int64_t i = 0; i < chunk; ++i) {
                    if (!open[i][q]) continue;
                    std::uint64_t left = open[i][q] & run.at_most(bounds[i][q], query.best.limit());
                    if (__builtin_popcountll(left) > CROWD) {
                        compare(compared, queries + q, 1, first + i, left, run);
                        continue;
                    }
                    for (; left; left &= left - 1) list.push_back((first + i) * BLOCK + __builtin_ctzll(left));
                }
                measure(content, list, compared, query, run);
            }
        }
    }

    void measure(const Content& content, const std::vector<std::int64_t>& list, const Compared& compared, Query& query,
                 const Kernels& run) const {
        constexpr std::size_t AHEAD = 3;  // images on their way from memory
        const auto fetch = [&](std::size_t i) {
            if (i >= list.size()) return;
            const std::int16_t* image = content.data + content.allowed[list[i]] * cells_ * width();
            for (int j = 0; j < compared.count; ++j) {
                __builtin_prefetch(image + std::int64_t{compared.cells[j]} * width());
            }
        };
        for (std::size_t i = 0; i < AHEAD; ++i) fetch(i);
        for (std::size_t i = 0; i < list.size(); ++i) {
            fetch(i + AHEAD);
            const std::int32_t apart =
                distance(content, list[i], compared.cells, compared.count, query.values.data(), run);
            query.best.push(compared.ranked(apart, list[i]), list[i]);
        }
    }

    LatentBlock at(const Packed& packed, std::int64_t part, const Compared& compared, std::int32_t* out,
                   std::uint64_t* found) const {
        LatentBlock block{};
        block.bank = packed.bank.data() + part * cells_ * packed.halves * BLOCK * 2;
        block.norms = packed.norms.data() + part * cells_ * BLOCK;
        block.cells = compared.cells;
        block.count = compared.count;
        block.less = compared.less ? compared.less + part * BLOCK : NOTHING;
        block.pairs = packed.halves;
        block.lanes = lanes_of(part);
        block.out = out;
        block.found = found;
        return block;
    }

    int lanes_of(std::int64_t part) const {
        return static_cast<int>(std::min<std::int64_t>(BLOCK, size() - part * BLOCK));
    }

    // The COARSE channels that vary most over a sample of the bank, which separate images best.
    std::vector<int> most_varied(const Content& content) const {
        constexpr std::int64_t SAMPLE = 64;
        const std::int64_t sampled = std::min(SAMPLE, size());
        std::vector<double> sums(static_cast<std::size_t>(width()), 0.0), squares = sums;
        for (std::int64_t s = 0; s < sampled; ++s) {
            const std::int16_t* value = content.data + content.allowed[s * size() / sampled] * cells_ * width();
            for (std::int64_t cell = 0; cell < cells_; ++cell) {
                for (int c = 0; c < width(); ++c, ++value) {
                    sums[c] += *value;
                    squares[c] += static_cast<double>(*value) * *value;
                }
            }
        }
        const auto count = static_cast<double>(sampled * cells_);
        const auto variance = [&](int c) { return squares[c] / count - sums[c] / count * (sums[c] / count); };
        std::vector<int> order(static_cast<std::size_t>(width()));
        std::iota(order.begin(), order.end(), 0);
        std::sort(order.begin(), order.end(), [&](int a, int b) { return variance(a) > variance(b); });
        order.resize(COARSE);
        return order;
    }

    Packed pack(const Content& content, std::vector<int> channels) const {
        const int halves = static_cast<int>(channels.size() + 1) / 2;
        const auto cells = static_cast<std::size_t>(blocks_ * cells_);
        Packed packed{std::move(channels), halves, Aligned<std::int16_t>(cells * halves * BLOCK * 2),
                      Aligned<std::int32_t>(cells * BLOCK)};
        std::memset(packed.bank.data(), 0, packed.bank.size() * sizeof(std::int16_t));
        std::memset(packed.norms.data(), 0, packed.norms.size() * sizeof(std::int32_t));
        std::int16_t* bank = packed.bank.data();
        std::int32_t* norms = packed.norms.data();
        for (std::int64_t part = 0; part < blocks_; ++part) {
            poll();
            for (std::int64_t cell = 0; cell < cells_;
                 ++cell, bank += std::int64_t{halves} * BLOCK * 2, norms += BLOCK) {
                for (int lane = 0; lane < lanes_of(part); ++lane) {
                    const std::int64_t image = content.allowed[part * BLOCK + lane];
                    const std::int16_t* from = content.data + (image * cells_ + cell) * width();
                    std::uint32_t norm = 0;
                    for (std::size_t c = 0; c < packed.channels.size(); ++c) {
                        const std::int16_t value = from[packed.channels[c]];
                        bank[(static_cast<std::int64_t>(c / 2) * BLOCK + lane) * 2 + static_cast<std::int64_t>(c % 2)] =
                            value;
                        norm += static_cast<std::uint32_t>(value * value);
                    }
                    norms[lane] = static_cast<std::int32_t>(norm);
                }
            }
        }
        return packed;
    }

    std::int64_t cells_, blocks_;
    Packed whole_, coarse_;  // coarse_.halves is 0 without screening
};

}  // namespace

std::unique_ptr<Layer> latent_layer(const Content& content, std::int64_t size, int side, int channels,
                                    const Kernels& run, const LayerTuning& tuning) {
    return std::make_unique<LatentLayer>(content, size, side, channels, run, tuning);
}

}  // namespace lpkernel
