// masked_topk for many queries: a block of BLOCK bank rows is packed with the rows as lanes, and all queries pass over
// it. A shared mask only leaves out columns when packing. No per-query masks.
//
// int16 rows are packed as float32 ones, which hold them exactly; what follows is about both. Blocks are packed as b' =
// b - c, with c near the bank's mean, and screened in float32; what may be among the k nearest is measured exactly.
// With |.|^2 over the marked entries and q' = q - c, rounding q', b', the norms and D products moves |q'|^2 + |b'|^2 -
// 2 q'.b' by less than slack(D) (|q'|^2 + |b'|^2). A row is passed over only if it is beyond the k-th distance by more
// than that plus float32's rounding of it. Rows and queries with norms near overflow, or NaN, are always measured
// exactly.
//
// Nothing is measured while a search goes on: the limit is the k-th least score so far plus the allowance above, and
// rows within it wait in a list per query, which is cut to the limit when it is full (Shortlists). So a query measures
// little more than k rows whatever the bank. For k = 1 the list is the last block with anything nearer, and the kernel
// itself lowers the limit.
//
// With weights w a row is packed as w b', its norm is w |b'|^2, and a last column holds w, to be multiplied by the
// query's |q'|^2, so that a score is w times the distance; slack(D + 8) covers the few more roundings. Rows of extreme
// weights are always measured exactly.
//
// Where that pays, the screen is in int16, at twice the speed: queries and rows are scaled to a norm of UNIT and
// rounded, their products are exact, and are scaled back. Rounding moves a row by at most r = rounding() of its norm,
// so a product by (2 + r) r |q'| |b'| at most (Cauchy and Schwarz). Twice that is at most (2 + r) r (|q'|^2 + |b'|^2),
// which is added to slack(D). No weights.
//
// Traffic: a block of 256 D bytes (128 D in int16) is read once per TOGETHER queries, the 4 D bytes of a query once per
// block.

#pragma once

#include <type_traits>

#include "cpu/parallel.h"
#include "cpu/topk_parts.h"

namespace lpkernel {

// Rows of a block as FloatBlock reads them.
struct PackedRows {
    const float* bank;           // (columns, BLOCK), or in int16:
    const std::int16_t* halves;  // (pairs, BLOCK, 2)
    const float* scales;         // (BLOCK)
    const float* norms;  // (BLOCK) the least that |b'|^2 can be, times the weight; -inf, and a row of zeros, for rows
                         // to measure anyway; +inf beyond the last
    std::int64_t row;
    int lanes;
    std::uint64_t odd;        // the rows to measure anyway
    float heaviest, largest;  // at least the weights and the norms of the others
};

// The bank of a call, packed block by block as it is read, or once.
template <class T>
class PackedBank {
  public:
    // Room for at_once() blocks.
    struct Room {
        Aligned<float> bank, norms, scales, gathered;
        Aligned<std::int16_t> halves;
        std::vector<PackedRows> rows;
    };

    // Some blocks, one after the other; `together`: to be compared so, none has odd rows.
    struct Run {
        const PackedRows* rows;
        int count;
        bool together;
    };

    // rounds: whether rows may be compared in int16.
    PackedBank(const Topk<T>& job, const Kernels& run, bool rounds = true)
        : job_(job),
          run_(run),
          exact_(job, run),
          chosen_(columns_of(job)),
          width_(job.shared_mask ? static_cast<std::int64_t>(chosen_.size()) : job.width),
          columns_(width_ + (job.weights ? 1 : 0)),
          pairs_(rounds && worth_rounding() ? (width_ + 1) / 2 : 0),
          slack_(slack(job.weights ? width_ + 8 : width_) + (pairs_ ? (2 + rounding()) * rounding() : 0.0)),
          centre_(static_cast<std::size_t>(width_), 0.0f) {
        place_centre();
        for (std::int64_t a = 0; job.weights && a < job.allowed; ++a) {
            const double weight = weight_of(job, a);
            if (weight <= HEAVY) heaviest_ = std::max(heaviest_, weight);
        }
    }

    const Topk<T>& job() const { return job_; }
    const Kernels& run() const { return run_; }
    const Exact<T>& exact() const { return exact_; }
    std::int64_t columns() const { return columns_; }
    std::int64_t pairs() const { return pairs_; }  // of int16, or 0: rows are compared in float32
    std::int64_t blocks() const { return (job_.allowed + BLOCK - 1) / BLOCK; }
    std::int64_t packed_bytes() const { return blocks() * BLOCK * 4 * (pairs_ ? pairs_ : columns_); }

