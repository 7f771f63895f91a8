// How masked_topk runs. The bank's allowed rows are cut into blocks of BLOCK rows, the threads take runs of blocks (and
// of queries, when there are too few blocks), and each query has a heap for each run, merged at the end. A (Q, B) array
// never exists. Few queries are compared with the rows in place (topk_rows.h), many with packed blocks (topk_packed.h),
// where all of them share the cost of packing. A small bank is packed once for all, and the threads take queries. Few
// rows are all compared before any is measured, packed (FewRows) or in place (nearest_in_place), so that a query
// measures its k nearest and little more.
//
// Ties: the lower row, see smallest.h. Limits: B < 2^31, D < 2^29, and int16 distances below 2^31; from WIDEST columns
// on no bound on rounding is proven, and each row is measured.

#include "cpu/topk.h"

#include "cpu/parallel.h"
#include "cpu/topk_packed.h"
#include "cpu/topk_rows.h"

namespace lpkernel {

namespace {

constexpr std::int64_t QUERIES = 1 << 13;  // searched at a time with packed blocks: what bounds the memory of heaps
constexpr std::int64_t PIECE = 1 << 26;    // values compared between two calls of poll()
constexpr std::int64_t ENTRIES = 1 << 22;  // of the lists of queries that are searched at a time
constexpr std::int64_t KEPT = 1 << 22;     // bytes of a bank up to which it is packed once
constexpr std::int64_t FEW = 48;           // queries per thread below which packing it costs more than it saves,
constexpr std::int64_t SMALL = 1 << 18;    // unless it takes at most these bytes: then k rows a query are measured once
constexpr std::int64_t MEASURED = 32;      // rows up to which all may be measured
constexpr std::int64_t FEW_VALUES = 128;   // of all rows, up to which all are measured for one neighbour
constexpr std::int64_t NEAR_BY = 1 << 18;  // bytes of queries that pass over a block, held in a cache

// search() on all of it, piece by piece. Queries are cut only where one block of rows with all of them is too much.
template <class T, class Search, class Heap>
void in_pieces(const Topk<T>& job, const Search& search, std::int64_t first_row, std::int64_t last_row,
               std::int64_t first, std::int64_t last, Heap* heaps) {
    const std::int64_t width = std::max<std::int64_t>(1, job.width);
    const std::int64_t queries = std::max<std::int64_t>(BLOCK, PIECE / BLOCK / width);
    const std::int64_t blocks = PIECE / BLOCK / width / std::max<std::int64_t>(1, std::min(queries, last - first));
    const std::int64_t rows = std::max<std::int64_t>(1, blocks) * BLOCK;
    for (std::int64_t row = first_row; row < last_row; row += rows) {
        for (std::int64_t q = first; q < last; q += queries) {
            search(row, std::min(last_row, row + rows), q, std::min(last, q + queries), heaps + (q - first));
            poll();
        }
    }
}

// Calls each(first, last) for the queries, up to `together` at a time.
template <class Each>
void for_queries(std::int64_t count, int threads, std::int64_t together, const Each& each) {
    constexpr std::int64_t MOST = 64;  // on a thread at a time
    const std::int64_t share = (count + threads - 1) / threads;
    const std::int64_t at_once = std::clamp<std::int64_t>((share + together - 1) / together * together, 1, MOST);
    parallel((count + at_once - 1) / at_once, threads, [&](std::int64_t task) {
        const std::int64_t end = std::min(count, (task + 1) * at_once);
        for (std::int64_t q = task * at_once; q < end; q += together) each(q, std::min(end, q + together));
    });
}

// Writes a query's heap to its slots.
template <class T, class Heap, class Value>
void write(const Topk<T>& job, std::int64_t q, Heap& heap, const Value& value, std::int64_t* indices) {
    std::int64_t at = q * job.k;
    for (const std::uint64_t key : heap.sorted()) {
        value(at, Smallest::distance(key));
        indices[at++] = row_of(job, Smallest::index(key));
    }
}

// Merges the heaps (runs, Q) of all runs and writes them to slots.
template <class T, class Heap, class Value>
void merge(const Topk<T>& job, std::int64_t runs, Heap* heaps, const Value& value, std::int64_t* indices) {
    constexpr std::int64_t TOGETHER = 64;  // fewer are not worth waking a thread
    for_queries(job.count, job.threads, TOGETHER, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t q = first; q < last; ++q) {
            for (std::int64_t r = 1; r < runs; ++r) heaps[q].merge(heaps[r * job.count + q]);
            write(job, q, heaps[q], value, indices);
        }
    });
}

