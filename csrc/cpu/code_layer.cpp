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
// addition serve up to 64 queries. The images left, about one in a thousand, get their exact sums. For up to 16
// queries, images that no query's bound leaves are dropped after a quarter of the cells and later, as long as that
// drops many. Where images are ranked by distance minus offset, an image may be as far as the limit plus its offset:
// offsets are sorted into at most LEVELS levels, each with a row of limits for its upper end, and L is the limit plus
// the largest offset.
//
// With group_tile, queries take another way, if they have limits or are below FEWEST, unless it leaves so many images
// of the first tile that bytes are quicker. The codes of a large bank are divided into GROUPS groups of near ones, each
// of two halves, and the group and half of each cell are laid out, too: (tiles, cells, GROUPED) bytes. For a query and
// a compared cell, the least distance to the codes of each group is a byte, floor(48 n t / L) for n cells, and 128 of
// them are two registers: one instruction looks up those of 64 images. Sums have 16 bits, since rounding bytes down
// would lose too much of a distance of 240. Where groups left many images of the tile before, the halves are compared,
// with two look-ups. The images left are measured from the bank's own array, until their exact part and the bound of
// the rest exceed the limit.
//
// Tie rule: see smallest.h. Limits: codes below 2^15, every distance below 2^31.

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <stdexcept>

#include "cpu/code_groups.h"
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
constexpr int MOST_GROUPED = 4096;              // cells, for which float32 rounds a bound by far less than ROUNDING
constexpr int SEED = 256;                       // images measured for a first limit
constexpr int LEVELS = 64;                      // of offsets
constexpr double MOST_KEPT = 0.6;               // of the images of a tile, for which leaving out the others pays
constexpr double SHARE = 48.0;                  // of the limit for each cell, in bytes of groups
constexpr double HALVED = 0.01;                 // of a tile left by whole groups, above which halves are compared next
constexpr double MOST_MET = 0.003;  // for each cell, of a first tile left by groups: beyond, bytes are quicker
constexpr int CHECKED = 8;          // cells summed between two looks at the limit
constexpr double ROUNDING = 1.0;    // covers that of a sum of bytes
constexpr double TOP = 240.0;       // the byte that stands for the limit; the rest up to 255 is headroom

