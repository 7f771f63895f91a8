// Latent domain: distance = sum over compared cells and channels of (canvas - bank)^2, exact in int32.
//
// Layout: BLOCK images at a time, (blocks, cells, channel pairs, BLOCK, 2) int16 and (blocks, cells, BLOCK) int32
// squared norms, so a step reads runs of whole cache lines and one vector lane is one image. With
// |a - b|^2 = |a|^2 + |b|^2 - 2 a.b modulo 2^32, the work is one multiply-add instruction (vpdpwssd or vpmaddwd)
// for every two channels of LANES images. An odd channel is padded by a zero.
//
// Large banks are screened first: the six channels of largest variance are laid out a second time in the same way.
// Their part of a distance never exceeds the whole, so it is compared for all images, which reads a quarter to a half
// of the bank; the images with the smallest parts set the limit, and the whole distance is measured, from the bank's
// own array, only for images whose part is within it. On latents in order of variance these are three in a thousand. A
// block with many images left is compared whole. For a level that is derived from codes (Derived), only those six
// channels are laid out: they are kept if they take little memory, else made anew for the compared cells of each block,
// once for all queries; every whole distance is measured by itself. Where images are ranked by distance minus offset,
// sums start below 0, so partial sums stay lower bounds. Tie rule: see smallest.h. Limits: every distance below 2^31.

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "cpu/layer.h"
#include "cpu/parallel.h"

