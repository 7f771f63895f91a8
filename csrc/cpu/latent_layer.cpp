// Latent domain: distance = sum over compared cells and channels of (canvas - bank)^2, exact in int32.
//
// Layout: BLOCK images at a time, (blocks, cells, channel pairs, BLOCK, 2) int16 and (blocks, cells, BLOCK) int32
// squared norms, so a step reads runs of whole cache lines and one vector lane is one image. With
// |a - b|^2 = |a|^2 + |b|^2 - 2 a.b modulo 2^32, the work is one multiply-add instruction (vpdpwssd or vpmaddwd)
// for each two channels of LANES images. An odd channel is padded by a zero.
// Tie rule: see smallest.h. Limits: every distance below 2^31.

#include <cstring>

#include "cpu/layer.h"

namespace lpkernel {

namespace {

class LatentLayer final : public Layer {
  public:
    LatentLayer(const Content& content, std::int64_t size, int side, int channels, const Kernels& run, int pairs_limit)
        : Layer(size, side, channels, 0),
          cells_(side * side),
          halves_((channels + 1) / 2),
          blocks_((size + BLOCK - 1) / BLOCK),
          bank_(static_cast<std::size_t>(blocks_) * cells_ * halves_ * BLOCK * 2),
          norms_(static_cast<std::size_t>(blocks_) * cells_ * BLOCK) {
        for (std::int64_t block = 0; block < blocks_; ++block) lay_out(content, block);
        if (size <= pairs_limit) make_pairs(content, run);
    }

    std::int64_t parts() const override { return blocks_; }
    std::size_t bytes() const override {
        return Layer::bytes() + bank_.size() * sizeof(std::int16_t) + norms_.size() * sizeof(std::int32_t);
    }

    void prepare(Query& query, int count, const Kernels& run) const override {
        query.norms.resize(count);
        run.norms(query.values.data(), count, width(), query.norms.data());
        if (width() % 2 == 0) return;
        query.padded.assign(static_cast<std::size_t>(count) * halves_ * 2, 0);
        for (int i = 0; i < count; ++i) {
            std::copy_n(query.values.data() + i * width(), width(), query.padded.data() + i * halves_ * 2);
        }
    }

    void search(const std::int32_t* cells, int count, Query* const* queries, int n, std::int64_t first_part,
                std::int64_t last_part, const Kernels& run) const override {
        for (std::int64_t part = first_part; part < last_part; ++part) search_part(cells, count, queries, n, part, run);
    }

    void distances(const std::int32_t* cells, int count, const Query& query, const Kernels& run,
                   std::int32_t* out) const override {
        std::uint64_t found[GROUP];
        LatentBlock block = at(0, cells, count, out, found);
        block.queries = 1;
        set(block, 0, query);
        block.limits[0] = Smallest::ANY;
        run.latent_block(block);
    }

    std::int32_t distance(const Content& content, std::int64_t a, const std::int32_t* cells, int count,
                          const std::int16_t* values) const override {
        const std::int16_t* image = content.data + content.allowed[a] * cells_ * width();
        std::uint32_t sum = 0;
        for (int i = 0; i < count; ++i) {
            const std::int16_t* theirs = image + static_cast<std::int64_t>(cells[i]) * width();
            const std::int16_t* ours = values + static_cast<std::int64_t>(i) * width();
            for (int c = 0; c < width(); ++c) {
                const std::int32_t apart = theirs[c] - ours[c];
                sum += static_cast<std::uint32_t>(apart) * static_cast<std::uint32_t>(apart);
            }
        }
        return static_cast<std::int32_t>(sum);
    }

  private:
    void search_part(const std::int32_t* cells, int count, Query* const* queries, int n, std::int64_t part,
                     const Kernels& run) const {
        alignas(64) std::int32_t out[GROUP * BLOCK];
        std::uint64_t found[GROUP];
        LatentBlock block = at(part, cells, count, out, found);
        for (int first = 0; first < n; first += GROUP) {
            block.queries = std::min(GROUP, n - first);
            for (int q = 0; q < block.queries; ++q) set(block, q, *queries[first + q]);
            run.latent_block(block);
            for (int q = 0; q < block.queries; ++q) {
                for (std::uint64_t left = found[q]; left; left &= left - 1) {
                    const int lane = __builtin_ctzll(left);
                    queries[first + q]->best.push(out[q * BLOCK + lane], part * BLOCK + lane);
                }
            }
        }
    }

    void set(LatentBlock& block, int q, const Query& query) const {
        block.query[q] = width() % 2 ? query.padded.data() : query.values.data();
        block.own_norms[q] = query.norms.data();
        block.limits[q] = query.best.limit();
    }

    LatentBlock at(std::int64_t part, const std::int32_t* cells, int count, std::int32_t* out,
                   std::uint64_t* found) const {
        LatentBlock block{};
        block.bank = bank_.data() + part * cells_ * halves_ * BLOCK * 2;
        block.norms = norms_.data() + part * cells_ * BLOCK;
        block.cells = cells;
        block.count = count;
        block.pairs = halves_;
        block.lanes = static_cast<int>(std::min<std::int64_t>(BLOCK, size() - part * BLOCK));
        block.out = out;
        block.found = found;
        return block;
    }

    void lay_out(const Content& content, std::int64_t part) {
        const int lanes = static_cast<int>(std::min<std::int64_t>(BLOCK, size() - part * BLOCK));
        std::int16_t* bank = bank_.data() + part * cells_ * halves_ * BLOCK * 2;
        std::int32_t* norms = norms_.data() + part * cells_ * BLOCK;
        for (std::int64_t cell = 0; cell < cells_; ++cell) {
            std::memset(bank, 0, sizeof(std::int16_t) * halves_ * BLOCK * 2);
            for (int lane = 0; lane < BLOCK; ++lane) {
                std::uint32_t norm = 0;
                if (lane < lanes) {
                    const std::int64_t image = content.allowed[part * BLOCK + lane];
                    const std::int16_t* from = content.data + (image * cells_ + cell) * width();
                    for (int c = 0; c < width(); ++c) {
                        bank[(c / 2 * BLOCK + lane) * 2 + c % 2] = from[c];
                        norm += static_cast<std::uint32_t>(from[c] * from[c]);
                    }
                }
                norms[lane] = static_cast<std::int32_t>(norm);
            }
            bank += static_cast<std::int64_t>(halves_) * BLOCK * 2;
            norms += BLOCK;
        }
    }

    std::int64_t cells_;
    int halves_;
    std::int64_t blocks_;
    Aligned<std::int16_t> bank_;
    Aligned<std::int32_t> norms_;
};

}  // namespace

std::unique_ptr<Layer> latent_layer(const Content& content, std::int64_t size, int side, int channels,
                                    const Kernels& run, int pairs_limit) {
    return std::make_unique<LatentLayer>(content, size, side, channels, run, std::min(pairs_limit, BLOCK));
}

}  // namespace lpkernel
