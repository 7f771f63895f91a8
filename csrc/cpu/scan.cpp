// How a plan is walked. Three ways, all exact:
//
//   small   small banks: an image's whole plan is one task. Cells that one step has copied from image a form a box, and
//           the distances of a box to all images are four rows of the layer's summed tables; only cells carried over
//           from the scale before (or a starting canvas) are measured. Where boundaries or carried sources leave no
//           boxes, each cell has a row of distances, from the layer's tables where it has a source: a step adds rows,
//           and a boundary's errors are entries of them. Everything stays in the first two cache levels.
//   groups  many images: up to tuning.group images walk together, so that each part of the bank is read into
//           the cache once for all of them; groups are spread over the threads.
//   parts   a large bank and not enough images for full groups: all images walk together and the threads divide the
//           bank. Their heaps of (distance, index) keys merge exactly.
//
// The draw needs only the neighbour of one rank, and the random word does not depend on the search: so the rank is
// drawn first, and the search keeps rank + 1 images instead of K.
//
// Ties: the lower of the allowed images, see smallest.h. Limits: distances below 2^31, fewer than 2^31 bank images,
// sides up to MOST_SIDE (bind/cpu.cpp checks what callers give).

#include "cpu/scan.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "common/philox.h"
#include "cpu/cut.h"
#include "cpu/parallel.h"

namespace lpkernel {

namespace {

constexpr std::int64_t FEW = 16;        // images per thread, from which threads take images, not parts of a large bank
constexpr std::int64_t LARGE = 4096;    // images of a large bank
constexpr int IN_TURN = 2;              // images that walk a small bank in turn
constexpr std::int64_t SMALL = 16;      // most images over a small bank in one task
constexpr std::int64_t TOGETHER = 512;  // most images that share what is derived from a bank
constexpr std::int64_t RECENT = 64;     // most bank images that an image remembers as near

// One image on its way through the plan.
struct Image {
    std::int64_t number = 0;  // in the request
    std::vector<std::int16_t> canvas;
    std::vector<std::int32_t> sources;  // (cells) position among the allowed images, -1: none
    std::vector<std::int64_t> recent;   // positions that were near at the last steps, latest first
    std::int64_t rank = 0;              // of the neighbour that the step takes, from 0
    Query query;
    Cut cut;
};

// What an image over a small bank has at one scale: its words and choices by step, the distances of its own cells, and
// where those of every cell are.
struct Few {
    std::vector<std::uint32_t> words;
    std::vector<std::int32_t> chosen, own;
    std::vector<const std::int32_t*> rows;
};

class Walk {
  public:
    Walk(const Scan& request, const Kernels& run, std::int64_t first, std::int64_t count, int threads)
        : request_(request), run_(run), threads_(threads), images_(static_cast<std::size_t>(count)) {
        for (std::int64_t i = 0; i < count; ++i) {
            images_[i].number = first + i;
            queries_.push_back(&images_[i].query);
        }
    }

    void operator()(std::int32_t* sources) {
        std::uint32_t step = request_.first_step;
        int before = 0;
        for (const Scale& scale : request_.scales) {
            for (Image& image : images_) enter(image, before, scale);
            before = scale.raster->side;
            const bool small = scale.layer->has_tables();
            if (small) {
                const int count = static_cast<int>(images_.size());
                for (int i = 0; i < count; i += IN_TURN) {
                    poll();
                    walk_small(images_.data() + i, std::min(IN_TURN, count - i), scale, step);
                }
                const bool resized = &scale != &request_.scales.back() && !(&scale + 1)->raster->i0.empty();
                for (std::size_t i = 0; resized && i < images_.size(); ++i) fill_canvas(images_[i], scale);
            } else {
                for (std::size_t i = 0; i < scale.raster->steps.size(); ++i) {
                    poll();
                    walk(scale, i, step + static_cast<std::uint32_t>(i));
                }
            }
            step += static_cast<std::uint32_t>(scale.raster->steps.size());
        }
        for (const Image& image : images_) finish(image, sources);
    }

