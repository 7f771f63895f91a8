// Code domain: distance = sum over compared cells of table[canvas code][bank code], the same integers as in the
// latent domain.
//
// Layout: (blocks, cells, TILE) uint16, TILE images at a time with the image last, so a tile's codes of one cell are
// 2 KB in a row. A query reads one table row (4 KB for 1024 codes) for each compared cell; four rows at a time stay in
// the first-level cache while a tile's codes stream past them. Compiled without vector extensions beyond the baseline
// on purpose: gather instructions are slower than loads here.
//
// Many queries and a large bank are screened first. With L an upper limit of the query's answer, each table entry t
// becomes the byte min(255, floor(240 t / L)); a saturating sum of them above 240 D / L proves a distance above D. Rows
// of bytes have one lane for each query: (compared cells, codes, queries), 2 MB for 64 queries, so one load and one
// addition serve up to 64 queries. The images left, about one in a thousand, get their exact sums. Where images are
// ranked by distance minus offset, an image may be as far as the limit plus its offset: offsets are sorted into at most
// LEVELS levels, each with a row of limits for its upper end, and L is the limit plus the largest offset. Tie rule: see
// smallest.h. Limits: codes below 2^15, every distance below 2^31.

#include <algorithm>
#include <stdexcept>

#include "cpu/layer.h"
#include "cpu/parallel.h"

namespace lpkernel {

namespace {

constexpr int TILE = 1024;
constexpr int TILES = 4;                        // of a bank screened together
constexpr std::int64_t ROWS = 512 << 10;        // bytes of rows used together
constexpr std::int64_t ROWS_OF_16 = 192 << 10;  // the same for up to 16 queries
constexpr int MOST = 64;                        // queries screened together
constexpr int FEWEST = 6;                       // queries from which screening pays
constexpr int SEED = 256;                       // images measured for a first limit
constexpr int LEVELS = 64;                      // of offsets
constexpr double TOP = 240.0;                   // the byte that stands for the limit; the rest up to 255 is headroom

class CodeLayer final : public Layer {
  public:
    CodeLayer(const Content& content, std::int64_t size, int side, const std::int32_t* table, int rows,
              const Kernels& run, const LayerTuning& tuning)
        : Layer(size, side, 1, rows),
          screened_(tuning.screened),
          cells_(side * side),
          table_(table),
          rows_(rows),
          tile_(static_cast<int>(std::min<std::int64_t>(TILE, padded()))),
          tiles_((size + tile_ - 1) / tile_),
          codes_(static_cast<std::size_t>(tiles_) * cells_ * tile_) {
        for (std::int64_t part = 0; part < tiles_; ++part) {
            poll();
            std::uint16_t* to = codes_.data() + part * cells_ * tile_;
            for (int lane = 0; lane < tile_; ++lane) {
                const std::int64_t a = part * tile_ + lane;
                const std::int16_t* from = a < size ? content.image(a, cells_, 1, run) : nullptr;
                for (std::int64_t cell = 0; cell < cells_; ++cell) {
                    const auto code = from ? static_cast<std::uint16_t>(from[cell]) : std::uint16_t{0};
                    if (code >= rows_) throw_changed();  // checked as it is copied: the array may be a mapped file
                    to[cell * tile_ + lane] = code;
                }
            }
        }
        if (size <= std::min(tuning.pairs, BLOCK)) make_tables(content, run, tuning.summed);
    }

    std::int64_t parts() const override { return tiles_; }
    std::size_t bytes() const override { return Layer::bytes() + codes_.size() * sizeof(std::uint16_t); }

    void prepare(Query&, int) const override {}

    void search(const Content&, const Compared& compared, Query* const* queries, int n, std::int64_t first,
                std::int64_t last, const Kernels& run) const override {
        if (!run.byte_tile || n < FEWEST || (last - first) * tile_ < screened_) {
            return search_exactly(compared, queries, n, first, last, tile_);
        }
        const auto unlimited = [](const Query* query) { return query->best.limit() == Smallest::ANY; };
        int known = 0;  // images of the first part that are already measured
        if (std::any_of(queries, queries + n, unlimited)) {
            known = std::min(SEED, lanes(first));
            search_exactly(compared, queries, n, first, first + 1, known);
        }
        for (int q = 0; q < n; q += MOST) {
            screen(compared, queries + q, std::min(MOST, n - q), first, last, known, run);
        }
    }

    void cell_rows(const std::int32_t* cells, int count, const std::int16_t* values, const Kernels&,
                   std::int32_t* out) const override {
        for (int i = 0; i < count; ++i, out += padded()) {
            if (static_cast<std::uint16_t>(values[i]) >= rows_) throw_changed();
            const std::int32_t* mine = row(values[i]);
            const std::uint16_t* codes = codes_.data() + std::int64_t{cells[i]} * tile_;
            for (int lane = 0; lane < padded(); ++lane) out[lane] = mine[codes[lane]];
        }
    }

