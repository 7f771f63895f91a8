// lpkernel._cpu: the C++ code as a Python module. No torch headers: a build needs a compiler and pybind11 only.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "common/philox.h"
#include "cpu/layer.h"
#include "cpu/parallel.h"
#include "cpu/scan.h"
#include "cpu/topk.h"

namespace py = pybind11;

namespace {

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

// The array's memory, after a look at its type, contiguity and number of axes. Arrays that are written elsewhere while
// a call runs are the caller's error.
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
// thread only, so only there is it asked for them.
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

void expect(bool right, const char* what) {
    if (!right) throw py::value_error(what);
}

template <class T>
bool within(const T* values, std::int64_t count, std::int64_t low, std::int64_t high) {
    constexpr std::int64_t PIECE = 1 << 24;
    const Released free;
    for (std::int64_t first = 0; first < count; first += PIECE) {
        const auto ends = std::minmax_element(values + first, values + std::min(count, first + PIECE));
        if (*ends.first < low || *ends.second > high) return false;
        lpkernel::poll();
    }
    return true;
}

constexpr std::int64_t MOST = std::numeric_limits<std::int32_t>::max();
constexpr int LARGEST_SIDE = 4096;

// A layer, with what it borrows.
struct HeldLayer {
    std::unique_ptr<lpkernel::Layer> layer;
    py::object table;
    std::vector<std::int64_t> allowed;
    py::tuple shape;
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

std::unique_ptr<HeldLayer> hold(const py::array& content, const py::array& table, const py::array& allowed,
                                const std::string& isa, int pairs, std::int64_t screened, std::int64_t coarse) {
    const bool in_codes = content.ndim() == 3;
    const auto* data = view<std::int16_t>(content, "content", in_codes ? 3 : 4);
    expect(content.shape(1) == content.shape(2) && content.shape(1) >= 1 && content.shape(1) <= LARGEST_SIDE,
           "content: expected a square grid of 1 to 4096 cells a side");
    auto held = std::make_unique<HeldLayer>();
    held->allowed = allowed_images(allowed, content.shape(0));
    held->shape = content.attr("shape");
    const lpkernel::Kernels& run = lpkernel::kernels(isa);
    const lpkernel::Content from{data, held->allowed.data()};
    const auto size = static_cast<std::int64_t>(held->allowed.size());
    const auto side = static_cast<int>(content.shape(1));
    if (in_codes) {
        const auto* rows = view<std::int32_t>(table, "table", 2);
        expect(table.shape(0) == table.shape(1) && table.shape(0) >= 1 && table.shape(0) <= 32768,
               "table: expected (V, V) with V of 1 to 32768");
        expect(within(rows, table.size(), 0, MOST), "table: distances are below 0");
        expect(within(data, content.size(), 0, table.shape(0) - 1), "codes: outside the table");
        held->table = table;
        const Released free;
        held->layer =
            lpkernel::code_layer(from, size, side, rows, static_cast<int>(table.shape(0)), run, pairs, screened);
    } else {
        expect(content.shape(3) >= 1 && content.shape(3) <= 1 << 20, "content: expected 1 to 2^20 channels");
        const Released free;
        held->layer = lpkernel::latent_layer(from, size, side, static_cast<int>(content.shape(3)), run, pairs, coarse);
    }
    return held;
}

// The steps of a scale, as scan() takes them; `reach`: cells a side that the scale before must have at least.
struct HeldSteps {
    lpkernel::Raster raster;
    int reach = 0;
};

std::unique_ptr<HeldSteps> hold_steps(int side, const py::array& positions, const py::array& compare,
                                      const py::array& write, const py::object& resize) {
    expect(side >= 1 && side <= LARGEST_SIDE, "side: expected 1 to 4096 cells");
    const auto* corners = view<std::int32_t>(positions, "positions", 2);
    const auto* compared = view<bool>(compare, "compare", 3);
    const auto* written = view<bool>(write, "write", 3);
    const std::int64_t steps = positions.shape(0), patch = compare.shape(1);
    expect(positions.shape(1) == 2 && patch >= 1 && patch <= side && compare.shape(0) == steps &&
               compare.shape(2) == patch && py::tuple(compare.attr("shape")).equal(write.attr("shape")),
           "steps: positions (T, 2) and masks (T, P, P) do not fit");
    expect(within(corners, positions.size(), 0, side - patch), "positions: a patch leaves the grid");
    std::unique_ptr<HeldSteps> held(new HeldSteps{{side, corners, compared, written, steps, static_cast<int>(patch)}});
    if (resize.is_none()) return held;
    const auto tables = resize.cast<py::tuple>();
    expect(tables.size() == 3, "resize: expected i0, i1 and f");
    std::vector<std::int32_t>* into[] = {&held->raster.i0, &held->raster.i1, &held->raster.f};
    for (int i = 0; i < 3; ++i) {
        const auto table = tables[i].cast<py::array>();
        const auto* values = view<std::int32_t>(table, "resize", 1);
        expect(table.size() == side && within(values, table.size(), 0, i == 2 ? 256 : LARGEST_SIDE - 1),
               "resize: a table of another size, or values outside it");
        into[i]->assign(values, values + table.size());
        if (i < 2) held->reach = std::max(held->reach, *std::max_element(values, values + table.size()) + 1);
    }
    return held;
}

// One scale from (steps, layer, content, start or None).
lpkernel::Scale parse(const py::tuple& from, const lpkernel::Scale* before, std::int64_t images) {
    expect(from.size() == 4, "scale: expected four entries");
    lpkernel::Scale scale;
    const auto& steps = from[0].cast<const HeldSteps&>();
    const auto& held = from[1].cast<const HeldLayer&>();
    scale.raster = &steps.raster;
    scale.layer = held.layer.get();
    expect(scale.raster->side == held.layer->side(), "scale: the layer has another side");
    expect((steps.reach > 0) == (before != nullptr), "resize: expected at every scale but the first");
    if (before) {
        expect(steps.reach <= before->raster->side, "resize: reads beyond the scale before");
        expect(!scale.layer->codes() && scale.layer->width() == before->layer->width() &&
                   scale.layer->size() == before->layer->size(),
               "scale: layers of one bank of latents expected");
    }

    const auto content = from[2].cast<py::array>();
    const int axes = scale.layer->codes() ? 3 : 4;
    scale.content = {view<std::int16_t>(content, "content", axes), held.allowed.data()};
    expect(py::tuple(content.attr("shape")).equal(held.shape), "content: not what the layer was made from");
    if (!from[3].is_none()) {
        const auto start = from[3].cast<py::array>();
        scale.start = view<std::int16_t>(start, "start", axes);
        scale.start_images = start.shape(0);
        bool fits = scale.start_images == 1 || scale.start_images == images;
        for (int axis = 1; axis < axes; ++axis) fits = fits && start.shape(axis) == content.shape(axis);
        expect(fits, "start: expected (1 or n, m, m) of the bank's cells");
        expect(!scale.layer->codes() || within(scale.start, start.size(), 0, scale.layer->codes() - 1),
               "start: codes outside the table");
    }
    return scale;
}

py::array_t<std::int32_t> scan(const py::list& scales, const py::array& images, std::int64_t k, std::uint64_t seed,
                               int threads, const std::string& isa, const py::tuple& tuning) {
    lpkernel::Scan request;
    const auto* numbers = view<std::int64_t>(images, "images", 1);
    expect(within(numbers, images.size(), 0, std::numeric_limits<std::uint32_t>::max()), "images: outside [0, 2^32)");
    request.images.assign(numbers, numbers + images.size());
    expect(k >= 1 && threads >= 1 && threads <= 4096, "k and threads: expected at least 1");
    request.k = k;
    request.seed = seed;
    request.threads = threads;
    expect(!scales.empty(), "scales: none");
    request.scales.reserve(scales.size());
    for (const py::handle entry : scales) {
        const lpkernel::Scale* before = request.scales.empty() ? nullptr : &request.scales.back();
        request.scales.push_back(parse(entry.cast<py::tuple>(), before, images.size()));
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
               const py::object& candidate_mask, int threads, const std::string& isa, std::int64_t packed_from) {
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
    expect(threads >= 1 && threads <= 4096, "threads: expected 1 to 4096");
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
    for (std::int64_t row = 0; row < bank.shape(0); ++row) {
        if (!allowed || allowed[row]) job.rows.push_back(row);
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
                   const py::object& candidate_mask, int threads, const std::string& isa, std::int64_t packed_from) {
    const bool integers = py::isinstance<py::array_t<std::int16_t>>(bank);
    const auto run = integers ? topk<std::int16_t, std::int32_t> : topk<float, float>;
    return run(queries, bank, k, patch_mask, candidate_mask, threads, isa, packed_from);
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
    module.doc() = "Compiled CPU code of lpkernel; reach it through lpkernel._native.";
    module.def("philox4x32_10", &lpkernel::philox4x32_10, py::arg("counter"), py::arg("key"),
               "Four words of Philox 4x32-10 from a counter of four and a key of two, each in [0, 2**32).");
    module.def("draw_index", &lpkernel::draw_index, py::arg("u"), py::arg("count"),
               "(u * count) >> 32 for u in [0, 2**32) and count in [1, 2**32).");
    module.def("build_info", &build_info, "How this file was compiled: compiler, cxx_standard, isa, assertions.");
    py::class_<HeldLayer>(module, "Layer", "The allowed images of a bank at one side, laid out for scan().")
        .def(
            py::init(&hold), py::arg("content"), py::arg("table"), py::arg("allowed"), py::arg("isa"), py::arg("pairs"),
            py::arg("screened"), py::arg("coarse"),
            "content (B, m, m, C) int16 latents with any table, or (B, m, m) int16 codes and their (V, V) int32 table; "
            "allowed (A,) int64 increasing; isa as available() or ''; pairs: up to how many images pairs are kept; "
            "screened: from how many images codes are screened by bounds; coarse: from how many latents are.")
        .def_property_readonly("size", [](const HeldLayer& held) { return held.layer->size(); })
        .def_property_readonly("bytes", [](const HeldLayer& held) { return held.layer->bytes(); });
    py::class_<HeldSteps>(module, "Steps", "The steps of a scale, read once for scan().")
        .def(py::init(&hold_steps), py::arg("side"), py::arg("positions"), py::arg("compare"), py::arg("write"),
             py::arg("resize"), "As in lpkernel.plan.Scale; resize: (i0, i1, f), or None at the first scale.");
    module.def(
        "scan", &scan, py::arg("scales"), py::arg("images"), py::arg("k"), py::arg("seed"), py::arg("threads"),
        py::arg("isa"), py::arg("tuning"),
        "Source map (n, M, M) int32. scales: (steps, layer, content, start or None) each; tuning: (group, split, "
        "seeded).");
    module.def("masked_topk", &any_topk, py::arg("queries"), py::arg("bank"), py::arg("k"), py::arg("patch_mask"),
               py::arg("candidate_mask"), py::arg("threads"), py::arg("isa"), py::arg("packed_from"),
               "(distances, indices), both (Q, k); see lpkernel.masked_topk. Of int16, D * (max - min)^2 < 2^31.");
}