  private:
    static Compared compared(const Scale& scale, std::size_t i) {
        const Cells& cells = scale.raster->steps[i].compare;
        if (!scale.offsets) return {cells.first, cells.count, nullptr, 0};
        return {cells.first, cells.count, scale.offsets->row(i), scale.offsets->most[i]};
    }

    std::uint32_t word(const Image& image, std::uint32_t step) const {
        return draw(request_.seed, request_.images[image.number], step);
    }

    std::int64_t drawn_rank(std::uint32_t word, const Layer& layer) const {
        return draw_index(word, static_cast<std::uint32_t>(std::min(request_.k, layer.size())));
    }

    // The canvas at the beginning of a scale.
    void enter(Image& image, int from, const Scale& scale) {
        const int width = scale.layer->width();
        const std::size_t cells = static_cast<std::size_t>(scale.raster->side) * scale.raster->side;
        const std::int16_t* start = nullptr;
        if (scale.start) start = scale.start + (scale.start_images == 1 ? 0 : image.number) * cells * width;
        if (!scale.raster->carry.empty()) return carry(image, from, scale, start);
        if (!scale.raster->i0.empty()) {
            resize(image.canvas, from, scale, width);
            for (std::size_t cell = 0; start && cell < cells; ++cell) {
                if (scale.raster->writer[cell] >= 0) continue;
                copy_cell(start + cell * width, width, image.canvas.data() + cell * width);
            }
        } else if (start) {
            image.canvas.assign(start, start + cells * width);
        } else {
            image.canvas.assign(cells * width, 0);
        }
        image.sources.assign(cells, -1);
    }

    // Every cell is copied from the bank image that is its source; those that have none or that no step writes start
    // from `start`. The others need no values where a small bank's tables have their distances.
    void carry(Image& image, int from, const Scale& scale, const std::int16_t* start) {
        const Raster& raster = *scale.raster;
        const int width = scale.layer->width();
        old_sources_.swap(image.sources);
        image.sources.resize(raster.writer.size());
        image.canvas.assign(raster.writer.size() * width, 0);
        std::int32_t cell = 0;
        for (const std::int32_t y : raster.carry) {
            for (const std::int32_t x : raster.carry) {
                std::int32_t source = old_sources_[static_cast<std::size_t>(y) * from + x];
                const bool kept = source < 0 || raster.writer[cell] < 0;
                if (source >= 0 && (kept || !scale.layer->has_tables())) copy(image, scale, cell, source);
                if (kept && start) copy_cell(start + cell * width, width, image.canvas.data() + cell * width);
                image.sources[cell++] = kept ? -1 : source;
            }
        }
    }

    // Four corners times two 8-bit weights, plus 32768, shifted right by 16.
    void resize(std::vector<std::int16_t>& canvas, int from, const Scale& scale, int width) {
        old_.swap(canvas);
        rows_.resize(static_cast<std::size_t>(from) * width);
        canvas.resize(static_cast<std::size_t>(scale.raster->side) * scale.raster->side * width);
        for (int y = 0; y < scale.raster->side; ++y) {
            run_.resize_row(old_.data() + static_cast<std::int64_t>(scale.raster->i0[y]) * from * width,
                            old_.data() + static_cast<std::int64_t>(scale.raster->i1[y]) * from * width,
                            scale.raster->f[y], from, scale.raster->side, width, scale.raster->i0.data(),
                            scale.raster->i1.data(), scale.raster->f.data(), rows_.data(),
                            canvas.data() + static_cast<std::int64_t>(y) * scale.raster->side * width);
        }
    }

    // The cell of allowed image a.
    const std::int16_t* bank_cell(const Scale& scale, std::int64_t a, std::int32_t cell) const {
        const std::int64_t cells = std::int64_t{scale.raster->side} * scale.raster->side;
        return scale.content.cell(a, cell, cells, scale.layer->width(), run_);
    }

    void copy(Image& image, const Scale& scale, std::int32_t cell, std::int64_t a) const {
        const int width = scale.layer->width();
        std::int16_t* to = image.canvas.data() + std::int64_t{cell} * width;
        copy_cell(bank_cell(scale, a, cell), width, to);
        if (scale.layer->codes() && static_cast<std::uint16_t>(*to) >= scale.layer->codes()) {
            throw std::invalid_argument(CODES_CHANGED);
        }
    }