    // What the bound allows for, of a sum of magnitudes: 3 slack instead of 2.5 pays for the rounding of
    // score + reach + reach and of the distance.
    float reach_of(double norm) const { return static_cast<float>(3 * slack_ * norm); }

    Room room() const {
        const auto lanes = static_cast<std::size_t>(at_once() * BLOCK);
        return {Aligned<float>(lanes * static_cast<std::size_t>(columns_) + 1),
                Aligned<float>(lanes),
                Aligned<float>(BLOCK),
                Aligned<float>(gathers() ? static_cast<std::size_t>(width_ * BLOCK) : 0),
                Aligned<std::int16_t>(static_cast<std::size_t>(pairs_ * BLOCK * 2 + 1)),
                std::vector<PackedRows>(static_cast<std::size_t>(at_once()))};
    }

    // Packs all of it, once.
    void keep() {
        const auto values = static_cast<std::size_t>(blocks() * BLOCK);
        kept_ = {Aligned<float>(pairs_ ? 0 : values * static_cast<std::size_t>(columns_) + 1),
                 Aligned<float>(values),
                 Aligned<float>(pairs_ ? values : 0),
                 Aligned<float>(0),
                 Aligned<std::int16_t>(values * static_cast<std::size_t>(pairs_) * 2),
                 {}};
        packed_.resize(static_cast<std::size_t>(blocks()));
        constexpr std::int64_t ALONE = 1 << 14;  // values that are packed while another thread would begin
        const bool alone = blocks() * BLOCK * columns_ < ALONE;
        const std::int64_t runs = alone ? 1 : std::min<std::int64_t>(blocks(), job_.threads);
        parallel(runs, job_.threads, [&](std::int64_t run) {
            Aligned<float> room(pairs_ ? static_cast<std::size_t>(columns_ * BLOCK) : 0);
            Aligned<float> gathered(gathers() ? static_cast<std::size_t>(width_ * BLOCK) : 0);
            for (std::int64_t b = blocks() * run / runs; b < blocks() * (run + 1) / runs; ++b) {
                const std::int64_t first = b * BLOCK;
                float* const bank = pairs_ ? room.data() : kept_.bank.data() + first * columns_;
                packed_[b] = pack(first, gathered.data(), bank, kept_.norms.data() + first,
                                  kept_.scales.data() + (pairs_ ? first : 0), kept_.halves.data() + first * pairs_ * 2);
            }
        });
    }

    // Most blocks that are compared together: as many as a cache holds.
    std::int64_t at_once() const {
        constexpr std::int64_t NEAR_BY = 1 << 18;  // bytes
        if (job_.k > 1 || pairs_ || (packed_.empty() && columns_ > NARROW)) return 1;
        return std::clamp<std::int64_t>(NEAR_BY / (4 * BLOCK * (columns_ + 1)), 1, MOST_BLOCKS);
    }

    // The blocks from a row on, a multiple of BLOCK: one, or for one neighbour some to be compared together.
    Run run(std::int64_t row, std::int64_t last_row, Room& room) const {
        const std::int64_t left = (last_row - row + BLOCK - 1) / BLOCK, most = std::min(left, at_once());
        const PackedRows* rows = room.rows.data();
        if (!packed_.empty()) rows = packed_.data() + row / BLOCK;
        std::int64_t b = 0;
        for (; b < most; ++b) {
            if (packed_.empty()) {
                room.rows[b] = pack(row + b * BLOCK, room.gathered.data(), room.bank.data() + b * BLOCK * columns_,
                                    room.norms.data() + b * BLOCK, room.scales.data(), room.halves.data());
            }
            if (rows[b].odd) break;
        }
        constexpr std::int64_t WORTH = 8;  // blocks, where scoring them again is not cheap
        const bool together = job_.k == 1 && !pairs_ && b >= (columns_ <= HELD_COLUMNS ? 1 : WORTH);
        return {rows, static_cast<int>(together ? b : 1), together};
    }

