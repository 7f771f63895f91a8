// lpkernel._cpu: the C++ code as a Python module. No torch headers: a build needs only a compiler and pybind11.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "bind/expect.h"
#include "common/limits.h"
#include "common/philox.h"
#include "cpu/isolation.h"
#include "cpu/layer.h"
#include "cpu/norm.h"
#include "cpu/parallel.h"
#include "cpu/refine.h"
#include "cpu/scan.h"
#include "cpu/topk.h"

namespace py = pybind11;

namespace {

using lpkernel::expect;
using lpkernel::MOST_SIDE;

// glibc keeps what threads have freed in an arena for each of them.
void trim() {
#if defined(__GLIBC__)
    py::gil_scoped_release released;
    malloc_trim(0);
#endif
}

std::string compiler() {
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#elif defined(_MSC_VER)
    return "msvc " + std::to_string(_MSC_VER);
#else
    return "unknown";
#endif
}

py::dict build_info() {
    py::dict info;
    info["compiler"] = compiler();
    info["cxx_standard"] = static_cast<long>(__cplusplus);
    info["isa"] = lpkernel::available();
#if defined(NDEBUG)
    info["assertions"] = false;
#else
    info["assertions"] = true;
#endif
    return info;
}

// The array's memory, after checks of its type, contiguity and number of axes. Writing to an array elsewhere while a
// call runs is the caller's error.
template <class T>
const T* view(const py::array& array, const std::string& name, int axes) {
    if (!py::isinstance<py::array_t<T>>(array)) throw py::value_error(name + ": wrong dtype");
    if (array.ndim() != axes) throw py::value_error(name + ": expected " + std::to_string(axes) + " axes");
    if (!(array.flags() & py::array::c_style)) throw py::value_error(name + ": not contiguous");
    if (reinterpret_cast<std::uintptr_t>(array.data()) % alignof(T)) throw py::value_error(name + ": not aligned");
    return static_cast<const T*>(array.data());
}

void check_signals() {
    const py::gil_scoped_acquire held;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

// Around native work: other Python threads run meanwhile, and Ctrl+C ends it. Python runs signal handlers on its main
// thread only, so it is asked for them only there.
class Released {
  public:
    Released() : interruptible_(on_main_thread() ? check_signals : nullptr) {}

  private:
    static bool on_main_thread() {
        const py::object main = py::module_::import("threading").attr("main_thread")();
        return main.attr("ident").cast<unsigned long>() == PyThread_get_thread_ident();
    }

    lpkernel::Interruptible interruptible_;
    py::gil_scoped_release free_;
};

constexpr int MOST_THREADS = 4096;

bool can_run(int threads) {
    return threads >= 1 && threads <= MOST_THREADS;
}

void expect_threads(int threads) {
    expect(can_run(threads), "threads: expected 1 to 4096");
}

// The least and the largest of some values, at least one.
template <class T>
std::pair<T, T> ends_of(const T* values, std::int64_t count) {
    T least = values[0], largest = values[0];
    for (std::int64_t i = 0; i < count; ++i) {
        const T value = values[i];  // not a reference, of which compilers make no vectors
        least = std::min(least, value);
        largest = std::max(largest, value);
    }
    return {least, largest};
}

template <class T>
bool within(const T* values, std::int64_t count, std::int64_t low, std::int64_t high) {
    constexpr std::int64_t PIECE = 1 << 24;
    const Released free;
    for (std::int64_t first = 0; first < count; first += PIECE) {
        const auto [least, largest] = ends_of(values + first, std::min(count - first, PIECE));
        if (least < low || largest > high) return false;
        lpkernel::poll();
    }
    return true;
}

constexpr std::int64_t MOST = std::numeric_limits<std::int32_t>::max();

// A layer, with what it borrows.
struct HeldLayer {
    std::unique_ptr<lpkernel::Layer> layer;
    py::object table;
    std::vector<std::int64_t> allowed;
    py::tuple shape;
    std::unique_ptr<lpkernel::Derived> derived;  // of a level of codes
    std::unique_ptr<lpkernel::Views> views;

    lpkernel::Content content(const std::int16_t* data) const {
        return {data, allowed.data(), derived.get(), views.get()};
    }
};

std::vector<std::int64_t> allowed_images(const py::array& allowed, std::int64_t bank) {
    const auto* first = view<std::int64_t>(allowed, "allowed", 1);
    std::vector<std::int64_t> list(first, first + allowed.size());
    expect(!list.empty() && bank <= MOST, "allowed: expected at least one image of fewer than 2^31");
    for (std::size_t i = 0; i < list.size(); ++i) {
        expect(list[i] >= 0 && list[i] < bank && (i == 0 || list[i] > list[i - 1]),
               "allowed: expected increasing indices of bank images");
    }
    return list;
}

// dy and dx of each shift of views; (0, 0) alone if there are none.
std::vector<std::int64_t> read_shifts(const py::object& shifts) {
    if (shifts.is_none()) return {0, 0};
    const auto array = shifts.cast<py::array>();
    const auto* values = view<std::int64_t>(array, "shifts", 2);
    expect(array.shape(0) >= 1 && array.shape(1) == 2 && within(values, array.size(), -MOST_SIDE, MOST_SIDE) &&
               values[0] == 0 && values[1] == 0,
           "shifts: expected (S, 2) cells, the first (0, 0)");
    return {values, values + array.size()};
}

// Sets the views of a held layer, which must be those of the same images for every shift; moved: whether whole cells of
// a level of `side` cells a side are moved.
void hold_views(HeldLayer& held, const std::vector<std::int64_t>& shifts, std::int64_t bank, std::int64_t side,
                bool moved) {
    const auto count = static_cast<std::int64_t>(shifts.size() / 2),
               size = static_cast<std::int64_t>(held.allowed.size());
    if (count == 1) return;
    bool fits = size % count == 0;
    for (std::int64_t a = 0, images = size / count; fits && a < size; ++a) {
        fits = held.allowed[a] == a / images * bank + held.allowed[a % images] && held.allowed[a % images] < bank;
    }
    expect(fits, "allowed: expected all views of some images");
    held.views = std::make_unique<lpkernel::Views>();
    held.views->images = bank;
    held.views->cells = side * side;
    held.views->shifts = static_cast<int>(count);
    const auto inside = [side](std::int64_t cell) { return std::clamp<std::int64_t>(cell, 0, side - 1); };
    for (std::int64_t s = 0; moved && s < count; ++s) {
        for (std::int64_t y = 0; y < side; ++y) {
            for (std::int64_t x = 0; x < side; ++x) {
                const std::int64_t place = inside(y + shifts[2 * s]) * side + inside(x + shifts[2 * s + 1]);
                held.views->places.push_back(static_cast<std::int32_t>(place));
            }
        }
    }
}

// Makes the layer by `make` for a number of images, or the layer of all their views.
void hold_layer(HeldLayer& held, const std::int16_t* data,
                const std::function<std::unique_ptr<lpkernel::Layer>(const lpkernel::Content&, std::int64_t)>& make) {
    const auto size = static_cast<std::int64_t>(held.allowed.size());
    const Released free;
    if (!held.views) {
        held.layer = make(held.content(data), size);
        return;
    }
    const std::int64_t images = size / held.views->shifts;
    held.layer = lpkernel::view_layer(held.content(data), images,
                                      [&](const lpkernel::Content& content) { return make(content, images); });
}

std::unique_ptr<HeldLayer> hold(const py::array& content, const py::array& table, const py::array& allowed,
                                const std::string& isa, int pairs, bool summed, std::int64_t screened,
                                std::int64_t coarse, const py::object& shifts) {
    const bool in_codes = content.ndim() == 3;
    const auto* data = view<std::int16_t>(content, "content", in_codes ? 3 : 4);
    expect(content.shape(1) == content.shape(2) && content.shape(1) >= 1 && content.shape(1) <= MOST_SIDE,
           "content: expected a square grid of 1 to 4096 cells a side");
    auto held = std::make_unique<HeldLayer>();
    const std::vector<std::int64_t> moves = read_shifts(shifts);
    held->allowed = allowed_images(allowed, content.shape(0) * static_cast<std::int64_t>(moves.size() / 2));
    held->shape = content.attr("shape");
    hold_views(*held, moves, content.shape(0), content.shape(1), true);
    const lpkernel::Kernels& run = lpkernel::kernels(isa);
    const auto side = static_cast<int>(content.shape(1));
    const auto count = static_cast<std::int64_t>(moves.size() / 2);  // of searches, one after the other
    const lpkernel::LayerTuning tuning{held->views ? 0 : pairs, summed, screened / count, coarse};
    if (in_codes) {
        const auto* rows = view<std::int32_t>(table, "table", 2);
        expect(table.shape(0) == table.shape(1) && table.shape(0) >= 1 && table.shape(0) <= lpkernel::INT16_CODES,
               "table: expected (V, V) with V of 1 to 32768");
        expect(within(rows, table.size(), 0, MOST), "table: distances are below 0");
        held->table = table;
        const auto codes = static_cast<int>(table.shape(0));
        hold_layer(*held, data, [&](const lpkernel::Content& from, std::int64_t size) {
            return lpkernel::code_layer(from, size, side, rows, codes, run, tuning);
        });
    } else {
        expect(content.shape(3) >= 1 && content.shape(3) <= 1 << 20, "content: expected 1 to 2^20 channels");
        const auto channels = static_cast<int>(content.shape(3));
        hold_layer(*held, data, [&](const lpkernel::Content& from, std::int64_t size) {
            return lpkernel::latent_layer(from, size, side, channels, run, tuning);
        });
    }
    return held;
}

// Row by row what a level at `side` reads of maps of `full` cells a side, moved by each shift. axis: low, high (side)
// and fraction (side).
std::vector<lpkernel::Corners> corners_of(const py::tuple& axis, std::int64_t full, std::int64_t side,
                                          const std::vector<std::int64_t>& shifts) {
    const auto low = axis[0].cast<py::array>(), high = axis[1].cast<py::array>(), fraction = axis[2].cast<py::array>();
    const auto *from = view<std::int64_t>(low, "low", 1), *to = view<std::int64_t>(high, "high", 1);
    const auto* part = view<double>(fraction, "fraction", 1);
    expect(low.size() == side && high.size() == side && fraction.size() == side && within(from, side, 0, full - 1) &&
               within(to, side, 0, full - 1),
           "axis: rows outside the codes");
    expect(std::all_of(part, part + side, [](double share) { return share >= 0 && share <= 1; }),
           "axis: fractions outside 0 to 1");
    std::vector<lpkernel::Corners> corners;
    const auto inside = [full](std::int64_t cell) { return std::clamp<std::int64_t>(cell, 0, full - 1); };
    for (std::size_t s = 0; s < shifts.size(); s += 2) {
        const auto at = [&](std::int64_t row, std::int64_t column) {
            return static_cast<std::int32_t>(inside(row + shifts[s]) * full + inside(column + shifts[s + 1]));
        };
        for (std::int64_t y = 0; y < side; ++y) {
            for (std::int64_t x = 0; x < side; ++x) {
                corners.push_back(
                    {at(from[y], from[x]), at(from[y], to[x]), at(to[y], from[x]), at(to[y], to[x]), part[y], part[x]});
            }
        }
    }
    return corners;
}

std::unique_ptr<HeldLayer> hold_derived(const py::array& codes, const py::array& codebook, const py::tuple& axis,
                                        const py::array& allowed, const std::string& isa, std::int64_t kept,
                                        const py::object& shifts) {
    const auto* data = view<std::int16_t>(codes, "codes", 3);
    const auto* book = view<std::int16_t>(codebook, "codebook", 2);
    expect(axis.size() == 3, "axis: expected low, high and fraction");
    const std::int64_t full = codes.shape(1), side = py::len(axis[0]), width = codebook.shape(1);
    expect(codes.shape(2) == full && full >= 1 && full <= MOST_SIDE && side >= 1 && side <= full,
           "codes: expected a square grid of 1 to 4096 cells a side, and a level of no more");
    expect(codebook.shape(0) >= 1 && codebook.shape(0) <= lpkernel::INT16_CODES && width >= 1 && width <= 1 << 20,
           "codebook: expected 1 to 32768 rows of 1 to 2^20 channels");
    auto held = std::make_unique<HeldLayer>();
    const std::vector<std::int64_t> moves = read_shifts(shifts);
    held->allowed = allowed_images(allowed, codes.shape(0) * static_cast<std::int64_t>(moves.size() / 2));
    held->shape = codes.attr("shape");
    hold_views(*held, moves, codes.shape(0), side, false);
    held->derived = std::make_unique<lpkernel::Derived>();
    lpkernel::Derived& derived = *held->derived;
    derived.full = static_cast<int>(full);
    derived.rows = static_cast<int>(codebook.shape(0));
    derived.stride = static_cast<int>((width + 7) / 8 * 8);
    while (derived.mask + 1 < static_cast<std::uint32_t>(derived.rows)) derived.mask = 2 * derived.mask + 1;
    derived.book.resize((static_cast<std::size_t>(derived.mask) + 1) * derived.stride);
    for (std::int64_t row = 0; row < derived.rows; ++row) {
        std::copy_n(book + row * width, width, derived.book.data() + row * derived.stride);
    }
    derived.corners = corners_of(axis, full, side, moves);
    derived.cells = side * side;
    const lpkernel::Kernels& run = lpkernel::kernels(isa);
    lpkernel::LayerTuning tuning{};
    tuning.kept = kept / static_cast<std::int64_t>(moves.size() / 2);
    hold_layer(*held, data, [&](const lpkernel::Content& from, std::int64_t size) {
        return lpkernel::latent_layer(from, size, static_cast<int>(side), static_cast<int>(width), run, tuning);
    });
    return held;
}

// The steps of a scale, as scan() takes them; `reach`: fewest cells a side of the scale before.
struct HeldSteps {
    lpkernel::Raster raster;
    int reach = 0;
};

std::unique_ptr<HeldSteps> hold_steps(int side, const py::array& positions, const py::array& counts,
                                      const py::array& compared, const py::array& write, const py::array& overlap,
                                      const py::object& enter) {
    expect(side >= 1 && side <= MOST_SIDE, "side: expected 1 to 4096 cells");
    const std::int64_t cells = std::int64_t{side} * side;
    lpkernel::RasterTables from{};
    from.positions = view<std::int32_t>(positions, "positions", 2);
    from.counts = view<std::int32_t>(counts, "counts", 1);
    from.compared = view<std::int32_t>(compared, "compared", 1);
    from.write = view<bool>(write, "write", 3);
    from.overlap = view<std::int32_t>(overlap, "overlap", 2);
    from.steps = positions.shape(0);
    from.patch = static_cast<int>(std::min<std::int64_t>(write.shape(1), side + 1));
    expect(positions.shape(1) == 2 && from.patch >= 1 && from.patch <= side && write.shape(0) == from.steps &&
               write.shape(2) == from.patch && counts.size() == from.steps && overlap.shape(0) == from.steps &&
               overlap.shape(1) == 2,
           "steps: positions (T, 2), counts (T), masks (T, P, P) and overlaps (T, 2) do not fit");
    expect(within(from.positions, positions.size(), 0, side - from.patch), "positions: a patch leaves the grid");
    expect(within(from.overlap, overlap.size(), 0, from.patch), "overlap: wider than the patch");
    expect(within(from.compared, compared.size(), 0, cells - 1), "compared: cells outside the grid");
    const std::int32_t* run = from.compared;
    for (std::int64_t s = 0, left = compared.size(); s < from.steps; ++s) {
        expect(from.counts[s] >= 0 && from.counts[s] <= left && (s + 1 < from.steps || from.counts[s] == left),
               "counts: expected one for each of the compared cells");
        expect(std::is_sorted(run, run + from.counts[s]), "compared: expected ascending cells of a step");
        left -= from.counts[s];
        run += from.counts[s];
    }
    std::unique_ptr<HeldSteps> held(new HeldSteps{{side, from}});
    if (enter.is_none()) return held;
    const auto tables = enter.cast<py::tuple>();
    expect(tables.size() == 3 || tables.size() == 1,
           "enter: expected i0, i1 and f of a resize, or the index of a carry");
    std::vector<std::int32_t>* resize[] = {&held->raster.i0, &held->raster.i1, &held->raster.f};
    for (std::size_t i = 0; i < tables.size(); ++i) {
        const auto table = tables[i].cast<py::array>();
        const auto* values = view<std::int32_t>(table, "enter", 1);
        expect(table.size() == side && within(values, table.size(), 0, i == 2 ? 256 : MOST_SIDE - 1),
               "enter: a table of another size, or values outside it");
        (tables.size() == 1 ? held->raster.carry : *resize[i]).assign(values, values + table.size());
        if (i < 2) held->reach = std::max(held->reach, *std::max_element(values, values + table.size()) + 1);
    }
    return held;
}

// The isolation of a layer's images at the steps of a scale.
struct HeldIsolation {
    lpkernel::ByStep by_step;
};

// The content that a layer was made from, checked.
lpkernel::Content content_of(const HeldLayer& held, const py::array& content) {
    const auto* data = view<std::int16_t>(content, "content", held.layer->codes() || held.derived ? 3 : 4);
    expect(py::tuple(content.attr("shape")).equal(held.shape), "content: not what the layer was made from");
    return held.content(data);
}

std::unique_ptr<HeldIsolation> hold_isolation(const HeldSteps& steps, const HeldLayer& held, const py::array& content,
                                              int threads, const std::string& isa) {
    const lpkernel::Layer& layer = *held.layer;
    expect(steps.raster.side == layer.side(), "isolation: the layer has another side");
    expect_threads(threads);
    const lpkernel::Content from = content_of(held, content);
    const lpkernel::Kernels& run = lpkernel::kernels(isa);
    const Released free;
    return std::unique_ptr<HeldIsolation>(
        new HeldIsolation{lpkernel::isolation(steps.raster, layer, from, run, threads)});
}

// One scale from (steps, layer, content, start or None, isolation or None), and what is taken off its distances.
lpkernel::Scale parse(const py::tuple& from, const HeldLayer* before, std::int64_t images, int hubness,
                      lpkernel::ByStep& offsets) {
    expect(from.size() == 5, "scale: expected five entries");
    lpkernel::Scale scale;
    const auto& steps = from[0].cast<const HeldSteps&>();
    const auto& held = from[1].cast<const HeldLayer&>();
    scale.raster = &steps.raster;
    scale.layer = held.layer.get();
    expect(scale.raster->side == held.layer->side(), "scale: the layer has another side");
    expect(!scale.layer->has_tables() || scale.layer->summed() != scale.raster->by_cells(),
           "scale: the layer's tables are not those that the steps need");
    expect((steps.reach > 0) == (before != nullptr), "enter: expected at every scale but the first");
    if (before) {
        expect(steps.reach <= before->layer->side(), "enter: reads beyond the scale before");
        expect(held.allowed == before->allowed, "scale: layers of the same allowed images expected");
        expect(!scale.raster->carry.empty() ||
                   (!scale.layer->codes() && !before->layer->codes() && scale.layer->width() == before->layer->width()),
               "scale: layers of one bank of latents expected");
    }

    const auto content = from[2].cast<py::array>();
    const int axes = scale.layer->codes() ? 3 : 4;
    scale.content = content_of(held, content);
    if (!from[4].is_none()) {
        const lpkernel::ByStep& isolation = from[4].cast<const HeldIsolation&>().by_step;
        expect(isolation.most.size() == scale.raster->steps.size() &&
                   isolation.stride == (scale.layer->size() + lpkernel::BLOCK - 1) / lpkernel::BLOCK * lpkernel::BLOCK,
               "isolation: of other steps or images");
        offsets = lpkernel::offsets(isolation, hubness);
        scale.offsets = &offsets;
    }
    if (!from[3].is_none()) {
        const auto start = from[3].cast<py::array>();
        scale.start = view<std::int16_t>(start, "start", axes);
        scale.start_images = start.shape(0);
        bool fits = scale.start_images == 1 || scale.start_images == images;
        fits = fits && start.shape(1) == scale.layer->side() && start.shape(2) == scale.layer->side();
        fits = fits && (axes == 3 || start.shape(3) == scale.layer->width());
        expect(fits, "start: expected (1 or n, m, m) of the bank's cells");
        expect(!scale.layer->codes() || within(scale.start, start.size(), 0, scale.layer->codes() - 1),
               "start: codes outside the table");
    }
    return scale;
}

py::array_t<std::int32_t> scan(const py::list& scales, const py::array& images, std::int64_t k, std::uint64_t seed,
                               std::uint32_t first_step, int hubness, int threads, const std::string& isa,
                               const py::tuple& tuning) {
    lpkernel::Scan request;
    const auto* numbers = view<std::int64_t>(images, "images", 1);
    expect(within(numbers, images.size(), 0, std::numeric_limits<std::uint32_t>::max()), "images: outside [0, 2^32)");
    request.images.assign(numbers, numbers + images.size());
    expect(k >= 1, "k: expected at least 1");
    expect_threads(threads);
    request.k = k;
    request.seed = seed;
    request.first_step = first_step;
    expect(hubness >= 0 && hubness <= 256, "hubness: expected 0 to 256");
    request.threads = threads;
    expect(!scales.empty(), "scales: none");
    request.scales.reserve(scales.size());
    std::vector<lpkernel::ByStep> offsets(scales.size());
    const HeldLayer* before = nullptr;
    for (std::size_t s = 0; s < scales.size(); ++s) {
        const auto entries = py::object(scales[s]).cast<py::tuple>();
        request.scales.push_back(parse(entries, before, images.size(), hubness, offsets[s]));
        before = &py::object(entries[1]).cast<const HeldLayer&>();
    }
    expect(tuning.size() == 3, "tuning: expected group, split and seeded");
    request.tuning = {tuning[0].cast<std::int64_t>(), tuning[1].cast<std::int64_t>(), tuning[2].cast<std::int64_t>()};
    const std::int64_t side = request.scales.back().raster->side;
    py::array_t<std::int32_t> sources({static_cast<std::int64_t>(images.size()), side, side});
    std::int32_t* out = sources.mutable_data();
    const lpkernel::Kernels& run = lpkernel::kernels(isa);
    const Released free;
    if (!request.images.empty()) lpkernel::scan(request, run, out);
    return sources;
}

template <class T, class D>
py::tuple topk(const py::array& queries, const py::array& bank, std::int64_t k, const py::object& patch_mask,
               const py::object& candidate_mask, const py::object& weights, int threads, const std::string& isa,
               std::int64_t packed_from) {
    lpkernel::Topk<T> job{};
    job.queries = view<T>(queries, "queries", 2);
    job.bank = view<T>(bank, "bank", 2);
    job.count = queries.shape(0);
    job.width = queries.shape(1);
    job.k = k;
    job.threads = threads;
    job.packed_from = packed_from;
    expect(bank.shape(1) == job.width && bank.shape(0) <= MOST && job.width <= MOST / 4,
           "queries and bank: expected (Q, D) and (B, D), B < 2^31, D < 2^29");
    expect(k >= 1 && k <= bank.shape(0), "k: expected 1 to the bank's rows");
    expect_threads(threads);
    if (!patch_mask.is_none()) {
        const auto mask = patch_mask.cast<py::array>();
        if (mask.ndim() == 1) {
            job.shared_mask = view<bool>(mask, "patch_mask", 1);
        } else {
            job.own_mask = view<bool>(mask, "patch_mask", 2);
        }
        expect(mask.shape(mask.ndim() - 1) == job.width && (mask.ndim() == 1 || mask.shape(0) == job.count),
               "patch_mask: expected (D,) or (Q, D)");
    }
    const bool* allowed = nullptr;
    if (!candidate_mask.is_none()) {
        const auto mask = candidate_mask.cast<py::array>();
        allowed = view<bool>(mask, "candidate_mask", 1);
        expect(mask.size() == bank.shape(0), "candidate_mask: expected (B,)");
    }
    if (!weights.is_none()) {
        const auto array = weights.cast<py::array>();
        job.weights = view<double>(array, "weights", 1);
        expect(array.size() == bank.shape(0) && std::is_same_v<T, float>, "weights: expected (B,), with float32");
    }
    job.allowed = bank.shape(0);
    if (allowed) {
        job.allowed = std::count(allowed, allowed + bank.shape(0), true);
        job.rows.reserve(static_cast<std::size_t>(job.allowed));
        for (std::int64_t row = 0; row < bank.shape(0) && job.allowed < bank.shape(0); ++row) {
            if (allowed[row]) job.rows.push_back(row);
        }
    }
    py::array_t<D> distances({job.count, k});
    py::array_t<std::int64_t> indices({job.count, k});
    D* to = distances.mutable_data();
    std::int64_t* found = indices.mutable_data();
    const lpkernel::Kernels& run = lpkernel::kernels(isa);
    {
        const Released free;
        lpkernel::topk(job, run, to, found);
    }
    return py::make_tuple(distances, indices);
}

py::tuple any_topk(const py::array& queries, const py::array& bank, std::int64_t k, const py::object& patch_mask,
                   const py::object& candidate_mask, const py::object& weights, int threads, const std::string& isa,
                   std::int64_t packed_from) {
    const bool integers = py::isinstance<py::array_t<std::int16_t>>(bank);
    const auto run = integers ? topk<std::int16_t, std::int32_t> : topk<float, float>;
    return run(queries, bank, k, patch_mask, candidate_mask, weights, threads, isa, packed_from);
}

template <class T>
const T* optional_row(const py::object& given, const char* name, std::int64_t size) {
    if (given.is_none()) return nullptr;
    const auto values = given.cast<py::array>();
    const T* first = view<T>(values, name, 1);
    if (values.size() != size) throw py::value_error(std::string(name) + ": expected " + std::to_string(size));
    return first;
}

py::object group_norm(const py::array& pixels, py::array& out, std::int64_t block, int groups, const py::object& weight,
                      const py::object& bias, double eps, const py::object& mean, const py::object& variance,
                      const std::string& isa, int threads) {
    lpkernel::Norm job{};
    const bool bfloats = py::isinstance<py::array_t<std::uint16_t>>(pixels);
    if (bfloats) {
        job.bfloats = view<std::uint16_t>(pixels, "pixels", 2);
        view<std::uint16_t>(out, "out", 2);
    } else {
        job.pixels = view<float>(pixels, "pixels", 2);
        view<float>(out, "out", 2);
    }
    const std::int64_t channels = pixels.shape(1);
    job.count = pixels.shape(0), job.block = block, job.groups = groups, job.eps = eps;
    expect(out.shape(0) == job.count && out.shape(1) == channels, "out: expected the pixels' shape");
    expect_threads(threads);
    expect(job.count >= 1 && block >= 1 && job.count % block == 0, "block: expected a divisor of the pixels' number");
    expect(groups >= 1 && channels >= 1 && channels <= MOST && channels % groups == 0,
           "groups: expected a divisor of the channels");
    job.channels = static_cast<int>(channels);
    job.weight = optional_row<float>(weight, "weight", channels);
    job.bias = optional_row<float>(bias, "bias", channels);
    const auto* given_mean = optional_row<double>(mean, "mean", groups);
    const auto* given_variance = optional_row<double>(variance, "variance", groups);
    expect(!given_mean == !given_variance, "mean and variance: expected both or none");
    if (bfloats) {
        job.bfloats_out = static_cast<std::uint16_t*>(out.mutable_data());
    } else {
        job.out = static_cast<float*>(out.mutable_data());
    }
    const lpkernel::Kernels& run = lpkernel::kernels(isa);
    if (given_mean) {
        const lpkernel::Statistics by{{given_mean, given_mean + groups}, {given_variance, given_variance + groups}};
        const Released free;
        lpkernel::normalise(job, run, threads, by);
        return py::none();
    }
    py::array_t<double> sums({job.count / block, std::int64_t{groups}}),
        squares({job.count / block, std::int64_t{groups}});
    double *to_sums = sums.mutable_data(), *to_squares = squares.mutable_data();
    lpkernel::Statistics own;
    {
        const Released free;
        own = lpkernel::statistics(job, run, threads, to_sums, to_squares);
        lpkernel::normalise(job, run, threads, own);
    }
    return py::make_tuple(py::array_t<double>(groups, own.mean.data()), sums, squares);
}

py::array_t<std::int32_t> refine(const py::array& maps, const py::array& cells, const py::object& vectors, int rounds,
                                 int sweeps, std::int64_t part, std::int64_t most, int threads) {
    const auto* given = view<std::int32_t>(maps, "maps", 3);
    lpkernel::Refining job{};
    job.cells = view<std::int16_t>(cells, "cells", vectors.is_none() ? 4 : 3);
    if (vectors.is_none()) {
        expect(cells.shape(3) >= 1 && cells.shape(3) <= MOST, "cells: expected at least one value");
        job.channels = static_cast<int>(cells.shape(3));
    } else {
        const auto rows = vectors.cast<py::array>();
        job.vectors = view<std::int16_t>(rows, "vectors", 2);
        expect(rows.shape(0) >= 1 && rows.shape(1) >= 1 && rows.shape(1) <= MOST, "vectors: expected (V, C)");
        job.codes = rows.shape(0);
        job.channels = static_cast<int>(rows.shape(1));
    }
    expect(cells.shape(0) >= 1 && cells.shape(0) <= MOST && cells.shape(1) >= 1 && cells.shape(1) <= MOST_SIDE &&
               cells.shape(2) == cells.shape(1) && maps.shape(1) == cells.shape(1) && maps.shape(2) == cells.shape(1),
           "maps: expected (N, M, M) for cells (B, M, M)");
    expect(within(given, maps.size(), -1, cells.shape(0) - 1), "maps: images that the cells are not of");
    expect(rounds >= 0 && sweeps >= 0 && part >= 0 && most >= 0, "rounds, sweeps, part and most: expected 0 or more");
    expect_threads(threads);
    job.side = static_cast<int>(cells.shape(1));
    job.images = maps.shape(0);
    job.rounds = rounds;
    job.sweeps = sweeps;
    job.part = part;
    job.most = most;
    py::array_t<std::int32_t> refined({maps.shape(0), maps.shape(1), maps.shape(2)});
    job.maps = refined.mutable_data();
    std::copy(given, given + maps.size(), job.maps);
    {
        const Released free;
        lpkernel::refine(job, threads);
    }
    return refined;
}

// Whether float32 cannot tell some found distance from others: it is below the normal numbers, or infinite.
bool out_of_range(const float* distances, const std::int64_t* indices, std::int64_t count) {
    bool any = false;
    for (std::int64_t i = 0; i < count; ++i) {
        const bool odd = (distances[i] < std::numeric_limits<float>::min()) |
                         (distances[i] == std::numeric_limits<float>::infinity());
        any |= odd & (indices[i] >= 0);
    }
    return any;
}

// The value of an environment variable; os.environ sets the same ones.
std::string environment(const char* name) {
    const char* value = std::getenv(name);
    return value ? value : "";
}

// An array of another type; convert(from, count, to) makes a run of its values.
template <class To, class From, class Convert>
py::array converted(const py::array& values, int threads, const Convert& convert) {
    constexpr std::int64_t PIECE = 1 << 18;
    py::array_t<To> made(std::vector<py::ssize_t>(values.shape(), values.shape() + values.ndim()));
    const auto* from = static_cast<const From*>(values.data());
    To* const to = made.mutable_data();
    const std::int64_t count = values.size();
    {
        const Released free;  // not longer: what is returned may be counted
        lpkernel::parallel((count + PIECE - 1) / PIECE, threads, [&](std::int64_t piece) {
            const std::int64_t first = piece * PIECE;
            convert(from + first, std::min(PIECE, count - first), to + first);
            lpkernel::poll();
        });
    }
    return made;
}

py::array widened(const py::array& values, int threads) {
    const bool dense = values.flags() & py::array::c_style;
    const auto place = reinterpret_cast<std::uintptr_t>(values.data());
    const auto size = static_cast<std::uintptr_t>(values.itemsize());  // 0 for np.void of no bytes
    expect(dense && size > 0 && place % size == 0, "values: expected a dense array");
    expect_threads(threads);
    const lpkernel::Kernels& run = lpkernel::kernels("");
    const auto copy = [](const auto* from, std::int64_t count, std::int16_t* to) { std::copy_n(from, count, to); };
    if (py::isinstance<py::array_t<std::uint8_t>>(values)) {
        return converted<std::int16_t, std::uint8_t>(values, threads, copy);
    }
    if (py::isinstance<py::array_t<std::int8_t>>(values)) {
        return converted<std::int16_t, std::int8_t>(values, threads, copy);
    }
    if (py::isinstance<py::array_t<std::uint16_t>>(values)) {
        return converted<float, std::uint16_t>(values, threads, run.widen);
    }
    expect(values.dtype().is(py::dtype("float16")), "values: expected float16, the bits of bfloat16, uint8 or int8");
    return converted<float, std::uint16_t>(values, threads, run.widen_half);
}

py::tuple ends(const py::array& rows, int threads) {
    constexpr std::int64_t PIECE = 1 << 18;
    const auto* values = view<std::int16_t>(rows, "rows", 2);
    expect(rows.size() > 0, "rows: expected some");
    expect_threads(threads);
    const std::int64_t count = rows.size(), pieces = (count + PIECE - 1) / PIECE;
    std::vector<std::pair<std::int16_t, std::int16_t>> found(static_cast<std::size_t>(pieces));
    {
        const Released free;
        lpkernel::parallel(pieces, threads, [&](std::int64_t piece) {
            const std::int64_t first = piece * PIECE;
            found[static_cast<std::size_t>(piece)] = ends_of(values + first, std::min(PIECE, count - first));
            lpkernel::poll();
        });
    }
    std::pair<std::int16_t, std::int16_t> all = found[0];
    for (const auto& [least, largest] : found) all = {std::min(all.first, least), std::max(all.second, largest)};
    return py::make_tuple(all.first, all.second);
}

// masked_topk of float32 rows in the plain case, with little overhead; None for anything else.
py::object plain_topk(const py::object& queries, const py::object& bank, std::int64_t k, int threads,
                      std::int64_t packed_from, bool by_auto) {
    using Rows = py::array_t<float, py::array::c_style>;
    if (!Rows::check_(queries) || !Rows::check_(bank) || !can_run(threads)) return py::none();
    const auto q = py::reinterpret_borrow<py::array>(queries), b = py::reinterpret_borrow<py::array>(bank);
    if (q.ndim() != 2 || b.ndim() != 2 || q.shape(1) != b.shape(1) || k < 1 || k > b.shape(0)) return py::none();
    if (b.shape(0) > MOST || b.shape(1) > MOST / 4) return py::none();
    const auto *from = static_cast<const float*>(q.data()), *rows = static_cast<const float*>(b.data());
    if ((reinterpret_cast<std::uintptr_t>(from) | reinterpret_cast<std::uintptr_t>(rows)) % alignof(float)) {
        return py::none();
    }
    if (by_auto && !environment("LPKERNEL_BACKEND").empty()) return py::none();
    const std::string isa = environment("LPKERNEL_ISA");
    const auto known = lpkernel::available();
    if (!isa.empty() && std::find(known.begin(), known.end(), isa) == known.end()) return py::none();
    lpkernel::Topk<float> job{};
    job.queries = from;
    job.bank = rows;
    job.count = q.shape(0);
    job.width = q.shape(1);
    job.k = k;
    job.threads = threads;
    job.packed_from = packed_from;
    job.allowed = b.shape(0);
    py::array_t<float> distances({job.count, k});
    py::array_t<std::int64_t> indices({job.count, k});
    float* to = distances.mutable_data();
    std::int64_t* found = indices.mutable_data();
    const lpkernel::Kernels& run = lpkernel::kernels(isa);
    bool odd;
    const auto search = [&] {
        lpkernel::topk(job, run, to, found);
        odd = out_of_range(to, found, job.count * k);
    };
    if (lpkernel::soon(job)) {
        search();
    } else {
        const Released free;
        search();
    }
    return py::make_tuple(distances, indices, odd);
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
    module.doc() = "Compiled CPU code of lpkernel; reach it through lpkernel._native.";
    py::dict limits;
    limits["INT16_CODES"] = lpkernel::INT16_CODES;
    limits["MOST_REFERENCES"] = lpkernel::MOST_REFERENCES;
    limits["MOST_SIDE"] = MOST_SIDE;
    module.attr("LIMITS") = limits;
    module.def("philox4x32_10", &lpkernel::philox4x32_10, py::arg("counter"), py::arg("key"),
               "Four words of Philox 4x32-10 from a counter of four and a key of two, each in [0, 2**32).");
    module.def("draw_index", &lpkernel::draw_index, py::arg("u"), py::arg("count"),
               "(u * count) >> 32 for u in [0, 2**32) and count in [1, 2**32).");
    module.def("trim", &trim, "Gives memory that was freed back to the system, where the C library holds on to it.");
    module.def("build_info", &build_info, "How this file was compiled: compiler, cxx_standard, isa, assertions.");
    py::class_<HeldLayer>(module, "Layer", "The allowed images of a bank at one side, laid out for scan().")
        .def(
            py::init(&hold), py::arg("content"), py::arg("table"), py::arg("allowed"), py::arg("isa"), py::arg("pairs"),
            py::arg("summed"), py::arg("screened"), py::arg("coarse"), py::arg("shifts") = py::none(),
            "content (B, m, m, C) int16 latents with any table, or (B, m, m) int16 codes and their (V, V) int32 table; "
            "allowed (A,) int64 increasing; isa as available() or ''; pairs: up to how many images pairs are kept, "
            "summed or, for steps that cut or carry, by cells; "
            "screened: from how many images codes are screened by bounds; coarse: from how many latents are; shifts: "
            "None, or (S, 2) int64 of the views that `allowed` numbers, see lpkernel.views.")
        .def(py::init(&hold_derived), py::arg("codes"), py::arg("codebook"), py::arg("axis"), py::arg("allowed"),
             py::arg("isa"), py::arg("kept"), py::arg("shifts") = py::none(),
             "The latents of a level that is not kept: codes (B, M, M) int16; codebook (V, C) int16; axis: low, high "
             "(m,) int64 and fraction (m,) float64 of the resize; kept: bytes of it, up to which some channels are; "
             "shifts "
             "as above.")
        .def_property_readonly("size", [](const HeldLayer& held) { return held.layer->size(); })
        .def_property_readonly("bytes", [](const HeldLayer& held) { return held.layer->bytes(); });
    py::class_<HeldSteps>(module, "Steps", "The steps of a scale, read once for scan().")
        .def(
            py::init(&hold_steps), py::arg("side"), py::arg("positions"), py::arg("counts"), py::arg("compared"),
            py::arg("write"), py::arg("overlap"), py::arg("enter"),
            "As in lpkernel.plan.Scale; compared: the cells of all steps in one (.,) int32, counts (T,) int32 of each; "
            "enter: (i0, i1, f) of a resize, (index,) of a carry, or None at the first scale.")
        .def_property_readonly("by_cells", [](const HeldSteps& held) { return held.raster.by_cells(); });
    py::class_<HeldIsolation>(module, "Isolation",
                              "How far a layer's images are from the others at the steps of a scale.")
        .def(py::init(&hold_isolation), py::arg("steps"), py::arg("layer"), py::arg("content"), py::arg("threads"),
             py::arg("isa"))
        .def_property_readonly(
            "bytes", [](const HeldIsolation& held) { return held.by_step.values.size() * sizeof(std::int32_t); });
    module.def(
        "scan", &scan, py::arg("scales"), py::arg("images"), py::arg("k"), py::arg("seed"), py::arg("first_step"),
        py::arg("hubness"), py::arg("threads"), py::arg("isa"), py::arg("tuning"),
        "Source map (n, M, M) int32. scales: (steps, layer, content, start or None, isolation or None) each; hubness: "
        "256ths of it that are taken off; tuning: (group, split, seeded).");
    module.def(
        "refine", &refine, py::arg("maps"), py::arg("cells"), py::arg("vectors"), py::arg("rounds"), py::arg("sweeps"),
        py::arg("part"), py::arg("most"), py::arg("threads"),
        "Source maps (N, M, M) int32 with seams refined; cells (B, M, M) int16 codes of vectors (V, C) int16, or "
        "(B, M, M, C) int16 and None.");
    module.def(
        "widened", &widened, py::arg("values"), py::arg("threads"),
        "float16, and uint16 as the bits of bfloat16, as float32; uint8 and int8 as int16; of any shape, dense.");
    module.def("ends", &ends, py::arg("rows"), py::arg("threads"),
               "The least and the largest value of int16 rows (N, D), at least one.");
    module.def("plain_topk", &plain_topk, py::arg("queries"), py::arg("bank"), py::arg("k"), py::arg("threads"),
               py::arg("packed_from"), py::arg("by_auto"),
               "(distances, indices, whether any distance is out of float32's range), or None where the arrays are not "
               "float32 (Q, D) and (B, D) as they are searched, or the environment asks for what does not run here.");
    module.def("masked_topk", &any_topk, py::arg("queries"), py::arg("bank"), py::arg("k"), py::arg("patch_mask"),
               py::arg("candidate_mask"), py::arg("weights"), py::arg("threads"), py::arg("isa"),
               py::arg("packed_from"),
               "(distances, indices), both (Q, k); see lpkernel.masked_topk. Of int16, D * (max - min)^2 < 2^31.");
    module.def(
        "group_norm", &group_norm, py::arg("pixels"), py::arg("out"), py::arg("block"), py::arg("groups"),
        py::arg("weight"), py::arg("bias"), py::arg("eps"), py::arg("mean"), py::arg("variance"), py::arg("isa"),
        py::arg("threads"),
        "Normalises pixels (p, C), float32 or the bits of bfloat16 as uint16, to out, of the same kind, which they may "
        "be, by mean and variance (G,) float64 if they are given; else by its own, and returns mean (G,), and sums and "
        "squares of each block of pixels, (p / block, G).");
}
