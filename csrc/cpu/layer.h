// The allowed bank images at one grid side, laid out for search: one `Layer` per scale, in either domain.
//
// Images are numbered by their position (a) among the allowed ones, which has the same order as the bank index, so
// ties are settled alike. A canvas cell is `width` int16: channels in the latent domain, one code in the code domain.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/smallest.h"

namespace lpkernel {

constexpr const char* CODES_CHANGED = "codes: outside the codebook; the file of the bank is damaged or has changed";

// Memory aligned to a cache line, not initialised.
template <class T>
class Aligned {
  public:
    explicit Aligned(std::size_t size = 0) : size_(size), data_(size ? make(size) : nullptr) {}
    T* data() { return data_.get(); }
    const T* data() const { return data_.get(); }
    std::size_t size() const { return size_; }

  private:
    struct Free {
        void operator()(T* p) const { ::operator delete(p, std::align_val_t{64}); }
    };
    static T* make(std::size_t size) { return static_cast<T*>(::operator new(size * sizeof(T), std::align_val_t{64})); }
    std::size_t size_;
    std::unique_ptr<T, Free> data_;
};

// One image's search at a step: the values of the compared cells, and the nearest so far.
struct Query {
    std::vector<std::int16_t> values;  // (count, width)
    std::vector<std::int16_t> padded;  // what the layer makes of them, once for all its parts
    std::vector<std::int32_t> norms;   // empty until they are needed
    std::vector<std::int16_t> coarse;  // the same for the channels that are compared first
    std::vector<std::int32_t> coarse_norms;
    Smallest best;
};

// What a step compares. cells: some may repeat. less: what is taken off the distance of each image, at most `most`, in
// whole blocks; or nullptr.
struct Compared {
    const std::int32_t* cells;
    int count;
    const std::int32_t* less;
    std::int32_t most;

    // The distance by which images are ranked.
    std::int32_t ranked(std::int32_t distance, std::int64_t a) const {
        if (!less) return distance;
        return static_cast<std::int32_t>(static_cast<std::uint32_t>(distance) - static_cast<std::uint32_t>(less[a]));
    }
};

// How a level of a bank is made from its codes, for banks whose levels would take too much memory.
struct Derived {
    int full = 0, rows = 0, stride = 0;  // side of the maps of codes, codes, values per row of `book`
    std::uint32_t mask = 0;              // the least power of two not below `rows`, less 1
    std::vector<float> book;             // (mask + 1, stride) fixed-point codebook, zero beyond the rows and channels
    std::vector<Corners> corners;        // (shifts, cells of the level); without views, one shift
    std::int64_t cells = 0;              // of the level

    // Cells of one image, (count, width), whose map is `codes`. Throws std::invalid_argument for a code out of range.
    void make(const std::int16_t* codes, const Corners* at, int count, int width, const Kernels& run,
              std::int16_t* out) const;
};

// The images of a bank, moved: view v is image v % images, moved by shift v / images.
struct Views {
    std::int64_t images = 0, cells = 0;
    int shifts = 1;
    std::vector<std::int32_t> places;  // (shifts, cells) where in an image each cell of a view is; empty if `derived`
};

// The bank's own array: (B, side, side, width) int16, or (B, full, full) codes that a level is made from; allowed[a] is
// the index of allowed image a, or with `views` the number of allowed view a. shift: that of all images, for a
// derived level without views.
struct Content {
    const std::int16_t* data;
    const std::int64_t* allowed;
    const Derived* derived = nullptr;
    const Views* views = nullptr;
    int shift = 0;

    // Cell of allowed image a at a level of `cells` cells. A made cell stays valid until this thread asks for the next.
    const std::int16_t* cell(std::int64_t a, std::int64_t cell, std::int64_t cells, int width,
                             const Kernels& run) const;
    // All cells of the image; made ones are valid as long.
    const std::int16_t* image(std::int64_t a, std::int64_t cells, int width, const Kernels& run) const;

    // For a derived level: those of `shift`.
    const Corners* corners() const { return derived->corners.data() + shift * derived->cells; }

