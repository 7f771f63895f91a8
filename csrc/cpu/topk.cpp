// How masked_topk runs. The bank's allowed rows are cut into blocks of BLOCK rows, the threads take runs of blocks (and
// of queries, when there are too few blocks), a block is packed with the rows as lanes, and all queries pass
// over it, GROUP at a time, each with a heap of its own; heaps of one query merge at the end. (Q, B) never exists.
//
// int16:   distances as in the latent domain of a scan, from |q|^2 + |b|^2 - 2 q.b modulo 2^32; with a mask for each
// query
//          from masked differences. A shared mask only leaves out columns when packing.
// float32: few queries: the direct sum in float64. Many: blocks are packed as b' = b - c, with c near the bank's mean,
//          and screened in float32; what may be among the k nearest is measured directly. With u = 2^-24, |.|^2 over
//          the marked entries, q' = q - c: rounding q', b', the norms and D (2 D with weights) products moves
//          |q'|^2 + |b'|^2 - 2 q'.b' by less than (1.1 D + 32) u (|q'|^2 + |b'|^2), with weights (4.4 D + 32) u, for D
//          u < 1/16. Rows are passed over only if beyond the k-th distance by more than that and by float32's rounding
//          of it. Norms near overflow and NaN are always measured directly.

#include "cpu/topk.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/layer.h"
#include "cpu/parallel.h"

namespace lpkernel {

namespace {

// Columns that enter at all.
template <class T>
std::vector<std::int64_t> columns(const Topk<T>& job) {
    std::vector<std::int64_t> list;
    for (std::int64_t i = 0; i < job.width; ++i) {
        if (!job.shared_mask || job.shared_mask[i]) list.push_back(i);
    }
    return list;
}

// Runs search(first block, last block, first query, last query, heaps) over the threads, and merges. heaps: (last -
// first).
template <class T, class Search, class Value>
void divide(const Topk<T>& job, const Search& search, const Value& value, std::int64_t* indices) {
    const auto allowed = static_cast<std::int64_t>(job.rows.size());
    const std::int64_t need = std::min(job.k, allowed);
    if (need > 0 && job.count > 0) {
        const std::int64_t blocks = (allowed + BLOCK - 1) / BLOCK;
        const std::int64_t runs = std::min<std::int64_t>(blocks, job.threads);
        const std::int64_t cuts = std::min<std::int64_t>(job.count, (job.threads + runs - 1) / runs);
        std::vector<Smallest> heaps(static_cast<std::size_t>(runs * job.count));
        for (Smallest& heap : heaps) heap.reset(need);
        parallel(runs * cuts, job.threads, [&](std::int64_t task) {
            const std::int64_t r = task / cuts, c = task % cuts;
            const std::int64_t first = job.count * c / cuts, last = job.count * (c + 1) / cuts;
            search(blocks * r / runs, blocks * (r + 1) / runs, first, last, heaps.data() + r * job.count + first);
        });
        parallel(job.count, job.threads, [&](std::int64_t q) {
            for (std::int64_t r = 1; r < runs; ++r) heaps[q].merge(heaps[r * job.count + q]);
            std::int64_t at = q * job.k;
            for (const std::uint64_t key : heaps[q].sorted()) {
                value(at, static_cast<std::int32_t>(key >> 32));
                indices[at++] = job.rows[key & 0xFFFFFFFFu];
            }
        });
    }
}

template <class T, class D>
void clear(const Topk<T>& job, D empty, D* distances, std::int64_t* indices) {
    std::fill_n(distances, job.count * job.k, empty);
    std::fill_n(indices, job.count * job.k, -1);
}

int lanes_of(std::int64_t allowed, std::int64_t block) {
    return static_cast<int>(std::min<std::int64_t>(BLOCK, allowed - block * BLOCK));
}

std::int32_t square(std::int32_t a) {
    return static_cast<std::int32_t>(static_cast<std::uint32_t>(a) * static_cast<std::uint32_t>(a));
}

// Values of a row at the chosen columns, as pairs; an odd last one is padded by 0. Returns the squared norm.
std::int32_t pack_pairs(const std::int16_t* row, const std::vector<std::int64_t>& chosen, std::int16_t* to,
                        std::int64_t stride) {
    std::uint32_t norm = 0;
    for (std::size_t i = 0; i < chosen.size(); ++i) {
        const std::int16_t value = row[chosen[i]];
        to[static_cast<std::int64_t>(i / 2) * stride + static_cast<std::int64_t>(i % 2)] = value;
        norm += static_cast<std::uint32_t>(value * value);
    }
    return static_cast<std::int32_t>(norm);
}

class IntegerSearch {
  public:
    IntegerSearch(const Topk<std::int16_t>& job, const Kernels& run)
        : job_(job), run_(run), chosen_(columns(job)), pairs_(static_cast<std::int64_t>(chosen_.size() + 1) / 2) {
        const auto size = static_cast<std::size_t>(job.count * pairs_ * 2);
        queries_.assign(size, 0);
        norms_.assign(static_cast<std::size_t>(job.count), 0);
        if (job.own_mask) masks_.assign(size, 0);
        for (std::int64_t q = 0; q < job.count; ++q) {
            norms_[q] = pack_pairs(job.queries + q * job.width, chosen_, queries_.data() + q * pairs_ * 2, 2);
            for (std::int64_t i = 0; job.own_mask && i < job.width; ++i) {
                masks_[q * pairs_ * 2 + i] = job.own_mask[q * job.width + i] ? -1 : 0;
            }
        }
    }