// Runs search(first row, last row, first query, last query, heaps) over the threads, and merges. value(at, bits): the
// distance of a slot. heaps: any; their memory is reused.
template <class T, class Search, class Value, class Heap>
void divide(const Topk<T>& job, const Search& search, const Value& value, std::int64_t* indices,
            std::vector<Heap>& heaps) {
    const std::int64_t allowed = job.allowed, need = std::min(job.k, allowed);
    const std::int64_t blocks = (allowed + BLOCK - 1) / BLOCK;
    constexpr std::int64_t SHARED = 1 << 20;  // bytes of a bank that each thread may read whole: no heaps to merge
    const bool whole = job.count >= job.threads && allowed * job.width * static_cast<std::int64_t>(sizeof(T)) <= SHARED;
    const std::int64_t runs = whole ? 1 : std::min<std::int64_t>(blocks, job.threads);
    const std::int64_t cuts = std::min<std::int64_t>(job.count, (job.threads + runs - 1) / runs);
    heaps.resize(static_cast<std::size_t>(runs * job.count));
    for (Heap& heap : heaps) heap.reset(need);
    parallel(runs * cuts, job.threads, [&](std::int64_t task) {
        const std::int64_t r = task / cuts, c = task % cuts;
        const std::int64_t first = job.count * c / cuts, last = job.count * (c + 1) / cuts;
        in_pieces(job, search, blocks * r / runs * BLOCK, std::min(allowed, blocks * (r + 1) / runs * BLOCK), first,
                  last, heaps.data() + r * job.count + first);
    });
    merge(job, runs, heaps.data(), value, indices);
}

template <class T, class Search, class Value>
void divide(const Topk<T>& job, const Search& search, const Value& value, std::int64_t* indices) {
    if (job.k == 1) {
        std::vector<Nearest> heaps;
        divide(job, search, value, indices, heaps);
    } else {
        std::vector<Smallest> heaps;
        divide(job, search, value, indices, heaps);
    }
}

// The threads take queries, as many at a time as a cache holds.
template <class Heap, class T, class Value>
void packed_by_queries(const PackedBank<T>& bank, const Value& value, std::int64_t* indices) {
    const Topk<T>& job = bank.job();
    const std::int64_t shares = job.threads * (job.count < std::int64_t{512} * job.threads ? 1 : 4);
    const std::int64_t tile = std::clamp<std::int64_t>(NEAR_BY / 4 / (bank.columns() + 1), 48, 1008) / 48 * 48;
    parallel(shares, job.threads, [&](std::int64_t share) {
        const std::int64_t last = job.count * (share + 1) / shares;
        PackedQueries<T> queries(bank);
        typename PackedQueries<T>::Scratch scratch;
        std::vector<Heap> heaps;
        for (std::int64_t first = job.count * share / shares; first < last; first += tile) {
            const std::int64_t count = std::min(tile, last - first);
            queries.place(first, count, 1);
            heaps.resize(static_cast<std::size_t>(count));
            for (Heap& heap : heaps) heap.reset(std::min(job.k, job.allowed));
            queries.search(0, job.allowed, heaps.data(), scratch);
            for (std::int64_t q = 0; q < count; ++q) write(job, first + q, heaps[q], value, indices);
        }
    });
}

// The threads take rows.
template <class Heap, class T, class Value>
void packed_by_rows(const PackedBank<T>& bank, const Value& value, std::int64_t* indices) {
    const Topk<T>& job = bank.job();
    const std::int64_t runs = std::min<std::int64_t>(bank.blocks(), job.threads);
    const std::int64_t tile = std::clamp<std::int64_t>(ENTRIES / (2 * job.k + BLOCK), 48, QUERIES);
    PackedQueries<T> queries(bank);
    std::vector<Heap> heaps;
    std::vector<typename PackedQueries<T>::Scratch> scratch(static_cast<std::size_t>(runs));
    for (auto& own : scratch) own.room = bank.room();
    for (std::int64_t first = 0; first < job.count; first += tile) {
        Topk<T> part = job;
        part.count = std::min(tile, job.count - first);
        queries.place(first, part.count, job.threads);
        heaps.resize(static_cast<std::size_t>(runs * part.count));
        for (Heap& heap : heaps) heap.reset(std::min(job.k, job.allowed));
        parallel(runs, job.threads, [&](std::int64_t r) {
            const std::int64_t from = bank.blocks() * r / runs * BLOCK;
            const std::int64_t to = std::min(job.allowed, bank.blocks() * (r + 1) / runs * BLOCK);
            queries.search(from, to, heaps.data() + r * part.count, scratch[r]);
        });
        const std::int64_t begin = first * job.k;
        const auto place = [&](std::int64_t at, std::int32_t bits) { value(begin + at, bits); };
        merge(part, runs, heaps.data(), place, indices + begin);
    }
}

