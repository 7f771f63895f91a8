// Code domain: distance = sum over compared cells of table[canvas code][bank code], the same integers as in the
// latent domain.
//
// Layout: (blocks, cells, TILE) uint16, TILE images at a time with the image last, so a cell's codes of a tile
// are 2 KB in a row. A query reads one table row (4 KB for 1024 codes) for each compared cell; four rows at a time stay
// in the first-level cache while a tile's codes stream past them. Compiled without vector extensions beyond the
// baseline on purpose: gather instructions are slower than loads here.
// Tie rule: see smallest.h. Limits: codes below 2^15, every distance below 2^31.

#include <stdexcept>

#include "cpu/layer.h"

namespace lpkernel {

namespace {

constexpr int TILE = 1024;

class CodeLayer final : public Layer {
  public:
    CodeLayer(const Content& content, std::int64_t size, int side, const std::int32_t* table, int rows,
              const Kernels& run, int pairs_limit)
        : Layer(size, side, 1, rows),
          cells_(side * side),
          table_(table),
          rows_(rows),
          tile_(static_cast<int>(std::min<std::int64_t>(TILE, padded()))),
          tiles_((size + tile_ - 1) / tile_),
          codes_(static_cast<std::size_t>(tiles_) * cells_ * tile_) {
        for (std::int64_t part = 0; part < tiles_; ++part) {
            std::uint16_t* to = codes_.data() + part * cells_ * tile_;
            for (int lane = 0; lane < tile_; ++lane) {
                const std::int64_t a = part * tile_ + lane;
                const std::int16_t* from = a < size ? content.data + content.allowed[a] * cells_ : nullptr;
                for (std::int64_t cell = 0; cell < cells_; ++cell) {
                    to[cell * tile_ + lane] = from ? static_cast<std::uint16_t>(from[cell]) : std::uint16_t{0};
                }
            }
        }
        if (size <= pairs_limit) make_pairs(content, run);
    }

    std::int64_t parts() const override { return tiles_; }
    std::size_t bytes() const override { return Layer::bytes() + codes_.size() * sizeof(std::uint16_t); }

    void prepare(Query&, int, const Kernels&) const override {}

    void search(const std::int32_t* cells, int count, Query* const* queries, int n, std::int64_t part,
                const Kernels&) const override {
        alignas(64) std::int32_t out[TILE];
        const int lanes = static_cast<int>(std::min<std::int64_t>(tile_, size() - part * tile_));
        for (int q = 0; q < n; ++q) {
            sum_tile(part, cells, count, queries[q]->values.data(), out);
            Smallest& best = queries[q]->best;
            for (int lane = 0; lane < lanes; ++lane) {
                if (out[lane] <= best.limit()) best.push(out[lane], part * tile_ + lane);
            }
        }
    }

    void distances(const std::int32_t* cells, int count, const Query& query, const Kernels&,
                   std::int32_t* out) const override {
        sum_tile(0, cells, count, query.values.data(), out);
    }

    std::int32_t distance(const Content& content, std::int64_t a, const std::int32_t* cells, int count,
                          const std::int16_t* values) const override {
        const std::int16_t* image = content.data + content.allowed[a] * cells_;
        std::uint32_t sum = 0;
        for (int i = 0; i < count; ++i) {
            const auto code = static_cast<std::uint16_t>(image[cells[i]]);
            if (code >= rows_) throw std::invalid_argument("codes: the bank is not the one that was laid out");
            sum += static_cast<std::uint32_t>(row(values[i])[code]);
        }
        return static_cast<std::int32_t>(sum);
    }

  private:
    const std::int32_t* row(std::int16_t code) const { return table_ + static_cast<std::int64_t>(code) * rows_; }

    // Distances to the images of a tile, (tile_).
    void sum_tile(std::int64_t part, const std::int32_t* cells, int count, const std::int16_t* values,
                  std::int32_t* out) const {
        const std::uint16_t* codes = codes_.data() + part * cells_ * tile_;
        std::fill_n(out, tile_, 0);
        int i = 0;
        for (; i + 4 <= count; i += 4) {
            const std::uint16_t *c0 = codes + std::int64_t{cells[i]} * tile_,
                                *c1 = codes + std::int64_t{cells[i + 1]} * tile_,
                                *c2 = codes + std::int64_t{cells[i + 2]} * tile_,
                                *c3 = codes + std::int64_t{cells[i + 3]} * tile_;
            const std::int32_t *r0 = row(values[i]), *r1 = row(values[i + 1]), *r2 = row(values[i + 2]),
                               *r3 = row(values[i + 3]);
            for (int lane = 0; lane < tile_; ++lane) {
                add(out[lane], r0[c0[lane]], r1[c1[lane]]);
                add(out[lane], r2[c2[lane]], r3[c3[lane]]);
            }
        }
        for (; i < count; ++i) {
            const std::uint16_t* c = codes + std::int64_t{cells[i]} * tile_;
            const std::int32_t* r = row(values[i]);
            for (int lane = 0; lane < tile_; ++lane) add(out[lane], r[c[lane]], 0);
        }
    }

    // sum += a + b, modulo 2^32 for tables that break the limit
    static void add(std::int32_t& sum, std::int32_t a, std::int32_t b) {
        sum = static_cast<std::int32_t>(static_cast<std::uint32_t>(sum) + static_cast<std::uint32_t>(a) +
                                        static_cast<std::uint32_t>(b));
    }

    std::int64_t cells_;
    const std::int32_t* table_;
    std::int64_t rows_;
    int tile_;
    std::int64_t tiles_;
    Aligned<std::uint16_t> codes_;
};

}  // namespace

std::unique_ptr<Layer> code_layer(const Content& content, std::int64_t size, int side, const std::int32_t* table,
                                  int rows, const Kernels& run, int pairs_limit) {
    return std::make_unique<CodeLayer>(content, size, side, table, rows, run, std::min(pairs_limit, BLOCK));
}

}  // namespace lpkernel