    // All kept blocks as a FewRows, without queries.
    FewRows few() const {
        FewRows few{};
        few.bank = kept_.bank.data();
        few.norms = kept_.norms.data();
        few.centre = centre_.data();
        few.width = width_;
        few.lanes = static_cast<int>(job_.allowed);
        few.k = static_cast<int>(job_.k);
        float largest = 0.0f;
        for (const PackedRows& rows : packed_) largest = std::max(largest, rows.largest);
        few.reach_scale = reach_of(1.1);
        few.reach_more = more(largest);
        few.limit = LARGE;
        return few;
    }

    // Whether a kept row is to be measured anyway.
    bool odd() const {
        return std::any_of(packed_.begin(), packed_.end(), [](const PackedRows& rows) { return rows.odd != 0; });
    }

    // FloatBlock::reach_more of rows whose norms are at most `largest`.
    float more(float largest) const { return reach_of(largest) + static_cast<float>(2 * TINY); }

    // The same, rounded: writes q' as `halves`, and what scales their products with a row's.
    double place(const T* query, std::vector<float>& room, std::int16_t* halves, float& scale) const {
        room.resize(static_cast<std::size_t>(width_));
        const double own = place(query, room.data());
        const double norm = std::isnan(own) ? 0.0 : own / (1 - slack_);
        scale = static_cast<float>(-2 * unit_of(norm));
        const float to_unit = static_cast<float>(-0.5 * inverse(unit_of(norm)));
        run_.round_row(room.data(), to_unit, width_, halves);
        return own;
    }

    // Writes -2 q', and with weights the least that |q'|^2 can be, which is returned; returns NaN, and writes zeros,
    // for a query that is to be measured against all rows: its scores tell nothing, but are not NaN.
    double place(const T* query, float* to) const {
        double norm;
        if (chosen_.empty() && width_ <= HELD_COLUMNS) {  // a call would take longer
            norm = 0.0;
            for (std::int64_t i = 0; i < width_; ++i) {
                const float value = static_cast<float>(query[i]) - centre_[i];
                norm += static_cast<double>(value) * static_cast<double>(value);
                to[i] = -2.0f * value;
            }
        } else {
            const float* values = to;
            if constexpr (std::is_same_v<T, float>) values = chosen_.empty() ? query : to;
            if (values == to) gather(query, to);
            norm = run_.place_row(values, centre_.data(), width_, to);
        }
        const bool usual = norm * heaviest_ < LARGE;
        const double own = usual ? norm * (1 - slack_) : std::numeric_limits<double>::quiet_NaN();
        if (job_.weights) to[width_] = usual ? static_cast<float>(own) : 0.0f;
        if (!usual) std::fill_n(to, width_, 0.0f);
        return own;
    }

    // Rows with scores above this cannot be among the nearest of a query whose least |q'|^2 is `own`, if k rows are no
    // further than `kth`: that less the query's own norm, if scores do not include it.
    float limit(double own, double kth) const {
        if (!(kth < LARGE) || std::isnan(own)) return std::numeric_limits<float>::infinity();
        const double exact = kth * (1 + 0x1p-22) + TINY - (job_.weights ? 0.0 : own);
        return next_above(static_cast<float>(exact));
    }

  private:
    static constexpr float LARGE = 1e36f;     // norms beyond this are not to be trusted
    static constexpr double HEAVY = 0x1p+30;  // nor are weights above this,
    static constexpr double LIGHT = 0x1p-60;  // or below this
    static constexpr double UNIT = 32760;     // norm of rounded rows and queries
    static constexpr double NOTHING = 1e-60;  // squared norms below this are rounded to 0

    // Whether rows are compared in int16. Time in float32 / so, two threads of AVX-512, k = 1: 1,024 rows of 256: 1.1
    // with 16 queries, 1.3 with 64, 1.6 with 256, 1.7 with 2,048; of 64: 0.8, 1.1, 1.4, 1.6; of 32: 0.8, 1.0, 1.2, 1.3.
    bool worth_rounding() const {
        constexpr std::int64_t LEAST = 32, MOST = 1 << 16, WORTH = 3072;  // values of a row, and of all queries
        return !job_.weights && width_ >= LEAST && width_ <= MOST && job_.count * width_ >= WORTH;
    }

    // What an int16 of a row with this squared norm stands for, or 0.
    static double unit_of(double norm) { return norm < NOTHING ? 0.0 : std::sqrt(norm) / UNIT; }
    static double inverse(double unit) { return unit > 0.0 ? 1 / unit : 0.0; }

