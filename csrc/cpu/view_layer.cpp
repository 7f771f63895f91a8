// Views of images, searched in place: a search of the views of one shift is a search of the images with the compared
// cells moved by that shift, since a query holds its values separately from the cells they are compared with. Nothing
// of the bank is copied. For a level that is derived from codes, each shift has a layer of its own, because the cells
// of a level move by fractions of a cell; it holds only the channels that are compared first, if those are kept
// (latent_layer.cpp).
//
// Positions count shift by shift, so views of equal distance are settled in favour of the earlier shift, then of the
// lower image.

#include <algorithm>
#include <stdexcept>

#include "cpu/layer.h"

namespace lpkernel {

namespace {

class ViewLayer final : public Layer {
  public:
    ViewLayer(const Content& content, std::int64_t images, std::vector<std::unique_ptr<Layer>> layers)
        : Layer(images * content.views->shifts, layers[0]->side(), layers[0]->width(), layers[0]->codes()),
          images_(images),
          layers_(std::move(layers)) {}

    std::int64_t parts() const override { return size() / images_ * layers_[0]->parts(); }

    std::size_t bytes() const override {
        std::size_t sum = 0;
        for (const auto& layer : layers_) sum += layer->bytes();
        return sum;
    }

    void prepare(Query& query, int count) const override { layers_[0]->prepare(query, count); }

    void search(const Content& content, const Compared& compared, Query* const* queries, int n, std::int64_t first,
                std::int64_t last, const Kernels& run) const override {
        const std::int64_t each = layers_[0]->parts();
        std::vector<std::int32_t> cells;
        for (std::int64_t stop; first < last; first = stop) {
            const auto shift = static_cast<int>(first / each);
            stop = std::min(last, (shift + 1) * each);
            for (int q = 0; q < n; ++q) {
                if (layers_.size() > 1) layer(shift).prepare(*queries[q], compared.count);
                queries[q]->best.count_from(shift * images_);
            }
            Compared moved = compared;
            moved.cells = move(content, shift, compared.cells, compared.count, cells);
            if (moved.less) moved.less += shift * images_;
            layer(shift).search(of_shift(content, shift), moved, queries, n, first - shift * each, stop - shift * each,
                                run);
        }
        for (int q = 0; q < n; ++q) queries[q]->best.count_from(0);
    }

    void cell_rows(const std::int32_t*, int, const std::int16_t*, const Kernels&, std::int32_t*) const override {
        throw std::logic_error("views have no rows of distances");  // only tables ask for them, and views have none
    }

    std::int32_t distance(const Content& content, std::int64_t a, const std::int32_t* cells, int count,
                          const std::int16_t* values, const Kernels& run) const override {
        thread_local std::vector<std::int32_t> room;
        const auto shift = static_cast<int>(a / images_);
        return layer(shift).distance(of_shift(content, shift), a % images_, move(content, shift, cells, count, room),
                                     count, values, run);
    }

    std::int32_t apart(const std::int16_t* a, const std::int16_t* b) const override { return layers_[0]->apart(a, b); }

    std::unique_ptr<Layer> likewise(const Content& content, std::int64_t size, const Kernels& run) const override {
        return layers_[0]->likewise(content, size, run);
    }

  private:
    const Layer& layer(int shift) const { return *layers_[layers_.size() > 1 ? shift : 0]; }

    // The images, which are the views of the first shift.
    static Content of_shift(const Content& content, int shift) {
        return {content.data, content.allowed, content.derived, nullptr, shift};
    }

    // Where the cells of a view are in its image.
    static const std::int32_t* move(const Content& content, int shift, const std::int32_t* cells, int count,
                                    std::vector<std::int32_t>& moved) {
        if (content.derived) return cells;
        const std::int32_t* places = content.views->places.data() + shift * content.views->cells;
        moved.resize(static_cast<std::size_t>(count));
        for (int i = 0; i < count; ++i) moved[i] = places[cells[i]];
        return moved.data();
    }

    std::int64_t images_;
    std::vector<std::unique_ptr<Layer>> layers_;  // one, or one per shift
};

}  // namespace

std::unique_ptr<Layer> view_layer(const Content& content, std::int64_t images, const MakeLayer& make) {
    std::vector<std::unique_ptr<Layer>> layers;
    for (int shift = 0; shift < (content.derived ? content.views->shifts : 1); ++shift) {
        layers.push_back(make({content.data, content.allowed, content.derived, nullptr, shift}));
    }
    return std::make_unique<ViewLayer>(content, images, std::move(layers));
}

}  // namespace lpkernel