    void operator()(std::int64_t first_block, std::int64_t last_block, std::int64_t first, std::int64_t last,
                    Smallest* heaps) const {
        Aligned<std::int16_t> bank(static_cast<std::size_t>(pairs_ * BLOCK * 2 + 1));
        std::fill_n(bank.data(), bank.size(), std::int16_t{0});
        std::int32_t norms[BLOCK];
        for (std::int64_t b = first_block; b < last_block; ++b) {
            const int lanes = lanes_of(static_cast<std::int64_t>(job_.rows.size()), b);
            std::fill_n(norms, BLOCK, 0);
            for (int lane = 0; lane < lanes; ++lane) {
                norms[lane] = pack_pairs(row(b, lane), chosen_, bank.data() + lane * 2, BLOCK * 2);
            }
            for (std::int64_t q = first; q < last; q += GROUP) {
                const int group = static_cast<int>(std::min<std::int64_t>(GROUP, last - q));
                if (job_.own_mask) {
                    for (int i = 0; i < group; ++i) masked(bank.data(), b, lanes, q + i, heaps[q + i - first]);
                } else {
                    plain(bank.data(), norms, b, lanes, q, group, heaps + (q - first));
                }
            }
        }
    }

  private:
    const std::int16_t* row(std::int64_t block, int lane) const {
        return job_.bank + job_.rows[block * BLOCK + lane] * job_.width;
    }

    void plain(const std::int16_t* bank, const std::int32_t* norms, std::int64_t b, int lanes, std::int64_t q,
               int group, Smallest* heaps) const {
        alignas(64) std::int32_t out[GROUP * BLOCK];
        std::uint64_t found[GROUP];
        const std::int32_t cell = 0;
        LatentBlock block{};
        block.bank = bank;
        block.norms = norms;
        block.cells = &cell;
        block.count = 1;
        block.pairs = static_cast<int>(pairs_);
        block.lanes = lanes;
        block.queries = group;
        block.out = out;
        block.found = found;
        for (int i = 0; i < group; ++i) {
            block.query[i] = queries_.data() + (q + i) * pairs_ * 2;
            block.own_norms[i] = norms_.data() + q + i;
            block.limits[i] = heaps[i].limit();
        }
        run_.latent_block(block);
        for (int i = 0; i < group; ++i) take(found[i], out + i * BLOCK, b, heaps[i]);
    }

    void masked(const std::int16_t* bank, std::int64_t b, int lanes, std::int64_t q, Smallest& heap) const {
        alignas(64) std::int32_t out[BLOCK];
        if (job_.width == 1) {  // the only width at which differences may leave int16
            for (int lane = 0; lane < lanes; ++lane) {
                heap.push(job_.own_mask[q] ? square(job_.queries[q] - *row(b, lane)) : 0, b * BLOCK + lane);
            }
            return;
        }
        const MaskedBlock block{bank,
                                static_cast<int>(pairs_),
                                lanes,
                                queries_.data() + q * pairs_ * 2,
                                masks_.data() + q * pairs_ * 2,
                                heap.limit(),
                                out};
        take(run_.masked_block(block), out, b, heap);
    }

    static void take(std::uint64_t found, const std::int32_t* out, std::int64_t b, Smallest& heap) {
        for (; found; found &= found - 1) {
            const int lane = __builtin_ctzll(found);
            heap.push(out[lane], b * BLOCK + lane);
        }
    }