    // The most that rounding moves a row, as a share of its norm: half an int16 an entry, and 1 % for what is rounded
    // in float32 before.
    double rounding() const { return 0.505 * std::sqrt(static_cast<double>(width_)) / UNIT; }

    // The marked columns, where there is a mask; else none.
    static std::vector<std::int64_t> columns_of(const Topk<T>& job) {
        return job.shared_mask ? marked_columns(job) : std::vector<std::int64_t>();
    }

    void place_centre() {
        constexpr std::int64_t SAMPLE = 16;
        const std::int64_t allowed = job_.allowed, sampled = std::min(SAMPLE, allowed);
        float* const sums = centre_.data();
        for (std::int64_t s = 0; s < sampled; ++s) {
            const T* const row = bank_row(job_, s * allowed / sampled);
            if (chosen_.empty()) {
                for (std::int64_t i = 0; i < width_; ++i) sums[i] += static_cast<float>(row[i]);
            } else {
                for (std::int64_t i = 0; i < width_; ++i) sums[i] += static_cast<float>(row[chosen_[i]]);
            }
        }
        for (std::int64_t i = 0; i < width_; ++i) {
            const float mean = sums[i] / static_cast<float>(sampled);
            sums[i] = std::isfinite(mean) ? mean : 0.0f;
        }
    }

    // Whether rows are copied before they are packed: as float32, without the columns that a mask leaves out.
    bool gathers() const { return !std::is_same_v<T, float> || !chosen_.empty(); }

    void gather(const T* row, float* to) const {
        if (chosen_.empty()) {
            for (std::int64_t i = 0; i < width_; ++i) to[i] = static_cast<float>(row[i]);
        } else {
            for (std::int64_t i = 0; i < width_; ++i) to[i] = static_cast<float>(row[chosen_[i]]);
        }
    }

    // The rows less the centre and their squared norms; see PackRows.
    void centred(std::int64_t row, int lanes, float* gathered, float* bank, double* sums) const {
        const float* from = gathers() ? gathered : nullptr;  // of rows one after the other
        if (gathers()) {
            for (int lane = 0; lane < lanes; ++lane) gather(bank_row(job_, row + lane), gathered + lane * width_);
        }
        const float* rows[BLOCK];
        if constexpr (std::is_same_v<T, float>) {
            if (!gathers() && job_.rows.empty()) from = bank_row(job_, row);
            for (int lane = 0; lane < lanes && !from; ++lane) rows[lane] = bank_row(job_, row + lane);
        }
        for (int lane = 0; lane < lanes && from; ++lane) rows[lane] = from + lane * width_;
        std::fill(rows + lanes, rows + BLOCK, rows[0]);
        run_.pack_rows({rows, centre_.data(), width_, lanes, bank, sums});
    }

    // Packs a whole block of narrow rows in a quarter of the time, if none is odd. Their norms are sums of float32,
    // whose few roundings are less than what slack_ has to spare.
    bool packs_narrow(std::int64_t row, PackedRows& made, float* bank, float* norms) const {
        if constexpr (std::is_same_v<T, float>) {
            const bool narrow =
                width_ >= 2 && width_ <= HELD_COLUMNS && !gathers() && job_.rows.empty() && !job_.weights;
            if (!narrow || made.lanes < BLOCK) return false;
            const auto share = static_cast<float>(1 - slack_);
            return run_.narrow_rows(
                {bank_row(job_, row), centre_.data(), width_, share, LARGE, bank, norms, &made.largest});
        }
        return false;
    }

    PackedRows pack(std::int64_t row, float* gathered, float* bank, float* norms, float* scales,
                    std::int16_t* halves) const {
        PackedRows made{bank, halves, scales, norms, row, 0, 0, 1, 0};
        made.lanes = static_cast<int>(std::min<std::int64_t>(BLOCK, job_.allowed - row));
        if (packs_narrow(row, made, bank, norms)) return made;
        double sums[BLOCK];
        centred(row, made.lanes, gathered, bank, sums);
        const bool usual = run_.norms_below(sums, 1 - slack_, LARGE, norms, &made.largest);
        if (!usual || job_.weights) weigh(made, sums, bank, norms);
        std::fill(norms + made.lanes, norms + BLOCK, std::numeric_limits<float>::infinity());
        if (pairs_) round(made, sums, bank, scales, halves);
        return made;
    }