// Memory that is used again by the next step: given back to the C library each time, it is scattered until a long scan
// holds several times what it needs.
class Spares {
  public:
    Aligned<std::uint8_t> take(std::size_t size) {
        constexpr std::size_t STEP = 1 << 21;  // so that steps of like sizes share
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            while (!spares_.empty()) {
                Aligned<std::uint8_t> last = std::move(spares_.back());
                spares_.pop_back();
                if (last.size() >= size) return last;
            }
        }
        return Aligned<std::uint8_t>((size + STEP - 1) / STEP * STEP);
    }

    void give(Aligned<std::uint8_t> one) {
        constexpr std::size_t MOST_SPARES = 4;
        const std::lock_guard<std::mutex> lock(mutex_);
        if (spares_.size() < MOST_SPARES) spares_.push_back(std::move(one));
    }

  private:
    std::mutex mutex_;
    std::vector<Aligned<std::uint8_t>> spares_;
};

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
        if (size <= std::min(tuning.pairs, BLOCK)) {
            make_tables(content, run, tuning.summed);
        } else if (run.group_tile && size >= screened_) {
            group();
        }
    }

    std::int64_t parts() const override { return tiles_; }
    std::size_t bytes() const override {
        return Layer::bytes() + codes_.size() * sizeof(std::uint16_t) + groups_.size();
    }

    void prepare(Query&, int) const override {}

    void search(const Content& content, const Compared& compared, Query* const* queries, int n, std::int64_t first,
                std::int64_t last, const Kernels& run) const override {
        const bool bytes = run.byte_tile && n >= FEWEST && (last - first) * tile_ >= screened_;
        const bool groups = grouped_ && run.group_tile && compared.count <= MOST_GROUPED;
        if (!bytes && !groups) return search_exactly(compared, queries, n, first, last, tile_);
        for (int q = 0; q < n; q += MOST) {
            const int some = std::min(MOST, n - q);
            const bool limited = !unlimited(queries + q, some);
            // without limits, bytes leave fewer images
            if (groups && (limited || !bytes) &&
                screen_groups(content, compared, queries + q, some, first, last, bytes, run)) {
                continue;
            }
            int known = 0;  // images of the first part that are already measured
            if (!limited) {
                known = std::min(SEED, lanes(first));
                search_exactly(compared, queries + q, some, first, first + 1, known);
            }
            screen(compared, queries + q, some, first, last, known, run);
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
        LayerTuning tuning;
        tuning.screened = size + 1;
        return std::make_unique<CodeLayer>(content, size, side(), table_, static_cast<int>(rows_), run, tuning);
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

    // Lays out the groups of the codes, as GroupTile reads them.
    void group() {
        groups_ = Aligned<std::uint8_t>(static_cast<std::size_t>((size() + GROUPED - 1) / GROUPED) * cells_ * GROUPED);
        std::memset(groups_.data(), 0, groups_.size());
        const auto each = [&](const auto& task) {
            for (std::int64_t part = 0; part < tiles_; ++part) {
                poll();
                for (std::int64_t cell = 0; cell < cells_; ++cell) {
                    const std::uint16_t* codes = codes_.data() + (part * cells_ + cell) * tile_;
                    for (int lane = 0; lane < lanes(part); ++lane) task(part * tile_ + lane, cell, codes[lane]);
                }
            }
        };
        std::vector<std::int64_t> counts(static_cast<std::size_t>(rows_));
        each([&](std::int64_t, std::int64_t, std::uint16_t code) { ++counts[code]; });
        grouped_ = std::make_unique<CodeGroups>(table_, static_cast<int>(rows_), counts);
        each([&](std::int64_t a, std::int64_t cell, std::uint16_t code) {
            const std::int64_t lane = a % GROUPED, place = lane / 64 * 64 + lane % 32 * 2 + lane % 64 / 32;
            groups_.data()[(a / GROUPED * cells_ + cell) * GROUPED + place] = grouped_->of[code];
        });
    }

    // An image that a bound leaves. exact: the distance of its first cells; bound: that of the others, in bytes; less:
    // what is taken off both, in bytes.
    struct Left {
        const std::int16_t* codes;
        std::int64_t index;
        std::int32_t exact, bound;
        float less;
    };

    // One query of a search by groups.
    struct Bounded {
        Query* query = nullptr;
        float scale = 0.0f;                     // bytes for a distance of 1
        std::vector<const std::int32_t*> rows;  // of the table, for each compared cell
        std::vector<std::uint8_t> halved;       // (compared cells, 2, GROUPS) bounds of the halves of groups
        std::vector<std::uint8_t> whole;        // (compared cells, GROUPS) the lesser of both
        bool halves = false;                    // whether halves are compared, since whole groups left many images

        float most() const { return static_cast<float>(query->best.limit()) * scale + static_cast<float>(ROUNDING); }
    };

    Bounded bounded(const Compared& compared, Query& query, const Kernels& run) const {
        const int count = std::max(1, compared.count);
        const std::int64_t farthest = std::int64_t{query.best.limit()} + compared.most;
        const auto most = static_cast<float>(std::min(255, 65535 / count));  // the sums stay below 2^16
        Bounded one;
        one.query = &query;
        one.scale = static_cast<float>(SHARE * count / static_cast<double>(std::max<std::int64_t>(1, farthest)));
        one.halved.resize(static_cast<std::size_t>(compared.count) * 2 * GROUPS);
        one.whole.resize(static_cast<std::size_t>(compared.count) * GROUPS);
        for (int i = 0; i < compared.count; ++i) {
            const std::int64_t code = query.values[i];
            std::uint8_t* halved = one.halved.data() + i * 2 * GROUPS;
            run.scaled_bytes(grouped_->nearest.data() + code * 2 * GROUPS, one.scale, most, 2 * GROUPS, halved);
            std::transform(halved, halved + GROUPS, halved + GROUPS, one.whole.data() + i * GROUPS,
                           [](std::uint8_t a, std::uint8_t b) { return std::min(a, b); });
            one.rows.push_back(row(query.values[i]));
        }
        return one;
    }

    // Bounds by groups of codes, then exact sums as far as these leave an image. Returns false, and has done nothing,
    // if there are `bytes` to do it and they are quicker, since groups would leave too many images.
    bool screen_groups(const Content& content, const Compared& compared, Query* const* queries, int n,
                       std::int64_t first, std::int64_t last, bool bytes, const Kernels& run) const {
        std::int64_t start = first * tile_;
        if (unlimited(queries, n)) {
            for (const std::int64_t stop = start + std::min(SEED, lanes(first)); start < stop; ++start) {
                for (int q = 0; q < n; ++q) {
                    const std::int32_t apart =
                        distance(content, start, compared.cells, compared.count, queries[q]->values.data(), run);
                    offer(compared, apart, start, *queries[q]);
                }
            }
        }
        std::vector<Bounded> all;
        for (int q = 0; q < n; ++q) all.push_back(bounded(compared, *queries[q], run));
        const auto ends = std::minmax_element(compared.cells, compared.cells + compared.count);
        constexpr int LINE = 32;  // codes of a cache line
        const int low = compared.count ? *ends.first : 0, high = compared.count ? *ends.second : 0;
        std::uint16_t sums[GROUPED];
        std::uint64_t found[GROUPED / 64];
        std::vector<Left> left;
        const std::int64_t stop = std::min(last * tile_, size());
        const auto compare = [&](const Bounded& one, std::int64_t at) {
            const auto wide = static_cast<int>(std::min<std::int64_t>(GROUPED, stop - at));
            run.group_tile({groups_.data() + at * cells_, compared.cells,
                            one.halves ? one.halved.data() : one.whole.data(),
                            compared.less ? compared.less + at : nullptr, compared.count, wide, one.halves,
                            static_cast<float>(one.query->best.limit()), one.scale, sums, found});
            return (wide + 63) / 64;
        };
        if (bytes) {
            int met = 0;
            for (const Bounded& one : all) {
                const int words = compare(one, first * tile_);
                for (int word = 0; word < words; ++word) met += __builtin_popcountll(found[word]);
            }
            if (met > MOST_MET * compared.count * n * GROUPED) return false;
        }
        for (std::int64_t at = first * tile_; at < stop; at += GROUPED) {
            const std::int32_t* less = compared.less ? compared.less + at : nullptr;
            for (Bounded& one : all) {
                const bool halves = one.halves;
                const int words = compare(one, at);
                left.clear();
                for (int word = 0; word < words; ++word) {
                    for (std::uint64_t bits = found[word]; bits; bits &= bits - 1) {
                        const int b = word * 64 + __builtin_ctzll(bits);
                        if (at + b < start) continue;
                        const std::int16_t* codes = content.data + content.allowed[at + b] * cells_;
                        for (int cell = low / LINE * LINE; cell <= high; cell += LINE) __builtin_prefetch(codes + cell);
                        const float off = less ? static_cast<float>(less[b]) * one.scale : 0.0f;
                        left.push_back({codes, at + b, 0, sums[b], off});
                    }
                }
                one.halves = static_cast<double>(left.size()) > HALVED * GROUPED;
                finish(compared, one, halves, left);
            }
        }
        return true;
    }

    // Measures images as far as they may be among the nearest. Those of a tile go on together, a few cells at a time,
    // since each lookup waits for memory.
    void finish(const Compared& compared, const Bounded& one, bool halves, std::vector<Left>& left) const {
        const std::uint8_t* bytes = halves ? one.halved.data() : one.whole.data();
        const std::uint8_t* of = grouped_->of.data();
        const int groups = halves ? 2 * GROUPS : GROUPS;
        const float most = one.most();
        for (int first = 0; first < compared.count; first += CHECKED) {
            const int stop = std::min(first + CHECKED, compared.count);
            auto kept = left.begin();
            for (Left image : left) {
                for (int i = first; i < stop; ++i) {
                    const auto code = static_cast<std::uint16_t>(image.codes[compared.cells[i]]);
                    if (code >= rows_) throw_changed();
                    add(image.exact, one.rows[i][code], 0);
                    image.bound -= bytes[i * groups + (of[code] & (groups - 1))];
                }
                *kept = image;
                const float rest = static_cast<float>(image.bound) - image.less;
                kept += static_cast<float>(image.exact) * one.scale + rest <= most;
            }
            left.erase(kept, left.end());
        }
        for (const Left& image : left) offer(compared, image.exact, image.index, *one.query);
    }

    static bool unlimited(Query* const* queries, int n) {
        return std::any_of(queries, queries + n, [](const Query* one) { return one->best.limit() == Smallest::ANY; });
    }

    static void offer(const Compared& compared, std::int32_t distance, std::int64_t a, Query& query) {
        const std::int32_t ranked = compared.ranked(distance, a);
        if (ranked <= query.best.limit()) query.best.push(ranked, a);
    }

    // Bounds in bytes for all queries at once, then exact sums where these leave an image. The first `known` images of
    // the first part are skipped.
    void screen(const Compared& compared, Query* const* queries, int n, std::int64_t first, std::int64_t last,
                int known, const Kernels& run) const {
        Screen made{compared, queries, n, n <= 16 ? 16 : n <= 32 ? 32 : 64};
        const int count = compared.count, wide = made.wide;
        const bool dropping = wide == 16;  // some bound of more queries leaves most images until the end
        const int padded = static_cast<int>((rows_ + 15) / 16 * 16);
        made.rows = spares_.take(static_cast<std::size_t>(count) * padded * wide);
        Aligned<std::uint8_t> bytes(16 * padded);
        made.scales.resize(wide);
        for (int q = 0; q < wide; ++q) {
            const std::int64_t limit = std::int64_t{queries[std::min(q, n - 1)]->best.limit()} + compared.most;
            made.scales[q] = static_cast<float>(TOP / static_cast<double>(std::max<std::int64_t>(1, limit)));
        }
        for (int i = 0; i < count; ++i) {
            for (int q = 0; q < wide; q += 16) {
                const std::int32_t* of[16];
                for (int j = 0; j < 16; ++j) of[j] = row(queries[std::min(q + j, n - 1)]->values[i]);
                run.byte_rows(of, made.scales.data() + q, static_cast<int>(rows_), padded, bytes.data(),
                              made.rows.data() + static_cast<std::int64_t>(i) * padded * wide + q, wide);
            }
        }
        // Cells are taken in portions whose rows fit a near cache, each over several tiles of the bank. After some of
        // them only those images go on that some query's bound leaves.
        const std::int64_t row_bytes = static_cast<std::int64_t>(padded) * wide;
        const std::int64_t together = (wide == 16 ? ROWS_OF_16 : ROWS) / row_bytes;
        const std::int64_t most = dropping ? (count + 3) / 4 : count;
        const int portion = static_cast<int>(std::max<std::int64_t>(1, std::min(most, together)));
        Aligned<std::uint8_t> sums(static_cast<std::size_t>(TILES) * tile_ * wide);
        std::vector<std::uint16_t> listed(static_cast<std::size_t>(TILES) * tile_);
        int left[TILES];
        made.found.resize(static_cast<std::size_t>(tile_));
        while (compared.most >> made.shift >= LEVELS) ++made.shift;
        made.levels = (compared.most >> made.shift) + 1;
        made.level.resize(static_cast<std::size_t>(tile_));
        made.limits.resize(static_cast<std::size_t>(made.levels) * wide);
        made.known.assign(static_cast<std::size_t>(n), -(1LL << 40));
        int from = dropping ? count / 4 : count;  // cells after which images are left out
        for (std::int64_t part = first; part < last; part += TILES) {
            const auto parts = static_cast<int>(std::min<std::int64_t>(TILES, last - part));
            int all = 0;
            for (int t = 0; t < parts; ++t) {
                left[t] = lanes(part + t);
                all += left[t];
                std::iota(listed.data() + t * tile_, listed.data() + t * tile_ + left[t], std::uint16_t{0});
            }
            for (int i = 0; i < count; i += portion) {
                const int done = std::min(i + portion, count);
                int now = 0;
                for (int t = 0; t < parts; ++t) {
                    std::uint16_t* const mine = listed.data() + t * tile_;
                    std::uint8_t* const bounds = sums.data() + t * tile_ * wide;
                    const bool some = left[t] < lanes(part + t);
                    run.byte_tile({codes_.data() + (part + t) * cells_ * tile_, some ? mine : nullptr,
                                   compared.cells + i, made.rows.data() + i * row_bytes, done - i, tile_, left[t],
                                   padded, wide, i == 0, bounds});
                    if (done == count) {
                        within(made, part + t, mine, left[t], bounds, run);
                        measure(made, part + t, part + t == first ? known : 0, mine, left[t]);
                    } else if (done >= from) {
                        within(made, part + t, mine, left[t], bounds, run);
                        left[t] = keep(made, mine, left[t], bounds);
                    }
                    now += left[t];
                }
                if (done >= from && done < count) {
                    if (now > all / 4 * 3) from = std::max(from, done + 1);
                    all = now;
                }
            }
        }
        spares_.give(std::move(made.rows));
    }

    // What a screen is made of.
    struct Screen {
        const Compared& compared;
        Query* const* queries;
        int n, wide, shift = 0, levels = 0;
        Aligned<std::uint8_t> rows{};  // (compared cells, padded codes, wide)
        std::vector<float> scales{};
        std::vector<std::int64_t> known{};   // limits of the queries, of which `limits` are made
        std::vector<std::uint8_t> limits{};  // (levels, wide)
        std::vector<std::uint8_t> level{};   // of some images of a tile
        std::vector<std::uint64_t> found{};
    };

    // found: which queries' bounds leave each of the listed images of a tile.
    void within(Screen& made, std::int64_t part, const std::uint16_t* listed, int count, const std::uint8_t* sums,
                const Kernels& run) const {
        for (int q = 0; q < made.n; ++q) {  // limits fall as better images are found
            const std::int64_t limit = made.queries[q]->best.limit();
            if (limit == made.known[q]) continue;
            made.known[q] = limit;
            for (int l = 0; l < made.levels; ++l) {
                const std::int64_t farthest = limit + ((std::int64_t{l} + 1) << made.shift) - 1;
                const double bound = made.scales[q] * static_cast<double>(farthest) + ROUNDING;
                made.limits[l * made.wide + q] = static_cast<std::uint8_t>(std::min(255.0, std::max(0.0, bound)));
            }
        }
        const std::int32_t* less = made.compared.most ? made.compared.less + part * tile_ : nullptr;
        for (int b = 0; less && b < count; ++b) {
            made.level[b] = static_cast<std::uint8_t>(less[listed[b]] >> made.shift);
        }
        run.byte_limits({sums, made.level.data(), made.limits.data(), count, made.wide, made.found.data()});
    }

    // Lists the found images of a tile, with their sums, if they are few enough to pay for it. Returns how many are
    // listed then.
    static int keep(const Screen& made, std::uint16_t* listed, int count, std::uint8_t* sums) {
        const auto found =
            std::count_if(made.found.data(), made.found.data() + count, [](auto one) { return one != 0; });
        if (found > count * MOST_KEPT) return count;
        int kept = 0;
        for (int b = 0; b < count; ++b) {
            if (!made.found[b]) continue;
            listed[kept] = listed[b];
            for (int q = 0; q < made.wide; q += 16)
                std::memcpy(sums + kept * made.wide + q, sums + b * made.wide + q, 16);
            ++kept;
        }
        return kept;
    }

    // Measures the found images of a tile, from its image `from` on.
    void measure(const Screen& made, std::int64_t part, int from, const std::uint16_t* listed, int count) const {
        const std::uint16_t* codes = codes_.data() + part * cells_ * tile_;
        const std::uint64_t real = made.n == MOST ? ~std::uint64_t{0} : (std::uint64_t{1} << made.n) - 1;
        for (int b = 0; b < count; ++b) {
            if (listed[b] < from) continue;
            for (std::uint64_t left = made.found[b] & real; left; left &= left - 1) {
                Query& query = *made.queries[__builtin_ctzll(left)];
                const std::int64_t a = part * tile_ + listed[b];
                offer(made.compared, sum_image(codes + listed[b], made.compared, query), a, query);
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
    mutable Spares spares_;
    std::unique_ptr<CodeGroups> grouped_;  // of a large bank, where there is group_tile
    Aligned<std::uint8_t> groups_;         // (size() / GROUPED, rounded up, cells, GROUPED)
};

}  // namespace

std::unique_ptr<Layer> code_layer(const Content& content, std::int64_t size, int side, const std::int32_t* table,
                                  int rows, const Kernels& run, const LayerTuning& tuning) {
    return std::make_unique<CodeLayer>(content, size, side, table, rows, run, tuning);
}

}  // namespace lpkernel