// Whether one of so few rows is wanted by so few queries that measuring all takes as long as packing them. Time packed
// / so, 16 rows, two threads: of 64, 4 queries 1.2, 8 1.0, 16 0.8; of 256, 8 1.0, 16 1.1, 64 0.7; of 1,024, 8 1.2,
// 16 1.15, 64 0.95. int16 rows are sooner compared in place.
template <class T>
bool one_of_few(const Topk<T>& job) {
    constexpr std::int64_t ROWS_OF_ONE = 16, LEAST = 8, MOST = 32;
    const bool plain = std::is_same_v<T, float> && !job.own_mask && !job.shared_mask && !job.weights;
    return plain && job.k == 1 && job.allowed <= ROWS_OF_ONE && job.count <= std::clamp(job.width / 16, LEAST, MOST);
}

// Whether so many of the few rows are wanted, or rows are so narrow, that screening for the nearest first is no gain.
// Time screened / so, ten of 16 rows, two threads: 1.4 with 250,000 queries of 2 values, 1.2 with 64, 1.0 with 16,384
// of 1,024.
template <class T>
bool wants_most(const Topk<T>& job) {
    const bool narrow = !job.own_mask && !job.shared_mask && job.width <= NARROW;
    const bool soon_done = narrow && (job.k > 1 || job.allowed * job.width <= FEW_VALUES);
    return job.allowed <= MEASURED && (job.allowed <= 3 * job.k || soon_done || one_of_few(job));
}

// Measures all rows, and places each by how many come before it.
template <class T, class Value>
void measure_all(const Topk<T>& job, const Kernels& run, const Value& value, std::int64_t* indices) {
    const auto rows = static_cast<int>(job.allowed);
    Exact<T> exact(job, run);
    exact.keep_first(rows);
    const std::int64_t together = std::clamp<std::int64_t>(Exact<T>::AT_ONCE / rows / 4 * 4, 1, 16);
    for_queries(job.count, job.threads, together, [&](std::int64_t first, std::int64_t last) {
        std::uint64_t made[Exact<T>::AT_ONCE];
        exact.first_keys(first, static_cast<int>(last - first), rows, made);
        for (std::int64_t q = first; q < last; ++q) {
            const std::uint64_t* const keys = made + (q - first) * rows;
            const std::int64_t at = q * job.k;
            if (job.k == 1) {
                const std::uint64_t least = *std::min_element(keys, keys + rows);
                value(at, Smallest::distance(least));
                indices[at] = row_of(job, Smallest::index(least));
                continue;
            }
            std::int32_t ranks[MEASURED];
            exact.rank(keys, rows, ranks);
            for (int i = 0; i < rows; ++i) {
                const std::int64_t before = ranks[i];
                if (before >= job.k) continue;
                value(at + before, Smallest::distance(keys[i]));
                indices[at + before] = row_of(job, Smallest::index(keys[i]));
            }
        }
        if (first % 1024 == 0) poll();
    });
}

// Whether FewRows is faster than other ways: than rows in place with very few queries, and than int16 for wide rows.
// Time of those / so, one thread of AVX-512, k = 1: 16 rows of 64, 16 queries 1.4; of 256, 64 1.7; of 1,024, 32 1.0, 64
// 1.7; 256 queries of 64 in 64 rows 1.2, of 256 0.9; 100,000 of 16 in 256 rows 1.1; two threads, 256 of 2 in 512 rows
// 1.15, in 1,024 1.05, in 2,048 0.96; 10,000 of 2 in 1,024 1.2, of 3 in 2,048 0.96. Two threads,
// k = 10: 256 queries of 2 in 128 rows 2.4, in 1,024 2.3, in 2,048 1.8; of 16 in 1,024 1.6; of 64 in 128 1.5, in 1,024
// 1.05, of 256 in 128 1.1, in 256 0.95; 16 of 256 in 128 1.1; 4 queries of 16 in 512 rows 1.1, of 64 0.7, 12 0.95.
bool are_few(const Topk<float>& job) {
    constexpr std::int64_t LEAST = 4, WIDTH_OF_ONE = 24;  // queries, and values of a row for each of them
    constexpr std::int64_t WIDEST_FEW = 2048;
    const bool usual = !job.shared_mask && !job.own_mask && !job.weights && job.width <= WIDEST_FEW;
    if (!usual || job.count < LEAST || one_of_few(job)) return false;
    if (job.k == 1) {
        const bool held = job.width >= 2 && job.width <= HELD_COLUMNS;
        const std::int64_t most = held ? MOST_FEW / 2 : job.width < 32 ? 256 : job.width < 128 ? 64 : 32;
        return job.allowed <= most && job.width <= WIDTH_OF_ONE * job.count;
    }
    const std::int64_t most = job.width < 32 ? MOST_FEW : job.width < 128 ? MOST_FEW / 2 : 128;
    const std::int64_t width = job.count < job.packed_from ? 6 : 16;
    return job.k <= MOST_NEAREST && job.allowed > MEASURED && job.allowed <= most && job.width <= width * job.count;
}