    // The block in int16; its odd rows are zeros already.
    void round(const PackedRows& made, const double* sums, const float* bank, float* scales,
               std::int16_t* halves) const {
        float to_unit[BLOCK];
        for (int lane = 0; lane < BLOCK; ++lane) {
            const bool usual = lane < made.lanes && !(made.odd >> lane & 1);
            const double unit = usual ? unit_of(sums[lane]) : 0.0;
            scales[lane] = static_cast<float>(unit);
            to_unit[lane] = static_cast<float>(inverse(unit));
        }
        run_.round_block({bank, to_unit, width_, halves});
    }

    // The weights of a block, and which of its rows are odd.
    void weigh(PackedRows& made, const double* sums, float* bank, float* norms) const {
        float weights[BLOCK];
        made.largest = 0.0f;
        for (int lane = 0; lane < BLOCK; ++lane) {
            const double weight = lane < made.lanes ? weight_of(job_, made.row + lane) : 1.0;
            const bool usual = weight >= LIGHT && weight <= HEAVY && sums[lane] < LARGE && sums[lane] * weight < LARGE;
            weights[lane] = static_cast<float>(usual ? weight : 1.0);
            norms[lane] = static_cast<float>(sums[lane] * weight * (1 - slack_));
            if (usual) {
                made.largest = std::max(made.largest, norms[lane]);
                continue;
            }
            norms[lane] = -std::numeric_limits<float>::infinity();
            made.odd |= std::uint64_t{1} << lane;
        }
        for (std::int64_t i = 0; i < width_; ++i) {
            for (int lane = 0; lane < made.lanes; ++lane) {
                float& value = bank[i * BLOCK + lane];
                value = made.odd >> lane & 1 ? 0.0f : value * weights[lane];
            }
        }
        if (!job_.weights) return;
        made.heaviest = *std::max_element(weights, weights + made.lanes);
        std::copy_n(weights, BLOCK, bank + width_ * BLOCK);
    }

    const Topk<T>& job_;
    const Kernels& run_;
    Exact<T> exact_;
    std::vector<std::int64_t> chosen_;
    std::int64_t width_, columns_, pairs_;  // columns_: of a packed row, its weight included
    double slack_, heaviest_ = 1.0;
    std::vector<float> centre_;
    Room kept_;
    std::vector<PackedRows> packed_;  // of all blocks, or empty
};

// Rows that wait, with their scores, one list per query.
class Shortlists {
  public:
    void reset(std::size_t queries, std::int64_t need) {
        full_ = static_cast<std::size_t>(need + std::max<std::int64_t>(16, need / 2));
        stride_ = full_ + BLOCK;
        counts_.assign(queries, 0);
        scores_.resize(queries * stride_);
        rows_.resize(queries * stride_);
    }

    // Returns whether the list is now full, and must be shortened before more is added.
    bool add(std::size_t q, const float* scores, std::uint64_t lanes, std::int64_t row) {
        std::size_t at = q * stride_ + counts_[q];
        for (; lanes; lanes &= lanes - 1, ++at) {
            const int lane = __builtin_ctzll(lanes);
            scores_[at] = scores[lane];
            rows_[at] = static_cast<std::int32_t>(row + lane);
        }
        counts_[q] = at - q * stride_;
        return full(q);
    }

    bool full(std::size_t q) const { return counts_[q] > full_; }
    std::int64_t count(std::size_t q) const { return static_cast<std::int64_t>(counts_[q]); }
    const std::int32_t* rows(std::size_t q) const { return rows_.data() + q * stride_; }
    void clear(std::size_t q) { counts_[q] = 0; }

    // The need-th least score of a list of at least `need`.
    float last(std::size_t q, std::int64_t need, const Kernels& run) {
        const float* scores = scores_.data() + q * stride_;
        const std::size_t count = counts_[q];
        if (count > BLOCK) {
            sorted_.assign(scores, scores + count);
            std::nth_element(sorted_.begin(), sorted_.begin() + (need - 1), sorted_.end());
            return sorted_[need - 1];
        }
        std::int32_t order[BLOCK];  // of scores, as integers
        for (std::size_t i = 0; i < count; ++i) {
            order[i] = ordered(scores[i]);
        }
        for (std::size_t i = count; i % 16; ++i) order[i] = 0;
        return scores[run.ranked(order, static_cast<int>(count), static_cast<int>(need - 1))];
    }