namespace lpkernel {

namespace {

constexpr std::int64_t CHUNK = 8;    // blocks whose bounds are kept at a time
constexpr std::int64_t SPARSE = 64;  // fewest images for each one that is measured alone
constexpr int MOST = 32;             // queries that pass over the same chunk
constexpr int CROWD = 16;            // images left of a block, above which it is compared whole

// Some channels of a bank as blocks, and the squared norms of their cells.
struct Packed {
    std::vector<int> channels;
    int halves = 0;
    Aligned<std::int16_t> bank;
    Aligned<std::int32_t> norms;
};

// The same for the compared cells of CHUNK blocks.
struct Made {
    std::vector<std::int32_t> cells;  // 0, 1, ...
    std::vector<Corners> corners;
    std::vector<std::int16_t> bank;
    std::vector<std::int32_t> norms;
};

class LatentLayer final : public Layer {
  public:
    LatentLayer(const Content& content, std::int64_t size, int side, int channels, const Kernels& run,
                const LayerTuning& tuning)
        : Layer(size, side, channels, 0), cells_(side * side), blocks_((size + BLOCK - 1) / BLOCK) {
        std::vector<int> all(static_cast<std::size_t>(channels));
        std::iota(all.begin(), all.end(), 0);
        if (!content.derived) whole_ = pack(content, all, run);
        if (content.derived || (size >= tuning.coarse && channels >= 2 * COARSE)) set_coarse(content, tuning, run);
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
        if (whole_.halves && width() % 2) {
            query.padded.assign(static_cast<std::size_t>(count) * whole_.halves * 2, 0);
            for (int i = 0; i < count; ++i) {
                std::copy_n(query.values.data() + i * width(), width(), query.padded.data() + i * whole_.halves * 2);
            }
        }
        if (!coarse_.halves) return;
        const auto taken = static_cast<int>(coarse_.channels.size()), room = 2 * coarse_.halves;
        query.coarse.assign(static_cast<std::size_t>(count) * room, 0);
        query.coarse_norms.resize(count);
        for (int i = 0; i < count; ++i) {
            std::uint32_t norm = 0;
            for (int c = 0; c < taken; ++c) {
                const std::int16_t value = query.values[i * width() + coarse_.channels[c]];
                query.coarse[i * room + c] = value;
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
        if (screened || content.derived) {
            Made made;
            for (std::int64_t first = first_part; first < last_part; first += CHUNK) {
                const std::int64_t stop = std::min(last_part, first + CHUNK);
                if (coarse_.bank.size() == 0) make(content, compared, first, stop, run, made);
                for (int q = 0; q < n; q += MOST) {
                    screen(content, compared, made, queries + q, std::min(MOST, n - q), first, stop, run);
                }
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
        if (!content.derived) return run.apart(content.image(a, cells_, width(), run), cells, values, count, width());
        thread_local std::vector<std::int16_t> made;
        thread_local std::vector<std::int32_t> order;
        thread_local std::vector<Corners> corners;
        made.resize(static_cast<std::size_t>(count) * width());
        order.resize(static_cast<std::size_t>(count));
        corners.resize(static_cast<std::size_t>(count));
        std::iota(order.begin(), order.end(), 0);
        for (int i = 0; i < count; ++i) corners[i] = content.corners()[cells[i]];
        content.derived->make(codes_of(content, a), corners.data(), count, width(), run, made.data());
        return run.apart(made.data(), order.data(), values, count, width());
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
        std::vector<std::int16_t> images(static_cast<std::size_t>(size * cells_ * width()));
        std::vector<std::int64_t> order(static_cast<std::size_t>(size));
        std::iota(order.begin(), order.end(), 0);
        for (std::int64_t a = 0; a < size; ++a) {
            std::copy_n(content.image(a, cells_, width(), run), cells_ * width(), images.data() + a * cells_ * width());
        }
        LayerTuning tuning;
        tuning.coarse = size + 1;
        return std::make_unique<LatentLayer>(Content{images.data(), order.data()}, size, side(), width(), run, tuning);
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

    const std::int16_t* codes_of(const Content& content, std::int64_t a) const {
        return content.data + content.allowed[a] * content.derived->full * content.derived->full;
    }

    // The coarse channels of the compared cells of blocks [first, last).
    void make(const Content& content, const Compared& compared, std::int64_t first, std::int64_t last,
              const Kernels& run, Made& made) const {
        const auto count = static_cast<std::size_t>(compared.count), block = count * BLOCK;
        if (made.cells.empty()) {
            made.cells.resize(count);
            std::iota(made.cells.begin(), made.cells.end(), 0);
            for (std::size_t i = 0; i < count; ++i) made.corners.push_back(content.corners()[compared.cells[i]]);
            made.bank.resize(CHUNK * block * coarse_.halves * 2);
            made.norms.resize(CHUNK * block);
        }
        for (std::int64_t part = first; part < last; ++part) {
            const std::size_t at = static_cast<std::size_t>(part - first) * block;
            make_block(content, made.corners.data(), compared.count, part, run,
                       made.bank.data() + at * coarse_.halves * 2, made.norms.data() + at);
        }
    }

    void make_block(const Content& content, const Corners* corners, int count, std::int64_t part, const Kernels& run,
                    std::int16_t* bank, std::int32_t* norms) const {
        const std::int16_t* images[BLOCK];
        for (int lane = 0; lane < lanes_of(part); ++lane) images[lane] = codes_of(content, part * BLOCK + lane);
        if (!run.level_block({images, corners, book_.data(), count, content.derived->rows, coarse_.halves,
                              lanes_of(part), content.derived->mask, bank, norms})) {
            throw std::invalid_argument(CODES_CHANGED);
        }
    }

    // Bounds first, for up to MOST queries and CHUNK blocks, which are `made` where the coarse channels are not kept.
    void screen(const Content& content, const Compared& compared, const Made& made, Query* const* queries, int n,
                std::int64_t first, std::int64_t last, const Kernels& run) const {
        alignas(64) std::int32_t bounds[CHUNK][MOST][BLOCK];
        std::uint64_t open[CHUNK][MOST];  // images that are not yet measured
        std::vector<std::int64_t> list;
        Smallest promising;
        const std::int64_t chunk = last - first;
        for (std::int64_t i = 0; i < chunk; ++i) {
            for (int group = 0; group < n; group += GROUP) {
                LatentBlock block = at(coarse_, first + i, compared, bounds[i][group], open[i] + group);
                if (coarse_.bank.size() == 0) {
                    const std::int64_t place = i * compared.count * BLOCK;
                    block.bank = made.bank.data() + place * coarse_.halves * 2;
                    block.norms = made.norms.data() + place;
                    block.cells = made.cells.data();
                }
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
                if (!content.derived && __builtin_popcountll(left) > CROWD) {
                    compare(compared, queries + q, 1, first + i, left, run);
                    continue;
                }
                for (; left; left &= left - 1) list.push_back((first + i) * BLOCK + __builtin_ctzll(left));
            }
            measure(content, list, compared, query, run);
        }
    }

    void measure(const Content& content, const std::vector<std::int64_t>& list, const Compared& compared, Query& query,
                 const Kernels& run) const {
        constexpr std::size_t AHEAD = 3;  // images prefetched ahead
        const auto fetch = [&](std::size_t i) {
            if (i >= list.size()) return;
            const std::int16_t* image =
                content.derived ? codes_of(content, list[i]) : content.image(list[i], cells_, width(), run);
            if (content.derived) return __builtin_prefetch(image);
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
    std::vector<int> most_varied(const Content& content, const Kernels& run) const {
        constexpr std::int64_t SAMPLE = 64;
        const std::int64_t sampled = std::min(SAMPLE, size());
        std::vector<double> sums(static_cast<std::size_t>(width()), 0.0), squares = sums;
        for (std::int64_t s = 0; s < sampled; ++s) {
            const std::int16_t* value = content.image(s * size() / sampled, cells_, width(), run);
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
        order.resize(std::min(COARSE, width()));
        return order;
    }

    // Lays out what is compared first, and for a derived level the codebook of those channels.
    void set_coarse(const Content& content, const LayerTuning& tuning, const Kernels& run) {
        const std::vector<int> channels = most_varied(content, run);
        if (!content.derived) {
            coarse_ = pack(content, channels, run);
            return;
        }
        constexpr int STRIDE = 8;
        coarse_.channels = channels;
        coarse_.halves = static_cast<int>(channels.size() + 1) / 2;
        book_.assign((static_cast<std::size_t>(content.derived->mask) + 1) * STRIDE, 0.0f);
        for (int row = 0; row < content.derived->rows; ++row) {
            for (std::size_t c = 0; c < channels.size(); ++c) {
                book_[static_cast<std::size_t>(row) * STRIDE + c] =
                    content.derived->book[static_cast<std::size_t>(row) * content.derived->stride + channels[c]];
            }
        }
        const std::int64_t cells = blocks_ * cells_ * BLOCK, halves = coarse_.halves;
        if (cells * (4 * halves + 4) > tuning.kept) return;
        room(coarse_);
        for (std::int64_t part = 0; part < blocks_; ++part) {
            poll();
            make_block(content, content.corners(), static_cast<int>(cells_), part, run,
                       coarse_.bank.data() + part * cells_ * halves * BLOCK * 2,
                       coarse_.norms.data() + part * cells_ * BLOCK);
        }
    }

    // Memory for all blocks, zero.
    void room(Packed& packed) const {
        const auto cells = static_cast<std::size_t>(blocks_ * cells_ * BLOCK);
        packed.bank = Aligned<std::int16_t>(cells * packed.halves * 2);
        packed.norms = Aligned<std::int32_t>(cells);
        std::memset(packed.bank.data(), 0, packed.bank.size() * sizeof(std::int16_t));
        std::memset(packed.norms.data(), 0, packed.norms.size() * sizeof(std::int32_t));
    }

    Packed pack(const Content& content, const std::vector<int>& channels, const Kernels& run) const {
        const int halves = static_cast<int>(channels.size() + 1) / 2;
        Packed packed;
        packed.channels = channels;
        packed.halves = halves;
        room(packed);
        std::int16_t* bank = packed.bank.data();
        std::int32_t* norms = packed.norms.data();
        for (std::int64_t part = 0; part < blocks_; ++part) {
            poll();
            for (std::int64_t cell = 0; cell < cells_;
                 ++cell, bank += std::int64_t{halves} * BLOCK * 2, norms += BLOCK) {
                for (int lane = 0; lane < lanes_of(part); ++lane) {
                    const std::int16_t* from = content.cell(part * BLOCK + lane, cell, cells_, width(), run);
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
    Packed whole_, coarse_;    // coarse_.halves is 0 without screening
    std::vector<float> book_;  // (rows, 8) of the coarse channels of a derived level
};

}  // namespace

std::unique_ptr<Layer> latent_layer(const Content& content, std::int64_t size, int side, int channels,
                                    const Kernels& run, const LayerTuning& tuning) {
    return std::make_unique<LatentLayer>(content, size, side, channels, run, tuning);
}

}  // namespace lpkernel