// The nearest of few rows. Returns false, and writes nothing, if there is a row that is to be measured anyway.
template <class Heap, class Value>
bool nearest_of_few(const Topk<float>& job, const Kernels& run, const Value& value, std::int64_t* indices) {
    constexpr std::int64_t AT_ONCE = 256;
    PackedBank<float> bank(job, run, false);
    bank.keep();
    if (bank.odd()) return false;
    std::vector<const float*> rows(static_cast<std::size_t>(job.allowed));
    for (std::int64_t a = 0; a < job.allowed; ++a) rows[a] = bank_row(job, a);
    const std::int64_t most = job.threads * (job.threads == 1 || job.count < AT_ONCE * job.threads ? 1 : 4);
    const std::int64_t shares = std::clamp<std::int64_t>(job.count / 8, 1, most);
    parallel(shares, job.threads, [&](std::int64_t share) {
        Aligned<float> placed(static_cast<std::size_t>(PLACED * job.width));
        const std::int64_t k = job.k;
        std::vector<std::int32_t> nearest(static_cast<std::size_t>(AT_ONCE * k));
        std::vector<float> distances(static_cast<std::size_t>(AT_ONCE * k));
        FewRows few = bank.few();
        few.rows = rows.data();
        few.placed = placed.data();
        few.nearest = nearest.data();
        few.distances = distances.data();
        const std::int64_t last = job.count * (share + 1) / shares;
        for (std::int64_t first = job.count * share / shares; first < last; first += AT_ONCE) {
            few.queries = static_cast<int>(std::min(AT_ONCE, last - first));
            few.query = job.queries + first * job.width;
            run.few_rows(few);
            for (int i = 0; i < few.queries; ++i) {
                if (nearest[i * k] >= 0) {
                    for (std::int64_t slot = 0; slot < k; ++slot) {
                        value((first + i) * k + slot, to_bits(distances[i * k + slot]));
                        indices[(first + i) * k + slot] = row_of(job, nearest[i * k + slot]);
                    }
                    continue;
                }
                Heap heap;
                heap.reset(k);
                for (std::int64_t a = 0; a < job.allowed; ++a) bank.exact()(first + i, a, heap);
                write(job, first + i, heap, value, indices);
            }
            poll();
        }
    });
    return true;
}

// Whether rows in place are so few that all are compared before any is measured. Time otherwise / so, two threads,
// k = 10: one query of 256 in 128 rows 1.2, of 64 in 1,024 1.15; 4 of 256 in 1,024 1.8, 8 1.3; k = 1: one query 0.98, 4
// of 256 in 1,024 1.75.
bool are_few_in_place(const Topk<float>& job) {
    constexpr std::int64_t MOST_ROWS = 2048, MOST_NEEDED = 24, VALUES = 1 << 26;  // compared in some milliseconds
    const bool several = job.k > 1 || job.count > 1;
    return several && !job.weights && job.allowed <= MOST_ROWS && std::min(job.k, job.allowed) <= MOST_NEEDED &&
           job.count * job.allowed * job.width < VALUES;
}

// Compares few rows in place. Returns false, and writes nothing, if that does not tell which are nearest.
template <class Heap, class Value>
bool few_in_place(const Topk<float>& job, const Kernels& run, const Value& value, std::int64_t* indices) {
    std::vector<Heap> heaps(static_cast<std::size_t>(job.count));
    for (Heap& heap : heaps) heap.reset(std::min(job.k, job.allowed));
    if (!nearest_in_place(job, run, Exact<float>(job, run), heaps)) return false;
    for (std::int64_t q = 0; q < job.count; ++q) write(job, q, heaps[q], value, indices);
    return true;
}