    void cut(std::size_t q, float limit) {
        const std::size_t first = q * stride_;
        std::size_t left = 0;
        for (std::size_t i = 0; i < counts_[q]; ++i) {
            scores_[first + left] = scores_[first + i];
            rows_[first + left] = rows_[first + i];
            left += !(scores_[first + i] > limit);
        }
        counts_[q] = left;
    }

  private:
    // A number's bits, as an integer of the same order.
    static std::int32_t ordered(float number) {
        const std::int32_t bits = to_bits(number);
        return bits ^ ((bits >> 31) & 0x7FFFFFFF);
    }

    std::size_t full_ = 0, stride_ = 0;
    std::vector<std::size_t> counts_;
    std::vector<float> scores_, sorted_;
    std::vector<std::int32_t> rows_;
};

// Some queries, as they are compared with packed rows. Threads may search() at once, each with its own Scratch.
template <class T>
class PackedQueries {
  public:
    struct Scratch {
        typename PackedBank<T>::Room room;
        Aligned<float> scores{static_cast<std::size_t>(TOGETHER) * BLOCK};
        std::vector<float> limits;
        Shortlists lists;
    };

    explicit PackedQueries(const PackedBank<T>& bank) : bank_(bank), job_(bank.job()), exact_(bank.exact()) {}

    void place(std::int64_t first, std::int64_t count, int threads) {
        first_ = first;
        count_ = count;
        const std::int64_t columns = bank_.columns();
        const std::int64_t pairs = bank_.pairs();
        queries_.resize(static_cast<std::size_t>(pairs ? 0 : count * columns));
        halves_.resize(static_cast<std::size_t>(count * pairs * 2));
        scales_.resize(static_cast<std::size_t>(pairs ? count : 0));
        reach_.resize(static_cast<std::size_t>(count));
        own_.resize(static_cast<std::size_t>(count));
        constexpr std::int64_t AT_ONCE = 256;
        parallel((count + AT_ONCE - 1) / AT_ONCE, threads, [&](std::int64_t task) {
            std::vector<float> room;
            for (std::int64_t q = task * AT_ONCE; q < std::min(count, (task + 1) * AT_ONCE); ++q) {
                const T* const query = job_.queries + (first + q) * job_.width;
                own_[q] = pairs ? bank_.place(query, room, halves_.data() + q * pairs * 2, scales_[q])
                                : bank_.place(query, queries_.data() + q * columns);
                reach_[q] =
                    std::isnan(own_[q]) ? std::numeric_limits<float>::infinity() : bank_.reach_of(1.1 * own_[q]);
            }
        });
    }

    // Offers the heaps (count) what may be nearest of some rows, the first of which begins a block.
    template <class Heap>
    void search(std::int64_t first_row, std::int64_t last_row, Heap* heaps, Scratch& scratch) const {
        scratch.limits.resize(static_cast<std::size_t>(count_));
        for (std::int64_t q = 0; q < count_; ++q) scratch.limits[q] = limit(q, heaps[q]);
        Waiting<Heap> waiting(*this, heaps, scratch);
        std::int64_t blocks, done = 0;
        for (std::int64_t row = first_row; row < last_row; row += blocks * BLOCK) {
            const auto run = bank_.run(row, last_row, scratch.room);
            blocks = run.count;
            if constexpr (std::is_same_v<Heap, Nearest>) {
                if (run.together) {
                    compare_many(run, waiting, scratch);
                } else {
                    compare(*run.rows, waiting, scratch);
                }
            } else {
                compare(*run.rows, waiting, scratch);
            }
            if ((done += count_ * blocks * BLOCK * (bank_.columns() + 1)) < PIECE) continue;
            done = 0;
            poll();
        }
        for (std::int64_t q = 0; q < count_; ++q) waiting.end(q);
    }

  private:
    static constexpr std::int64_t PIECE = 1 << 24;  // values compared between two calls of poll()
    static constexpr int TOGETHER = 48;  // queries that pass over a block at a time; their scores stay in a cache