    void write(Image& image, const Scale& scale, const Step& step, std::int64_t a) const {
        const Raster& raster = *scale.raster;
        const auto error = [&](std::int32_t cell) {
            const std::int64_t at = std::int64_t{cell} * scale.layer->width();
            return scale.layer->apart(image.canvas.data() + at, bank_cell(scale, a, cell));
        };
        for (const std::int32_t cell : image.cut(step, raster.side, raster.patch, error)) {
            copy(image, scale, cell, a);
            image.sources[cell] = static_cast<std::int32_t>(a);
        }
    }

    static void gather(const Image& image, Cells cells, int width, std::vector<std::int16_t>& values) {
        values.resize(static_cast<std::size_t>(cells.count) * width);
        std::int16_t* to = values.data();
        for (const std::int32_t cell : cells) {
            to = copy_cell(image.canvas.data() + std::int64_t{cell} * width, width, to);
        }
    }

    // All steps of a scale for a few images over a small bank, in turn, so that none waits for another's draw.
    void walk_small(Image* images, int count, const Scale& scale, std::uint32_t first_step) {
        const Layer& layer = *scale.layer;
        const Raster& raster = *scale.raster;
        const int size = static_cast<int>(layer.size()), lanes = layer.padded();
        const auto steps = static_cast<int>(raster.steps.size());
        const bool by_cells = raster.by_cells();
        for (int j = 0; j < count; ++j) {
            Few& few = few_[j];
            few.words.resize(raster.steps.size());
            few.chosen.resize(raster.steps.size());
            run_.words(request_.seed, request_.images[images[j].number], first_step, steps, few.words.data());
            measure_own(few, images[j], scale);
        }
        alignas(64) std::int32_t sums[BLOCK];
        const std::int64_t neighbours = std::min(request_.k, layer.size());
        for (int i = 0; i < steps; ++i) {
            const Step& step = raster.steps[i];
            const std::int64_t drawn_from = step.compare.count ? neighbours : size;
            const std::int32_t* less = scale.offsets ? scale.offsets->row(i) : NOTHING;
            for (int j = 0; j < count; ++j) {
                Few& few = few_[j];
                auto chosen =
                    static_cast<std::int32_t>(draw_index(few.words[i], static_cast<std::uint32_t>(drawn_from)));
                if (step.compare.count) {
                    if (by_cells) {
                        run_.row_sums({few.rows.data(), step.compare.first, less, step.compare.count, lanes, sums});
                    } else {
                        run_.small_step({layer.tables(), less, step.copied.first, few.chosen.data(), few.own.data(),
                                         step.carried.first, step.copied.count, step.carried.count, size, lanes, sums});
                    }
                    chosen = run_.ranked(sums, size, chosen);
                }
                few.chosen[i] = chosen;
                if (by_cells) write_rows(few, images[j], scale, step, chosen);
            }
        }
        for (int j = 0; j < count && !by_cells; ++j) {  // boxes need no sources until now
            for (std::size_t cell = 0; cell < raster.writer.size(); ++cell) {
                if (raster.writer[cell] >= 0) images[j].sources[cell] = few_[j].chosen[raster.writer[cell]];
            }
        }
    }

    // The distances of the cells that the canvas holds at the beginning of a scale.
    void measure_own(Few& few, const Image& image, const Scale& scale) {
        const Layer& layer = *scale.layer;
        const Raster& raster = *scale.raster;
        own_.resize(raster.carries ? raster.writer.size() : 0);
        std::iota(own_.begin(), own_.end(), 0);
        if (raster.by_cells()) {
            own_.clear();
            few.rows.assign(raster.writer.size(), NOTHING);
            for (std::int32_t cell = 0; cell < static_cast<std::int32_t>(raster.writer.size()); ++cell) {
                if (image.sources[cell] >= 0) {
                    few.rows[cell] = table_row(scale, cell, image.sources[cell]);
                } else if (raster.carries) {
                    own_.push_back(cell);
                }
            }
        }
        if (own_.empty()) return;
        const Cells cells{own_.data(), static_cast<int>(own_.size())};
        const bool all = own_.size() == raster.writer.size();
        if (!all) gather(image, cells, layer.width(), values_);
        few.own.resize(own_.size() * layer.padded());
        layer.cell_rows(cells.first, cells.count, all ? image.canvas.data() : values_.data(), run_, few.own.data());
        for (std::size_t i = 0; raster.by_cells() && i < own_.size(); ++i) {
            few.rows[own_[i]] = few.own.data() + i * layer.padded();
        }
    }