template <class Heap, class T, class Value>
void packed(const Topk<T>& job, const Kernels& run, const Value& value, std::int64_t* indices) {
    PackedBank<T> bank(job, run);
    const bool few = job.count < FEW * job.threads && (job.k == 1 || bank.packed_bytes() > SMALL);
    const bool many = !few || bank.blocks() < job.threads;
    if (!many || (bank.packed_bytes() > KEPT && bank.blocks() >= job.threads)) {
        return packed_by_rows<Heap>(bank, value, indices);
    }
    bank.keep();
    packed_by_queries<Heap>(bank, value, indices);
}

// Fills every slot with `empty`; returns whether there is anything to find.
template <class T, class D>
bool begin(const Topk<T>& job, D empty, D* distances, std::int64_t* indices) {
    std::fill_n(distances, job.count * job.k, empty);
    std::fill_n(indices, job.count * job.k, -1);
    return job.allowed > 0 && job.count > 0;
}

template <class T, class Value>
void packed(const Topk<T>& job, const Kernels& run, const Value& value, std::int64_t* indices) {
    if (job.k == 1) {
        packed<Nearest>(job, run, value, indices);
    } else {
        packed<Smallest>(job, run, value, indices);
    }
}

// Measures each row, one after the other.
template <class T, class Value>
void each_row(const Topk<T>& job, const Kernels& run, const Value& value, std::int64_t* indices) {
    const Exact<T> exact(job, run);
    const auto search = [&](std::int64_t first_row, std::int64_t last_row, std::int64_t first, std::int64_t last,
                            auto* heaps) {
        for (std::int64_t q = first; q < last; ++q) {
            for (std::int64_t a = first_row; a < last_row; ++a) exact(q, a, heaps[q - first]);
        }
    };
    divide(job, search, value, indices);
}

// How many threads a search is worth. One takes some 10 us to wake up: what takes up to 50 us asks only those awake.
template <class T>
int threads_for(const Topk<T>& job) {
    constexpr double BRIEF = 1 << 20;
    if (job.threads == 1 || soon(job)) return 1;
    return work_of(job) < BRIEF && !again() ? 1 : job.threads;
}

}  // namespace

void topk(const Topk<std::int16_t>& asked, const Kernels& run, std::int32_t* distances, std::int64_t* indices) {
    Topk<std::int16_t> job = asked;
    job.threads = threads_for(job);
    if (!begin(job, Smallest::ANY, distances, indices)) return;
    const auto value = [&](std::int64_t at, std::int32_t bits) { distances[at] = bits; };
    if (wants_most(job)) {
        measure_all(job, run, value, indices);
    } else if (job.width == 1 && job.own_mask) {  // the only width at which differences may leave int16
        each_row(job, run, value, indices);
    } else if (job.width > 1 && (job.own_mask || job.count < job.packed_from || job.width >= WIDEST)) {
        divide(job, integer_rows(job, run), value, indices);
    } else {
        packed(job, run, value, indices);
    }
}

void topk(const Topk<float>& asked, const Kernels& run, float* distances, std::int64_t* indices) {
    Topk<float> job = asked;
    job.threads = threads_for(job);
    if (!begin(job, std::numeric_limits<float>::infinity(), distances, indices)) return;
    const auto value = [&](std::int64_t at, std::int32_t bits) { distances[at] = from_bits(bits); };
    if (are_few(job)) {
        constexpr double ALONE = 3 << 16;  // values that FewRows compares for one neighbour while another thread begins
        Topk<float> few = job;
        if (job.k == 1 && work_of(job) < ALONE) few.threads = 1;
        const bool done = job.k == 1 ? nearest_of_few<Nearest>(few, run, value, indices)
                                     : nearest_of_few<Smallest>(few, run, value, indices);
        if (done) return;
    }
    if (wants_most(job)) {
        measure_all(job, run, value, indices);
    } else if (job.width >= WIDEST) {  // no screening bound is proven
        each_row(job, run, value, indices);
    } else if (job.own_mask || job.count < job.packed_from) {
        if (are_few_in_place(job) && (job.k == 1 ? few_in_place<Nearest>(job, run, value, indices)
                                                 : few_in_place<Smallest>(job, run, value, indices))) {
            return;
        }
        divide(job, float_rows(job, run), value, indices);
    } else {
        packed(job, run, value, indices);
    }
}

}  // namespace lpkernel