    // Compares all queries with one block.
    template <class Waits>
    void compare(const PackedRows& rows, Waits& waiting, Scratch& scratch) const {
        std::uint64_t found[TOGETHER];
        FloatBlock block{};
        block.bank = rows.bank;
        block.norms = rows.norms;
        block.width = bank_.columns();
        block.lanes = rows.lanes;
        block.found = found;
        block.scores = scratch.scores.data();
        block.reach_scale = rows.heaviest;
        block.reach_more = bank_.more(rows.largest);
        waiting.begin(block);
        for (std::int64_t q = 0; q < count_; q += TOGETHER) {
            block.queries = static_cast<int>(std::min<std::int64_t>(TOGETHER, count_ - q));
            block.limits = scratch.limits.data() + q;
            block.reach = Waits::LOWERS && !rows.odd ? reach_.data() + q : nullptr;
            run(block, rows, q);
            for (int i = 0; i < block.queries; ++i) {
                if (found[i]) waiting.add(q + i, rows, block.scores + i * BLOCK, found[i]);
            }
        }
    }

    // Compares some queries, from the q-th on, with a block.
    void run(FloatBlock& block, const PackedRows& rows, std::int64_t q) const {
        if (const std::int64_t pairs = bank_.pairs()) {
            block.width = pairs;
            bank_.run().rounded_block({block, rows.halves, rows.scales, halves_.data() + q * pairs * 2, &scales_[q]});
        } else {
            block.query = queries_.data() + q * bank_.columns();
            bank_.run().float_block(block);
        }
    }

    // Compares all queries with some blocks. Scores are computed again for the few that may hold the nearest.
    template <class Waits>
    void compare_many(const typename PackedBank<T>::Run& run, Waits& waiting, Scratch& scratch) const {
        std::uint32_t found[TOGETHER];
        std::int32_t only[TOGETHER];
        float least[TOGETHER];
        FloatBlocks blocks{};
        blocks.bank = run.rows->bank;
        blocks.norms = run.rows->norms;
        blocks.width = bank_.columns();
        blocks.count = run.count;
        blocks.found = found;
        blocks.only = only;
        blocks.least = least;
        float largest = 0.0f;
        for (int b = 0; b < run.count; ++b) {
            const PackedRows& rows = run.rows[b];
            blocks.lanes = rows.lanes;
            blocks.reach_scale = std::max(blocks.reach_scale, rows.heaviest);
            largest = std::max(largest, rows.largest);
        }
        blocks.reach_more = bank_.more(largest);
        for (std::int64_t q = 0; q < count_; q += TOGETHER) {
            blocks.queries = static_cast<int>(std::min<std::int64_t>(TOGETHER, count_ - q));
            blocks.query = queries_.data() + q * bank_.columns();
            blocks.limits = scratch.limits.data() + q;
            blocks.reach = reach_.data() + q;
            bank_.run().float_blocks(blocks);
            for (int i = 0; i < blocks.queries; ++i) {
                if (found[i] && only[i] >= 0) {
                    waiting.add(q + i, {run.rows->row + only[i], 1, least[i]});
                    continue;
                }
                for (std::uint32_t left = found[i]; left; left &= left - 1) {
                    compare_one(q + i, run.rows[__builtin_ctz(left)], waiting, scratch);
                }
            }
        }
    }

    template <class Waits>
    void compare_one(std::int64_t q, const PackedRows& rows, Waits& waiting, Scratch& scratch) const {
        std::uint64_t found;
        FloatBlock block{};
        block.bank = rows.bank;
        block.norms = rows.norms;
        block.width = bank_.columns();
        block.lanes = rows.lanes;
        block.queries = 1;
        block.query = queries_.data() + q * bank_.columns();
        block.limits = scratch.limits.data() + q;
        block.found = &found;
        block.scores = scratch.scores.data();
        bank_.run().float_block(block);
        if (found) waiting.add(q, rows, block.scores, found);
    }

    template <class Heap>
    float limit(std::int64_t q, const Heap& heap) const {
        return bank_.limit(own_[q], Exact<T>::distance(heap.limit()));
    }

    template <class Heap>
    void measure(std::int64_t q, std::int64_t row, std::uint64_t lanes, Heap& heap, float& limit_of) const {
        for (; lanes; lanes &= lanes - 1) exact_(first_ + q, row + __builtin_ctzll(lanes), heap);
        limit_of = std::min(limit_of, limit(q, heap));
    }

    // What may be nearest and has not been measured: for one neighbour, rows of one block. What is found later is
    // mostly nearer by more than the bound, and then those that wait need not be measured.
    class OneBlock {
      public:
        static constexpr bool LOWERS = true;

        OneBlock(const PackedQueries& of, Nearest* heaps, Scratch& scratch)
            : of_(of), heaps_(heaps), limits_(scratch.limits.data()), found_(static_cast<std::size_t>(of.count_)) {}