    const Topk<std::int16_t>& job_;
    const Kernels& run_;
    std::vector<std::int64_t> chosen_;
    std::int64_t pairs_;
    std::vector<std::int16_t> queries_, masks_;
    std::vector<std::int32_t> norms_;
};

// The order of keys: distances by their bits, which rise with them; every NaN after +inf.
std::int32_t order_bits(float distance) {
    std::int32_t bits;
    std::memcpy(&bits, &distance, sizeof bits);
    return std::isnan(distance) ? 0x7FC00000 : bits;
}

float from_bits(std::int32_t bits) {
    float distance;
    std::memcpy(&distance, &bits, sizeof distance);
    return distance;
}

class FloatSearch {
  public:
    FloatSearch(const Topk<float>& job, const Kernels& run)
        : job_(job),
          run_(run),
          chosen_(columns(job)),
          width_(static_cast<std::int64_t>(chosen_.size())),
          packed_(job.count >= job.packed_from && width_ < WIDEST) {
        if (job.own_mask) {
            weights_.resize(static_cast<std::size_t>(job.count * job.width));
            for (std::size_t i = 0; i < weights_.size(); ++i) weights_[i] = job.own_mask[i] ? 1.0f : 0.0f;
        } else if (job.shared_mask) {
            weights_.resize(static_cast<std::size_t>(job.width));
            for (std::int64_t i = 0; i < job.width; ++i) weights_[i] = job.shared_mask[i] ? 1.0f : 0.0f;
        }
        if (packed_) prepare();
    }

    void operator()(std::int64_t first_block, std::int64_t last_block, std::int64_t first, std::int64_t last,
                    Smallest* heaps) const {
        const auto size = packed_ ? static_cast<std::size_t>(width_ * BLOCK + 1) : 0;
        Aligned<float> bank(size), squares(job_.own_mask ? size : 0);
        for (std::int64_t b = first_block; b < last_block; ++b) {
            const int lanes = lanes_of(static_cast<std::int64_t>(job_.rows.size()), b);
            if (packed_) {
                screen(b, lanes, first, last, bank, squares, heaps);
            } else {
                for (std::int64_t q = first; q < last; ++q) {
                    for (int lane = 0; lane < lanes; ++lane) measure(q, b * BLOCK + lane, heaps[q - first]);
                }
            }
        }
    }

  private:
    static constexpr float LARGE = 1e36f;            // beyond this, norms are not to be trusted
    static constexpr double TINY = 1e-30;            // rounding below float32's normal range stays far below this
    static constexpr std::int64_t WIDEST = 1 << 20;  // columns for which the bound holds

    void measure(std::int64_t q, std::int64_t a, Smallest& heap) const {
        const float* weight = job_.own_mask ? weights_.data() + q * job_.width : nullptr;
        if (job_.shared_mask) weight = weights_.data();
        const double sum =
            run_.direct(job_.queries + q * job_.width, job_.bank + job_.rows[a] * job_.width, weight, job_.width);
        heap.push(order_bits(static_cast<float>(sum)), a);
    }

    // Centre, error bound, and the queries as the screen wants them.
    void prepare() {
        constexpr std::int64_t SAMPLE = 64;
        const auto allowed = static_cast<std::int64_t>(job_.rows.size());
        const std::int64_t sampled = std::min(SAMPLE, allowed);
        centre_.assign(static_cast<std::size_t>(width_), 0.0f);
        for (std::int64_t i = 0; i < width_; ++i) {
            double sum = 0.0;
            for (std::int64_t s = 0; s < sampled; ++s) {
                sum += job_.bank[job_.rows[s * allowed / sampled] * job_.width + chosen_[i]];
            }
            const auto mean = static_cast<float>(sum / static_cast<double>(sampled));
            centre_[i] = std::isfinite(mean) ? mean : 0.0f;
        }
        slack_ = (1.1 * static_cast<double>(width_) * (job_.own_mask ? 4 : 1) + 32) * 0x1p-24;
        queries_.resize(static_cast<std::size_t>(job_.count * width_));
        own_.resize(static_cast<std::size_t>(job_.count));
        for (std::int64_t q = 0; q < job_.count; ++q) {
            double norm = 0.0;
            for (std::int64_t i = 0; i < width_; ++i) {
                const bool used = !job_.own_mask || job_.own_mask[q * job_.width + i];
                const float value = used ? job_.queries[q * job_.width + chosen_[i]] - centre_[i] : 0.0f;
                norm += static_cast<double>(value) * static_cast<double>(value);
                queries_[q * width_ + i] = -2.0f * value;
            }
            own_[q] = norm < LARGE ? norm * (1 - slack_) : std::numeric_limits<double>::quiet_NaN();
        }
    }