    static const std::int32_t* table_row(const Scale& scale, std::int64_t cell, std::int64_t a) {
        return scale.layer->tables() + (cell * scale.layer->size() + a) * scale.layer->padded();
    }

    // Writes a step's cells as their rows of distances.
    static void write_rows(Few& few, Image& image, const Scale& scale, const Step& step, std::int32_t chosen) {
        const Raster& raster = *scale.raster;
        const auto error = [&](std::int32_t cell) { return few.rows[cell][chosen]; };
        for (const std::int32_t cell : image.cut(step, raster.side, raster.patch, error)) {
            image.sources[cell] = chosen;
            few.rows[cell] = table_row(scale, cell, chosen);
        }
    }

    void fill_canvas(Image& image, const Scale& scale) const {
        for (std::int32_t cell = 0; cell < static_cast<std::int32_t>(image.sources.size()); ++cell) {
            if (image.sources[cell] >= 0) copy(image, scale, cell, image.sources[cell]);
        }
    }

    // task(image) for all images; over the threads, where it is worth waking them.
    template <class Task>
    void each(const Task& task) {
        const auto count = static_cast<std::int64_t>(images_.size());
        parallel(count, count >= 8 ? threads_ : 1, [&](std::int64_t i) { task(images_[i]); });
    }

    // One step for all images of this walk.
    void walk(const Scale& scale, std::size_t i, std::uint32_t number) {
        const Layer& layer = *scale.layer;
        const Step& step = scale.raster->steps[i];
        const Compared what = compared(scale, i);
        const bool last = &scale == &request_.scales.back() && i + 1 == scale.raster->steps.size();
        if (!step.compare.count) {
            for (Image& image : images_) {
                write(image, scale, step, draw_index(word(image, number), static_cast<std::uint32_t>(layer.size())));
            }
            return;
        }
        each([&](Image& image) {
            gather(image, step.compare, layer.width(), image.query.values);
            layer.prepare(image.query, step.compare.count);
            image.rank = drawn_rank(word(image, number), layer);
            const std::int64_t need = needed(image, layer, last);
            image.query.best.reset(need, first_limit(image, scale, what, need));
        });
        const std::int64_t work = layer.size() * step.compare.count * layer.width();
        if (threads_ > 1 && work * static_cast<std::int64_t>(images_.size()) >= request_.tuning.split) {
            search_divided(scale, what);
        } else {
            layer.search(scale.content, what, queries_.data(), static_cast<int>(queries_.size()), 0, layer.parts(),
                         run_);
        }
        each([&](Image& image) {
            Smallest& best = image.query.best;
            write(image, scale, step, Smallest::index(best.sorted()[image.rank]));
            if (remembers(layer)) remember(image, best);
        });
    }

    // Threads take runs of parts, each with heaps of its own.
    void search_divided(const Scale& scale, const Compared& what) {
        const Layer& layer = *scale.layer;
        const std::int64_t runs = std::min<std::int64_t>(layer.parts(), threads_);
        std::vector<std::vector<Query>> own(static_cast<std::size_t>(runs));
        for (std::vector<Query>& mine : own) {
            for (const Image& image : images_) mine.push_back(image.query);
        }
        parallel(runs, threads_, [&](std::int64_t r) {
            std::vector<Query*> queries;
            for (Query& query : own[r]) queries.push_back(&query);
            layer.search(scale.content, what, queries.data(), static_cast<int>(queries.size()),
                         layer.parts() * r / runs, layer.parts() * (r + 1) / runs, run_);
        });
        for (const std::vector<Query>& mine : own) {
            for (std::size_t i = 0; i < images_.size(); ++i) images_[i].query.best.merge(mine[i].best);
        }
    }