    std::int32_t distance(const Content& content, std::int64_t a, const std::int32_t* cells, int count,
                          const std::int16_t* values, const Kernels&) const override {
        const std::int16_t* image = content.data + content.allowed[a] * cells_;
        std::uint32_t sum = 0;
        for (int i = 0; i < count; ++i) {
            const auto code = static_cast<std::uint16_t>(image[cells[i]]);
            if (code >= rows_) throw_changed();
            sum += static_cast<std::uint32_t>(row(values[i])[code]);
        }
        return static_cast<std::int32_t>(sum);
    }

    std::int32_t apart(const std::int16_t* a, const std::int16_t* b) const override {
        const auto code = static_cast<std::uint16_t>(*b);
        if (code >= rows_) throw_changed();
        return row(*a)[code];
    }

    std::unique_ptr<Layer> likewise(const Content& content, std::int64_t size, const Kernels& run) const override {
        return std::make_unique<CodeLayer>(content, size, side(), table_, static_cast<int>(rows_), run, LayerTuning{});
    }

  private:
    [[noreturn]] static void throw_changed() { throw std::invalid_argument(CODES_CHANGED); }

    const std::int32_t* row(std::int16_t code) const { return table_ + static_cast<std::int64_t>(code) * rows_; }

    // The first `most` images of each part.
    void search_exactly(const Compared& compared, Query* const* queries, int n, std::int64_t first, std::int64_t last,
                        int most) const {
        alignas(64) std::int32_t out[TILE];
        for (std::int64_t part = first; part < last; ++part) {
            const int wide = std::min(most, lanes(part));
            for (int q = 0; q < n; ++q) {
                sum_tile(part, compared, queries[q]->values.data(), wide, out);
                Smallest& best = queries[q]->best;
                for (int lane = 0; lane < wide; ++lane) {
                    if (out[lane] <= best.limit()) best.push(out[lane], part * tile_ + lane);
                }
            }
        }
    }

    // Bounds in bytes for all queries at once, then the exact sum for those that a bound leaves. The first `known`
    // images of the first part are skipped.
    void screen(const Compared& compared, Query* const* queries, int n, std::int64_t first, std::int64_t last,
                int known, const Kernels& run) const {
        const int count = compared.count, lanes_wide = n <= 16 ? 16 : n <= 32 ? 32 : 64;
        const int padded = static_cast<int>((rows_ + 15) / 16 * 16);
        Aligned<std::uint8_t> rows(static_cast<std::size_t>(count) * padded * lanes_wide), bytes(16 * padded);
        std::vector<float> scales(lanes_wide);
        for (int q = 0; q < lanes_wide; ++q) {
            const std::int64_t limit = std::int64_t{queries[std::min(q, n - 1)]->best.limit()} + compared.most;
            scales[q] = static_cast<float>(TOP / static_cast<double>(std::max<std::int64_t>(1, limit)));
        }
        for (int i = 0; i < count; ++i) {
            for (int q = 0; q < lanes_wide; q += 16) {
                const std::int32_t* of[16];
                for (int j = 0; j < 16; ++j) of[j] = row(queries[std::min(q + j, n - 1)]->values[i]);
                run.byte_rows(of, scales.data() + q, static_cast<int>(rows_), padded, bytes.data(),
                              rows.data() + static_cast<std::int64_t>(i) * padded * lanes_wide + q, lanes_wide);
            }
        }
        // Cells are taken in portions whose rows fit the second-level cache, each over several tiles of the bank.
        const std::int64_t row_bytes = static_cast<std::int64_t>(padded) * lanes_wide;
        const std::int64_t together = (lanes_wide == 16 ? ROWS_OF_16 : ROWS) / row_bytes;
        const int portion = static_cast<int>(std::max<std::int64_t>(1, std::min<std::int64_t>(count, together)));
        const bool whole = portion >= count;
        Aligned<std::uint8_t> sums(whole ? 0 : static_cast<std::size_t>(TILES) * tile_ * lanes_wide);
        std::vector<std::uint64_t> found(static_cast<std::size_t>(tile_));
        int shift = 0;
        while (compared.most >> shift >= LEVELS) ++shift;
        const int levels = (compared.most >> shift) + 1;
        std::vector<std::uint8_t> level(static_cast<std::size_t>(tile_)), limits(levels * lanes_wide);
        std::vector<std::int64_t> known_limits(static_cast<std::size_t>(n), -(1LL << 40));
        for (std::int64_t part = first; part < last; part += TILES) {
            const std::int64_t stop = std::min(last, part + TILES);
            for (int i = 0; i < count; i += portion) {
                ByteTile tile{};
                tile.cells = compared.cells + i;
                tile.rows = rows.data() + i * row_bytes;
                tile.count = std::min(portion, count - i);
                tile.tile = tile_;
                tile.padded_codes = padded;
                tile.queries = lanes_wide;
                tile.first = i == 0;
                const bool final = i + portion >= count;
                for (std::int64_t p = part; p < stop; ++p) {
                    tile.codes = codes_.data() + p * cells_ * tile_;
                    tile.lanes = lanes(p);
                    tile.sums = whole ? nullptr : sums.data() + (p - part) * tile_ * lanes_wide;
                    tile.found = final ? found.data() : nullptr;
                    for (int q = 0; q < n; ++q) {  // limits fall as better images are found
                        const std::int64_t limit = queries[q]->best.limit();
                        if (limit == known_limits[q]) continue;
                        known_limits[q] = limit;
                        for (int l = 0; l < levels; ++l) {
                            const std::int64_t farthest = limit + ((std::int64_t{l} + 1) << shift) - 1;
                            const double bound = scales[q] * static_cast<double>(farthest) + 1;  // 1 covers rounding
                            limits[l * lanes_wide + q] =
                                static_cast<std::uint8_t>(std::min(255.0, std::max(0.0, bound)));
                        }
                    }
                    for (int lane = 0; final && compared.most && lane < tile.lanes; ++lane) {
                        level[lane] = static_cast<std::uint8_t>(compared.less[p * tile_ + lane] >> shift);
                    }
                    tile.levels = level.data();
                    tile.limits = limits.data();
                    run.byte_tile(tile);
                    if (final) measure(compared, queries, n, p, p == first ? known : 0, found.data());
                }
            }
        }
    }