        void begin(const FloatBlock&) {}

        void add(std::int64_t q, const PackedRows& rows, const float* scores, std::uint64_t lanes) {
            add(q, {rows.row, lanes, least_of(scores, lanes)});
        }

        struct Found {
            std::int64_t row = 0;
            std::uint64_t lanes = 0;
            float score = 0.0f;  // the least
        };

        void add(std::int64_t q, const Found& found) {
            if (found_[q].lanes && !(found_[q].score > limits_[q])) end(q);
            found_[q] = found;
        }

        void end(std::int64_t q) { of_.measure(q, found_[q].row, found_[q].lanes, heaps_[q], limits_[q]); }

      private:
        static float least_of(const float* scores, std::uint64_t lanes) {
            float least = scores[__builtin_ctzll(lanes)];
            for (lanes &= lanes - 1; lanes; lanes &= lanes - 1) {
                least = std::min(least, scores[__builtin_ctzll(lanes)]);
            }
            return least;
        }

        const PackedQueries& of_;
        Nearest* heaps_;
        float* limits_;
        std::vector<Found> found_;
    };

    // For more neighbours: a list.
    class List {
      public:
        static constexpr bool LOWERS = false;

        List(const PackedQueries& of, Smallest* heaps, Scratch& scratch)
            : of_(of), heaps_(heaps), limits_(scratch.limits.data()), lists_(scratch.lists) {
            lists_.reset(static_cast<std::size_t>(of.count_), of.count_ ? heaps[0].need() : 1);
        }

        void begin(const FloatBlock& block) {
            scale_ = std::max(scale_, block.reach_scale);
            more_ = std::max(more_, block.reach_more);
        }

        void add(std::int64_t q, const PackedRows& rows, const float* scores, std::uint64_t lanes) {
            std::uint64_t scored = std::isnan(of_.own_[q]) ? 0 : lanes & ~rows.odd;
            if (scored == ~std::uint64_t{0} && limits_[q] == std::numeric_limits<float>::infinity()) {
                limits_[q] =
                    above(q, of_.bank_.run().reached(
                                 scores, BLOCK, static_cast<int>(std::min<std::int64_t>(BLOCK, heaps_[q].need()))));
                scored = lanes = of_.bank_.run().scores_within(scores, BLOCK, limits_[q]);
            }
            if (lanes != scored) of_.measure(q, rows.row, lanes & ~scored, heaps_[q], limits_[q]);
            if (!lists_.add(q, scores, scored, rows.row)) return;
            shorten(q);
            if (lists_.full(q)) measure(q);  // too many are too near to each other
        }

        void end(std::int64_t q) {
            shorten(q);
            measure(q);
        }

      private:
        // With m the need-th least score over all blocks so far, the need-th distance has a limit of at most m + the
        // query's reach + the rows' (kernels.h, FloatBlock).
        void shorten(std::int64_t q) {
            const std::int64_t need = heaps_[q].need();
            if (lists_.count(q) < need) return;
            limits_[q] = std::min(limits_[q], above(q, lists_.last(q, need, of_.bank_.run())));
            lists_.cut(q, limits_[q]);
        }

        // What the scores of a query's nearest do not exceed, if those of `need` rows do not exceed `score`.
        float above(std::int64_t q, float score) const { return score + (of_.reach_[q] * scale_ + more_); }

        void measure(std::int64_t q) {
            of_.exact_(of_.first_ + q, lists_.rows(q), lists_.count(q), heaps_[q]);
            lists_.clear(q);
            limits_[q] = std::min(limits_[q], of_.limit(q, heaps_[q]));
        }

        const PackedQueries& of_;
        Smallest* heaps_;
        float* limits_;
        Shortlists& lists_;
        float scale_ = 1.0f, more_ = 0.0f;
    };

    template <class Heap>
    using Waiting = std::conditional_t<std::is_same_v<Heap, Nearest>, OneBlock, List>;

    const PackedBank<T>& bank_;
    const Topk<T>& job_;
    const Exact<T>& exact_;
    std::int64_t first_ = 0, count_ = 0;
    std::vector<float> queries_, scales_, reach_;
    std::vector<std::int16_t> halves_;
    std::vector<double> own_;  // the least that |q'|^2 can be; NaN: not to be trusted
};

}  // namespace lpkernel
