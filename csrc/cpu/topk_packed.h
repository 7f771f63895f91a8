// masked_topk of int16 for many queries: a block of BLOCK bank rows is packed with the rows as lanes, and all queries
// pass over it, GROUP at a time. A shared mask only leaves out columns when packing. No per-query masks.
//
// Distances as in the latent domain of a scan, from |q|^2 + |b|^2 - 2 q.b modulo 2^32.

#pragma once

#include "cpu/topk_parts.h"

namespace lpkernel {

class PackedIntegers {
  public:
    PackedIntegers(const Topk<std::int16_t>& job, const Kernels& run)
        : job_(job),
          run_(run),
          chosen_(marked_columns(job)),
          pairs_(static_cast<std::int64_t>(chosen_.size() + 1) / 2),
          queries_(static_cast<std::size_t>(job.count * pairs_ * 2), 0),
          norms_(static_cast<std::size_t>(job.count), 0) {
        for (std::int64_t q = 0; q < job.count; ++q) {
            norms_[q] = pack(job.queries + q * job.width, queries_.data() + q * pairs_ * 2, 2);
        }
    }

    template <class Heap>
    void operator()(std::int64_t first_row, std::int64_t last_row, std::int64_t first, std::int64_t last,
                    Heap* heaps) const {
        Aligned<std::int16_t> bank(static_cast<std::size_t>(pairs_ * BLOCK * 2 + 1));
        std::fill_n(bank.data(), bank.size(), std::int16_t{0});
        std::int32_t norms[BLOCK];
        for (std::int64_t row = first_row; row < last_row; row += BLOCK) {
            const int lanes = static_cast<int>(std::min<std::int64_t>(BLOCK, last_row - row));
            std::fill_n(norms, BLOCK, 0);
            for (int lane = 0; lane < lanes; ++lane) {
                norms[lane] = pack(bank_row(job_, row + lane), bank.data() + lane * 2, BLOCK * 2);
            }
            for (std::int64_t q = first; q < last; q += GROUP) {
                compare(bank.data(), norms, row, lanes, q, std::min<std::int64_t>(GROUP, last - q),
                        heaps + (q - first));
            }
        }
    }

  private:
    // Values of a row at the chosen columns, as pairs; an odd last one is padded by 0. Returns the squared norm.
    std::int32_t pack(const std::int16_t* row, std::int16_t* to, std::int64_t stride) const {
        std::uint32_t norm = 0;
        for (std::size_t i = 0; i < chosen_.size(); ++i) {
            const std::int16_t value = row[chosen_[i]];
            to[static_cast<std::int64_t>(i / 2) * stride + static_cast<std::int64_t>(i % 2)] = value;
            norm += static_cast<std::uint32_t>(value * value);
        }
        return static_cast<std::int32_t>(norm);
    }

    template <class Heap>
    void compare(const std::int16_t* bank, const std::int32_t* norms, std::int64_t row, int lanes, std::int64_t q,
                 std::int64_t group, Heap* heaps) const {
        alignas(64) std::int32_t out[GROUP * BLOCK];
        std::uint64_t found[GROUP];
        const std::int32_t cell = 0;
        LatentBlock block{};
        block.bank = bank;
        block.norms = norms;
        block.cells = &cell;
        block.less = NOTHING;
        block.count = 1;
        block.pairs = static_cast<int>(pairs_);
        block.lanes = lanes;
        block.queries = static_cast<int>(group);
        block.out = out;
        block.found = found;
        for (std::int64_t i = 0; i < group; ++i) {
            block.query[i] = queries_.data() + (q + i) * pairs_ * 2;
            block.own_norms[i] = norms_.data() + q + i;
            block.limits[i] = heaps[i].limit();
        }
        run_.latent_block(block);
        for (std::int64_t i = 0; i < group; ++i) {
            for (std::uint64_t left = found[i]; left; left &= left - 1) {
                const int lane = __builtin_ctzll(left);
                heaps[i].push(out[i * BLOCK + lane], row + lane);
            }
        }
    }

    const Topk<std::int16_t>& job_;
    const Kernels& run_;
    std::vector<std::int64_t> chosen_;
    std::int64_t pairs_;
    std::vector<std::int16_t> queries_;
    std::vector<std::int32_t> norms_;
};

}  // namespace lpkernel