    void screen(std::int64_t b, int lanes, std::int64_t first, std::int64_t last, Aligned<float>& bank,
                Aligned<float>& squares, Smallest* heaps) const {
        float norms[BLOCK];
        pack(b, lanes, bank.data(), job_.own_mask ? squares.data() : nullptr, norms);
        std::uint64_t found[GROUP];
        FloatBlock block{};
        block.bank = bank.data();
        block.square = job_.own_mask ? squares.data() : nullptr;
        block.norms = norms;
        block.width = width_;
        block.lanes = lanes;
        block.found = found;
        for (std::int64_t q = first; q < last; q += GROUP) {
            block.queries = static_cast<int>(std::min<std::int64_t>(GROUP, last - q));
            for (int i = 0; i < block.queries; ++i) {
                block.query[i] = queries_.data() + (q + i) * width_;
                block.weight[i] = job_.own_mask ? weights_.data() + (q + i) * width_ : nullptr;
                block.limits[i] = limit(q + i, heaps[q + i - first]);
            }
            run_.float_block(block);
            for (int i = 0; i < block.queries; ++i) {
                for (std::uint64_t left = found[i]; left; left &= left - 1) {
                    measure(q + i, b * BLOCK + __builtin_ctzll(left), heaps[q + i - first]);
                }
            }
        }
    }

    // Scores above this cannot be among the nearest: the k-th distance, less the query's own norm.
    float limit(std::int64_t q, const Smallest& heap) const {
        const float kth = from_bits(heap.limit());
        if (!(kth < LARGE) || std::isnan(own_[q])) return std::numeric_limits<float>::infinity();
        const double exact = static_cast<double>(kth) * (1 + 0x1p-22) + TINY - own_[q];
        return std::nextafter(static_cast<float>(exact), std::numeric_limits<float>::infinity());
    }

    // The block's rows less the centre, lanes = rows; norms: the least that |b'|^2 can be, NaN for rows to measure
    // anyway. With squares the weighted norm is the kernel's part, and `norms` holds only what the bound takes off.
    void pack(std::int64_t b, int lanes, float* bank, float* squares, float* norms) const {
        constexpr std::int64_t COLUMNS = 16;  // one cache line of each row at a time
        double sums[BLOCK] = {};
        for (std::int64_t start = 0; start < width_; start += COLUMNS) {
            const std::int64_t stop = std::min(width_, start + COLUMNS);
            for (int lane = 0; lane < BLOCK; ++lane) {
                const float* row = lane < lanes ? job_.bank + job_.rows[b * BLOCK + lane] * job_.width : nullptr;
                for (std::int64_t i = start; i < stop; ++i) {
                    bank[i * BLOCK + lane] = row ? row[chosen_[i]] - centre_[i] : 0.0f;
                }
            }
            for (std::int64_t i = start; i < stop; ++i) {
                const float* values = bank + i * BLOCK;
                for (int lane = 0; lane < BLOCK; ++lane) {
                    sums[lane] += static_cast<double>(values[lane]) * static_cast<double>(values[lane]);
                }
                for (int lane = 0; squares && lane < BLOCK; ++lane) {
                    squares[i * BLOCK + lane] = values[lane] * values[lane];
                }
            }
        }
        for (int lane = 0; lane < BLOCK; ++lane) {
            const double least = squares ? -sums[lane] * slack_ : sums[lane] * (1 - slack_);
            norms[lane] = sums[lane] < LARGE ? static_cast<float>(least) : std::numeric_limits<float>::quiet_NaN();
        }
    }

    const Topk<float>& job_;
    const Kernels& run_;
    std::vector<std::int64_t> chosen_;
    std::int64_t width_;
    bool packed_;
    double slack_ = 0.0;
    std::vector<float> centre_, queries_, weights_;
    std::vector<double> own_;  // the least that |q'|^2 can be
};

}  // namespace

void topk(const Topk<std::int16_t>& job, const Kernels& run, std::int32_t* distances, std::int64_t* indices) {
    clear(job, Smallest::ANY, distances, indices);
    const IntegerSearch search(job, run);
    divide(job, search, [&](std::int64_t at, std::int32_t bits) { distances[at] = bits; }, indices);
}

void topk(const Topk<float>& job, const Kernels& run, float* distances, std::int64_t* indices) {
    clear(job, std::numeric_limits<float>::infinity(), distances, indices);
    if (job.rows.empty() || job.count == 0) return;
    const FloatSearch search(job, run);
    divide(job, search, [&](std::int64_t at, std::int32_t bits) { distances[at] = from_bits(bits); }, indices);
}

}  // namespace lpkernel