  private:
    std::int64_t image_of(std::int64_t a) const { return views ? allowed[a] % views->images : allowed[a]; }
    std::int64_t shift_of(std::int64_t a) const { return views ? allowed[a] / views->images : shift; }
    const std::int16_t* made(std::int64_t a, std::int64_t first, int count, int width, const Kernels& run) const;
};

// Copies the few values of a cell; a call of the library's copy would take longer.
inline std::int16_t* copy_cell(const std::int16_t* from, std::int64_t width, std::int16_t* to) {
    constexpr std::int64_t AT_ONCE = 8;
    std::int64_t c = 0;
    for (; c + AT_ONCE <= width; c += AT_ONCE) std::memcpy(to + c, from + c, AT_ONCE * sizeof *to);
    for (; c < width; ++c) to[c] = from[c];
    return to + width;
}

class Layer {
  public:
    virtual ~Layer() = default;
    Layer(const Layer&) = delete;
    Layer& operator=(const Layer&) = delete;

    // Called once for a query's values, before search and distances.
    virtual void prepare(Query& query, int count) const = 0;

    // Offers the allowed images of parts first to last - 1 of [0, parts()) to every query.
    virtual void search(const Content& content, const Compared& compared, Query* const* queries, int n,
                        std::int64_t first, std::int64_t last, const Kernels& run) const = 0;

    // Distances of single cells to all images, when size() <= BLOCK: values (count, width) against cells (count), out
    // (count, padded()) int32; what follows size() in a row may be anything.
    virtual void cell_rows(const std::int32_t* cells, int count, const std::int16_t* values, const Kernels& run,
                           std::int32_t* out) const = 0;

    // Exact distance of image `a`, from the bank's own array.
    virtual std::int32_t distance(const Content& content, std::int64_t a, const std::int32_t* cells, int count,
                                  const std::int16_t* values, const Kernels& run) const = 0;

    // Squared distance of two cells' values.
    virtual std::int32_t apart(const std::int16_t* a, const std::int16_t* b) const = 0;

    // The layer of a few other images of the same bank, for cell_rows only.
    virtual std::unique_ptr<Layer> likewise(const Content& content, std::int64_t size, const Kernels& run) const = 0;

    virtual std::int64_t parts() const = 0;

    std::int64_t size() const { return size_; }
    int side() const { return side_; }
    int width() const { return width_; }
    int codes() const { return codes_; }  // codes are below this; 0: latents
    int padded() const { return static_cast<int>((size_ + 15) / 16 * 16); }

    // Small banks only: distances from each image to each, modulo 2^32: either at every cell, (side^2 cells, size()
    // images, padded()) int32; or summed over all cells above and to the left of a corner, ((side + 1)^2 corners,
    // size() images, padded()), see Box.
    bool has_tables() const { return tables_.size() > 0; }
    bool summed() const { return summed_; }
    const std::int32_t* tables() const { return tables_.data(); }

    // Bytes held.
    virtual std::size_t bytes() const { return tables_.size() * sizeof(std::int32_t); }

  protected:
    Layer(std::int64_t size, int side, int width, int codes) : size_(size), side_(side), width_(width), codes_(codes) {}
    void make_tables(const Content& content, const Kernels& run, bool summed);

  private:
    void sum_tables(const Aligned<std::int32_t>& cells);

    std::int64_t size_;
    int side_, width_, codes_;
    bool summed_ = false;
    Aligned<std::int32_t> tables_;
};

// What a layer holds besides the bank, and when it searches in which way.
struct LayerTuning {
    int pairs = 0;              // most images for which all distances are tabulated; 1.2 MB for 32 at side 16
    bool summed = false;        // whether they are summed, for boxes
    std::int64_t screened = 0;  // images of codes searched at once, from which bounds come first
    std::int64_t coarse = 0;    // images of latents, from which some channels are compared first
    std::int64_t kept = 0;      // bytes of those channels of a derived level, up to which they are kept; else made anew
};

// The layer of all views of some images: content.allowed lists those of the first shift, which moves nothing, then
// those of the next, ..., `images` of each. make(content) returns a layer of the images; one serves all shifts, except
// for a derived level, where each shift has its own.
using MakeLayer = std::function<std::unique_ptr<Layer>(const Content& content)>;
std::unique_ptr<Layer> view_layer(const Content& content, std::int64_t images, const MakeLayer& make);

// content: (B, side, side, channels) int16, or what they are derived from.
std::unique_ptr<Layer> latent_layer(const Content& content, std::int64_t size, int side, int channels,
                                    const Kernels& run, const LayerTuning& tuning);

// content: (B, side, side) codes in [0, rows); table (rows, rows) int32, non-negative, kept by the caller.
std::unique_ptr<Layer> code_layer(const Content& content, std::int64_t size, int side, const std::int32_t* table,
                                  int rows, const Kernels& run, const LayerTuning& tuning);

}  // namespace lpkernel