    // Exact sums for the images of a tile that the bounds left, from its image `from` on.
    void measure(const Compared& compared, Query* const* queries, int n, std::int64_t part, int from,
                 const std::uint64_t* found) const {
        const std::uint64_t real = n == MOST ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1;
        const std::uint16_t* codes = codes_.data() + part * cells_ * tile_;
        for (int lane = from; lane < lanes(part); ++lane) {
            for (std::uint64_t left = found[lane] & real; left; left &= left - 1) {
                Query& query = *queries[__builtin_ctzll(left)];
                const std::int64_t a = part * tile_ + lane;
                const std::int32_t ranked = compared.ranked(sum_image(codes + lane, compared, query), a);
                if (ranked <= query.best.limit()) query.best.push(ranked, a);
            }
        }
    }

    // Distance to one image of a tile.
    std::int32_t sum_image(const std::uint16_t* codes, const Compared& compared, const Query& query) const {
        std::int32_t sum = 0;
        for (int i = 0; i < compared.count; ++i) {
            add(sum, row(query.values[i])[codes[std::int64_t{compared.cells[i]} * tile_]], 0);
        }
        return sum;
    }

    int lanes(std::int64_t part) const {
        return static_cast<int>(std::min<std::int64_t>(tile_, size() - part * tile_));
    }

    // Ranked distances to the first `wide` images of a tile, (wide).
    void sum_tile(std::int64_t part, const Compared& compared, const std::int16_t* values, int wide,
                  std::int32_t* out) const {
        const std::uint16_t* codes = codes_.data() + part * cells_ * tile_;
        const std::int32_t* cells = compared.cells;
        const int count = compared.count;
        for (int lane = 0; lane < wide; ++lane) out[lane] = compared.ranked(0, part * tile_ + lane);
        int i = 0;
        for (; i + 4 <= count; i += 4) {
            const std::uint16_t *c0 = codes + std::int64_t{cells[i]} * tile_,
                                *c1 = codes + std::int64_t{cells[i + 1]} * tile_,
                                *c2 = codes + std::int64_t{cells[i + 2]} * tile_,
                                *c3 = codes + std::int64_t{cells[i + 3]} * tile_;
            const std::int32_t *r0 = row(values[i]), *r1 = row(values[i + 1]), *r2 = row(values[i + 2]),
                               *r3 = row(values[i + 3]);
            for (int lane = 0; lane < wide; ++lane) {
                add(out[lane], r0[c0[lane]], r1[c1[lane]]);
                add(out[lane], r2[c2[lane]], r3[c3[lane]]);
            }
        }
        for (; i < count; ++i) {
            const std::uint16_t* c = codes + std::int64_t{cells[i]} * tile_;
            const std::int32_t* r = row(values[i]);
            for (int lane = 0; lane < wide; ++lane) add(out[lane], r[c[lane]], 0);
        }
    }

    // sum += a + b, modulo 2^32 for tables that break the limit
    static void add(std::int32_t& sum, std::int32_t a, std::int32_t b) {
        sum = static_cast<std::int32_t>(static_cast<std::uint32_t>(sum) + static_cast<std::uint32_t>(a) +
                                        static_cast<std::uint32_t>(b));
    }

    std::int64_t screened_, cells_;
    const std::int32_t* table_;
    std::int64_t rows_;
    int tile_;
    std::int64_t tiles_;
    Aligned<std::uint16_t> codes_;
};

}  // namespace

std::unique_ptr<Layer> code_layer(const Content& content, std::int64_t size, int side, const std::int32_t* table,
                                  int rows, const Kernels& run, const LayerTuning& tuning) {
    return std::make_unique<CodeLayer>(content, size, side, table, rows, run, tuning);
}

}  // namespace lpkernel