    // How many of the nearest a step looks for: those up to its rank, or, until enough are known for the limits of
    // later steps, all that might have been drawn.
    std::int64_t needed(const Image& image, const Layer& layer, bool last) const {
        const std::int64_t k = std::min(request_.k, layer.size());
        const bool known = static_cast<std::int64_t>(image.recent.size()) >= k;
        return last || known || k > RECENT || !remembers(layer) ? image.rank + 1 : k;
    }

    bool remembers(const Layer& layer) const { return layer.size() >= request_.tuning.seeded; }

    // A limit that `need` images do not exceed: the ranked distance of the need-th nearest among the recent ones.
    std::int32_t first_limit(const Image& image, const Scale& scale, const Compared& what, std::int64_t need) const {
        if (static_cast<std::int64_t>(image.recent.size()) < need) return Smallest::ANY;
        std::vector<std::int32_t> found;
        for (const std::int64_t a : image.recent) {
            const std::int32_t distance =
                scale.layer->distance(scale.content, a, what.cells, what.count, image.query.values.data(), run_);
            found.push_back(what.ranked(distance, a));
        }
        std::nth_element(found.begin(), found.begin() + (need - 1), found.end());
        return found[need - 1];
    }

    void remember(Image& image, const Smallest& best) const {
        std::vector<std::int64_t> now;
        for (const std::uint64_t key : best.keys()) now.push_back(Smallest::index(key));
        const std::size_t most = static_cast<std::size_t>(std::min<std::int64_t>(RECENT, 2 * request_.k));
        for (const std::int64_t a : image.recent) {
            if (now.size() >= most) break;
            if (std::find(now.begin(), now.end(), a) == now.end()) now.push_back(a);
        }
        now.resize(std::min(now.size(), most));
        image.recent.swap(now);
    }

    void finish(const Image& image, std::int32_t* sources) const {
        const std::int64_t* allowed = request_.scales.back().content.allowed;
        std::int32_t* out = sources + image.number * static_cast<std::int64_t>(image.sources.size());
        for (const std::int32_t a : image.sources) *out++ = a < 0 ? -1 : static_cast<std::int32_t>(allowed[a]);
    }

    const Scan& request_;
    const Kernels& run_;
    int threads_;
    std::vector<Image> images_;
    std::vector<Query*> queries_;
    std::vector<std::int16_t> old_;          // of a resize
    std::vector<std::int32_t> rows_;         // of a resize
    std::vector<std::int32_t> old_sources_;  // of a scale that carries
    Few few_[IN_TURN];
    std::vector<std::int32_t> own_;     // of measure_own
    std::vector<std::int16_t> values_;  // of measure_own
};

}  // namespace

void scan(const Scan& request, const Kernels& run, std::int32_t* sources) {
    const auto n = static_cast<std::int64_t>(request.images.size());
    const bool small = request.scales.back().layer->has_tables();
    const std::int64_t threads = std::max(1, request.threads);
    const bool large = request.scales.back().layer->size() >= LARGE;
    if (!small && (n < threads || (large && n < threads * FEW))) {
        Walk(request, run, 0, n, static_cast<int>(threads))(sources);
        return;
    }
    const auto derived = [](const Scale& scale) { return scale.content.derived != nullptr; };
    if (std::any_of(request.scales.begin(), request.scales.end(), derived)) {
        for (std::int64_t i = 0; i < n; i += TOGETHER) {
            Walk(request, run, i, std::min(TOGETHER, n - i), static_cast<int>(threads))(sources);
        }
        return;
    }
    std::int64_t group = std::max<std::int64_t>(1, std::min(request.tuning.group, (n + threads - 1) / threads));
    if (small) group = std::min(group, SMALL);
    parallel((n + group - 1) / group, static_cast<int>(threads),
             [&](std::int64_t i) { Walk(request, run, i * group, std::min(group, n - i * group), 1)(sources); });
}

}  // namespace lpkernel
