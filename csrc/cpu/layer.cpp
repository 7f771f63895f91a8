#include "cpu/layer.h"

namespace lpkernel {

void Layer::make_pairs(const Content& content, const Kernels& run) {
    const std::int32_t cells = side_ * side_;
    pairs_ = Aligned<std::int32_t>(static_cast<std::size_t>(cells) * size_ * padded());
    std::vector<std::int32_t> row(BLOCK);
    Query query;
    for (std::int32_t cell = 0; cell < cells; ++cell) {
        for (std::int64_t a = 0; a < size_; ++a) {
            const std::int16_t* value = content.data + (content.allowed[a] * cells + cell) * width_;
            query.values.assign(value, value + width_);
            prepare(query, 1, run);
            distances(&cell, 1, query, run, row.data());
            std::copy_n(row.data(), padded(), pairs_.data() + (cell * size_ + a) * padded());
        }
    }
}

}  // namespace lpkernel
