#include "cpu/layer.h"

namespace lpkernel {

void Layer::make_pairs(const Content& content, const Kernels& run) {
    const std::int32_t cells = side_ * side_;
    pairs_ = Aligned<std::int32_t>(static_cast<std::size_t>(cells) * size_ * padded());
    std::vector<std::int16_t> values(static_cast<std::size_t>(size_) * width_);
    for (std::int32_t cell = 0; cell < cells; ++cell) {
        for (std::int64_t a = 0; a < size_; ++a) {
            std::copy_n(content.data + (content.allowed[a] * cells + cell) * width_, width_,
                        values.data() + a * width_);
        }
        const std::vector<std::int32_t> same(static_cast<std::size_t>(size_), cell);
        cell_rows(same.data(), static_cast<int>(size_), values.data(), run, pairs_.data() + cell * size_ * padded());
    }
}

}  // namespace lpkernel
