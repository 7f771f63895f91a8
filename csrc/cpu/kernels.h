// The inner loops that exist once for each instruction set, as a table of functions, and the choice of the table.
//
// BLOCK bank images are searched together, one vector lane each: data of a block is laid out with the image as the
// last axis, so that no sum runs across lanes. All integers are exact: sums are taken modulo 2^32, and every
// finished (or partial) squared distance is below 2^31.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace lpkernel {

constexpr int BLOCK = 64;  // bank images of a block; masks of a block are 64 bits
constexpr int MOST_BLOCKS = 32;
constexpr int GROUP = 4;          // queries that share one reading of a block
constexpr int NEAR = 16;          // images whose distances are summed together by LeastSums
constexpr int COARSE = 6;         // channels that a coarse comparison uses
constexpr int ROWS = 16;          // bank rows compared together in place
constexpr int NARROW = 16;        // most columns of rows whose squares are added one by one
constexpr int HELD_COLUMNS = 4;   // most columns of rows whose queries are held in registers, and of narrow_rows
constexpr int MOST_FEW = 2048;    // rows of FewRows
constexpr int PLACED = 12;        // queries that FewRows compares at once
constexpr int MOST_NEAREST = 12;  // of FewRows
constexpr int LISTED = 256;       // rows that may be among these, and are measured
constexpr int ROW_STEP = 32;      // values of the widest vector
constexpr int GROUPS = 128;       // of codes, each of two halves
constexpr int GROUPED = 512;      // bank images of a tile of groups of codes

alignas(64) constexpr std::int32_t NOTHING[BLOCK] = {};  // to be taken off distances

// Squared distances of up to GROUP queries to a block of bank images:
//   out[q][b] = own_norm[q] - less[b] + sum over cells and channels (bank^2 - 2 * bank * query)
// bank: (cells of the level, pairs, BLOCK, 2) int16, channels in pairs; norms: (cells of the level, BLOCK) int32,
// each cell's squared norm. cells: which cells are compared. query[q]: (count, pairs, 2) int16, own_norms[q]:
// (count) each compared cell's squared norm. After every few cells the block is abandoned if every partial distance
// of every query is above its limit. found[q]: bit b if out[q][b] <= limits[q]; lanes beyond `lanes` are 0.
struct LatentBlock {
    const std::int16_t* bank;
    const std::int32_t* norms;
    const std::int32_t* cells;
    const std::int32_t* less;  // (BLOCK)
    int count, pairs, lanes, queries;
    const std::int16_t* query[GROUP];
    const std::int32_t* own_norms[GROUP];
    std::int32_t limits[GROUP];
    std::int32_t* out;     // (GROUP, BLOCK)
    std::uint64_t* found;  // (GROUP)
};

// Squared distances of single cells to the images of one block:
//   out[i][b] = sum over channels of (bank[cells[i]][b] - values[i])^2, modulo 2^32
// bank and norms as in LatentBlock.
struct CellRows {
    const std::int16_t* bank;
    const std::int32_t* norms;
    const std::int32_t* cells;
    const std::int16_t* values;  // (count, width)
    int count, width, lanes;     // lanes is a multiple of 16, up to BLOCK
    std::int32_t* out;           // (count, lanes)
};

// A rectangle of cells that one step wrote. Its corners are entries of a table of sums over the cells above and to the
// left, one row and one column longer than the grid.
struct Box {
    std::int32_t writer;
    std::int32_t top_left, top_right, low_left, low_right;
};

// Distances of one image's compared cells to all images of a small bank:
//   out[b] = sum over boxes of (low_right - top_right - low_left + top_left)[chosen[writer]][b]
//          + sum over carried cells of own[cell][b] - less[b], modulo 2^32
// tables: (corners, images, lanes); own: (cells, lanes); less: (lanes).
struct SmallStep {
    const std::int32_t* tables;
    const std::int32_t* less;
    const Box* boxes;
    const std::int32_t* chosen;  // (steps) the image that each step copied
    const std::int32_t* own;
    const std::int32_t* carried;
    int box_count, carried_count, images, lanes;  // lanes is a multiple of 16, up to BLOCK
    std::int32_t* out;                            // (lanes)
};

// The same where every cell has a row of its own:
//   out[b] = sum over i of rows[cells[i]][b] - less[b], modulo 2^32
struct RowSums {
    const std::int32_t* const* rows;  // (cells of the level) rows of `lanes`
    const std::int32_t* cells;
    const std::int32_t* less;  // (lanes)
    int count, lanes;          // lanes is a multiple of 16, up to BLOCK
    std::int32_t* out;         // (lanes)
};

// The smallest distances of one image, over the compared cells of each step, to the images of some lanes:
//   distance[s][lane] = sum over boxes of step s and cells of the box of rows[cell][lane], modulo 2^32
// ends[s]: number of boxes of the steps up to s inclusive; a box's writer is not read. Of `lanes` lanes, up to NEAR,
// `left_out` is skipped (-1: none). least: (steps, nearest), ascending, of this call and those before. sums:
// ((side + 1)^2, NEAR) for its own use, whose first row and column must be zero.
struct LeastSums {
    const std::int32_t* const* rows;  // (side * side) rows of NEAR
    int side, lanes, left_out;
    const Box* boxes;
    const std::int32_t* ends;
    int steps, nearest;
    std::int32_t* sums;
    std::int32_t* least;
};

// Screening of a block of packed float rows for any number of queries, lanes = rows:
//   scores[q][b] = norms[b] + sum over i of query[q][i] * bank[i][b]
// query is already multiplied by -2. found[q]: bit b if scores[q][b] <= limits[q]; lanes beyond `lanes` are 0, and
// norms are +inf there. No score is NaN.
// With `reach`, the limit of a query whose least score m is within it is first lowered to
// m + reach[q] * reach_scale + reach_more, if that is lower.
struct FloatBlock {
    const float* bank;   // (width, BLOCK)
    const float* norms;  // (BLOCK)
    std::int64_t width;
    int lanes, queries;
    const float* query;    // (queries, width)
    float* limits;         // (queries)
    std::uint64_t* found;  // (queries)
    const float* reach;    // (queries) or nullptr
    float reach_scale, reach_more;
    float* scores;  // (queries, BLOCK), of some lanes from `lanes` on, too
};

// The same of rows and queries that are rounded to int16, two values side by side:
//   scores[q][b] = norms[b] + query_scales[q] * (scales[b] * sum over i of query[q][i] * bank[i][b])
// The sum is below 2^31 and exact; it, both products and the score are rounded once each. `floats` has no bank and no
// query, and its width is the number of pairs.
struct RoundedBlock {
    FloatBlock floats;
    const std::int16_t* bank;   // (pairs, BLOCK, 2)
    const float* scales;        // (BLOCK)
    const std::int16_t* query;  // (queries, pairs, 2)
    const float* query_scales;  // (queries)
};

// The same as FloatBlock for one neighbour and consecutive packed blocks: found[q]: bit b if any score of block b is
// within the query's limit, lowered as with `reach` by the least score of all blocks; where any is, least[q]: that
// score, and only[q]: the position of the only row that is, or -1 if there are more. Scores as there, but none is -inf.
struct FloatBlocks {
    const float* bank;   // (count, width, BLOCK)
    const float* norms;  // (count, BLOCK)
    std::int64_t width;
    int count, lanes, queries;  // up to MOST_BLOCKS, the last with `lanes` lanes
    const float* query;         // (queries, width)
    float* limits;              // (queries)
    std::uint32_t* found;       // (queries)
    std::int32_t* only;         // (queries)
    float* least;               // (queries)
    const float* reach;         // (queries)
    float reach_scale, reach_more;
};

// The k nearest of at most MOST_FEW rows, k up to MOST_NEAREST, to any number of queries, by scores of query - centre
// as of FloatBlock, whose limit is lowered to the least score + |query - centre|^2 * reach_scale + reach_more. Where
// more rows are within it, those with the least direct() of them, rounded to float32, ascending, and the first of equal
// ones.
struct FewRows {
    const float* bank;         // (blocks, width, BLOCK) as of PackRows
    const float* norms;        // (blocks, BLOCK)
    const float* centre;       // (width)
    const float* const* rows;  // (lanes) of `width`
    std::int64_t width;
    int lanes, queries, k;
    const float* query;  // (queries, width)
    float reach_scale, reach_more;
    float limit;            // of |query - centre|^2: beyond it, or if it is NaN, nearest is -1
    float* placed;          // (PLACED, width) for its own use
    std::int32_t* nearest;  // (queries, k); the first is -1 where more than LISTED rows are too near to each other, too
    float* distances;       // (queries, k) direct(), rounded to float32
};

// out[q][i] = direct(query[q], rows[i]) rounded to float32.
struct Distances {
    const float* query;        // (queries, width)
    const float* const* rows;  // (count) of `width`
    std::int64_t width;
    int queries, count;
    float* out;  // (queries, count)
};

// Packs a block of rows for a FloatBlock: bank[i][b] = rows[b][i] - centre[i], each rounded once, and sums[b], the
// squared norm of lane b of `bank`, in float64 in any order.
struct PackRows {
    const float* const* rows;  // (BLOCK) rows of `width`; beyond `lanes`, any rows
    const float* centre;       // (width)
    std::int64_t width;
    int lanes;     // rows in use: beyond, sums are 0, and so is the bank as far as a FloatBlock reads it
    float* bank;   // (width, BLOCK)
    double* sums;  // (BLOCK)
};

// The same of BLOCK consecutive rows of 2 to HELD_COLUMNS values, with their norms: the sums, which float32 rounds at
// most `width` times, times `share`. Returns whether all sums are below `limit`; then `largest` is the largest norm.
struct NarrowRows {
    const float* rows;    // (BLOCK, width)
    const float* centre;  // (width)
    std::int64_t width;
    float share, limit;
    float* bank;   // (width, BLOCK)
    float* norms;  // (BLOCK)
    float* largest;
};

// A block of rows for a RoundedBlock: out[i / 2][b][i % 2] = values[i][b] * scales[b], rounded to float32 and then to
// the nearest int16; |values * scales| is below 2^15 - 1. An odd last value is followed by 0.
struct RoundBlock {
    const float* values;  // (width, BLOCK)
    const float* scales;  // (BLOCK)
    std::int64_t width;
    std::int16_t* out;  // (pairs, BLOCK, 2)
};

// Squared distances of any number of queries to up to ROWS bank rows in place, lanes = channels:
//   out[q][b] = sum over i of (bank[b][i] - query[q][i])^2 where mask[q] has all bits set (no mask: everywhere)
// found[q]: bit b unless out[q][b] > limits[q], so NaN is found; lanes beyond `lanes` are 0. Queries and masks have
// rows of `stride` values, a multiple of ROW_STEP, zero beyond `width`. For int16, |bank - query| < 2^15 at the marked
// entries, and the sum is exact. For float32, every difference, product and partial sum is rounded at most once, in any
// order.
template <class T, class Sum>
struct RowBlock {
    const T* const* rows;  // (ROWS) whole rows, also beyond `lanes`
    int lanes, queries;
    std::int64_t width, stride, mask_stride;
    std::int64_t ahead;    // bytes from a row to what is worth fetching meanwhile
    const T* query;        // (queries, stride)
    const T* mask;         // (queries, stride), or one row and mask_stride = 0, or nullptr
    const Sum* limits;     // (queries)
    Sum* out;              // (queries, ROWS)
    std::uint64_t* found;  // (queries)
};
using FloatRows = RowBlock<float, float>;
using IntegerRows = RowBlock<std::int16_t, std::int32_t>;

// Lower bounds in bytes for up to 64 queries and the images of a tile, lanes = queries:
//   sums[b][q] (saturating) += sum over `count` compared cells i of rows[i][codes[cells[i]][listed[b]]][q]
// codes: (cells of the level, tile) uint16; listed: lanes of the tile, or nullptr for 0, 1, ...; rows: (count, padded
// codes, queries) uint8. queries is 16, 32 or 64; first: sums start at 0.
struct ByteTile {
    const std::uint16_t* codes;
    const std::uint16_t* listed;  // (lanes)
    const std::int32_t* cells;
    const std::uint8_t* rows;
    int count, tile, lanes, padded_codes, queries;
    bool first;
    std::uint8_t* sums;  // (lanes, queries)
};

// found[b]: bit q if sums[b][q] <= limits[levels[b]][q], for sums of ByteTile.
struct ByteLimits {
    const std::uint8_t* sums;
    const std::uint8_t* levels;  // (lanes)
    const std::uint8_t* limits;  // (levels, queries)
    int lanes, queries;
    std::uint64_t* found;  // (lanes)
};

// Lower bounds for one query and a tile of images, lanes = images, below 2^16:
//   sums[b] = sum over i of rows[i][half][group], or with halves = false of min(rows[i][0][group], rows[i][1][group])
// for the half and group of image b at cells[i], in one byte of `groups`, (cells of the level, GROUPED): half * GROUPS
// + group. Of each 64 images, 0 and 32, then 1 and 33, ... stand side by side. found: bit b if sums[b] <= (limit +
// less[b]) * scale + 1, in float32; lanes beyond `lanes` are 0.
struct GroupTile {
    const std::uint8_t* groups;
    const std::int32_t* cells;
    const std::uint8_t* rows;  // (count, 2, GROUPS)
    const std::int32_t* less;  // (whole blocks of `lanes`) or nullptr for zeros
    int count, lanes;
    bool halves;
    float limit, scale;
    std::uint16_t* sums;   // (GROUPED)
    std::uint64_t* found;  // (GROUPED / 64)
};

// Where a cell of a smaller level is in the maps of codes: the four corners, and how far it is from the upper left one.
struct Corners {
    std::int32_t upper_left, upper_right, low_left, low_right;
    double down, across;
};

// Cells of a level of an image of codes, as lpkernel.levels.resize_level makes them: each the blend in float64 of four
// rows of the codebook, rows first, then columns, rounded to the nearest, ties to even.
// codes: (cells of the full side), each below `rows`; corners: (count); book: (mask + 1, stride), zero beyond `rows`
// and `width`; stride is a multiple of 8, mask + 1 a power of two. out: (count, width).
struct LevelCells {
    const std::int16_t* codes;
    const Corners* corners;
    const float* book;
    int count, rows, stride, width;
    std::uint32_t mask;
    std::int16_t* out;
};

// The same for a block of images, laid out as LatentBlock reads them, with up to 8 channels in `pairs` pairs; the
// values of lanes beyond `lanes` stay as they are. images: (lanes) their codes; book: (mask + 1, 8).
struct LevelBlock {
    const std::int16_t* const* images;
    const Corners* corners;
    const float* book;
    int count, rows, pairs, lanes;
    std::uint32_t mask;
    std::int16_t* bank;   // (count, pairs, BLOCK, 2)
    std::int32_t* norms;  // (count, BLOCK)
};

// Sums of a GroupNorm over blocks of pixels, in one order whatever the instruction set:
//   out[b][g] = sum over the pixels of block b and the channels c of group g of pixels[.][c], or with a centre of
//               (pixels[.][c] - centre[c])^2
// Each channel is summed in float32, pixel after pixel; then, in float64, the channels of the group go to four sums in
// turn, which are added up as (0 + 1) + (2 + 3). groups divides channels.
struct BlockSums {
    const float* pixels;  // (blocks * block, channels)
    const float* centre;  // (channels) or nullptr
    std::int64_t blocks, block;
    int channels, groups;
    float* columns;  // (channels) for its own use
    double* out;     // (blocks, groups)
};

// out[p][c] = (pixels[p][c] - centre[c]) * scale[c] + shift[c], each rounded to float32
struct Scaled {
    const float* pixels;  // (count, channels)
    const float *centre, *scale, *shift;
    std::int64_t count;
    int channels;
    float* out;
};

struct Kernels {
    const char* name;
    void (*latent_block)(const LatentBlock&);
    void (*float_block)(const FloatBlock&);
    void (*float_blocks)(const FloatBlocks&);
    void (*few_rows)(const FewRows&);
    void (*rounded_block)(const RoundedBlock&);
    void (*round_block)(const RoundBlock&);
    // The same of one row, out (pairs, 2).
    void (*round_row)(const float* values, float scale, std::int64_t width, std::int16_t* out);
    void (*float_rows)(const FloatRows&);
    void (*integer_rows)(const IntegerRows&);
    void (*cell_rows)(const CellRows&);
    void (*small_step)(const SmallStep&);
    void (*row_sums)(const RowSums&);
    void (*least_sums)(const LeastSums&);
    // Index of the value that has `rank` others before it in the order (value, index), rank < count <= BLOCK; `values`
    // is readable up to the next multiple of 16.
    int (*ranked)(const std::int32_t* values, int count, int rank);
    // out[i] = how many values, of any number, are before the i-th in that order; both have room up to the next
    // multiple of 16.
    void (*ranks)(const std::int32_t* values, int count, std::int32_t* out);
    // No less than the need-th least of `count` scores, none of them NaN, and seldom much more: the need-th least of
    // the least scores of some groups of them, which is soon found; +inf for a need above 24. `scores` is readable up
    // to the next multiple of 16, and +inf there.
    float (*reached)(const float* scores, int count, int need);
    // Bit b unless scores[b] > limit; scores: (BLOCK) as float_block leaves them.
    std::uint64_t (*scores_within)(const float* scores, int lanes, float limit);
    // Bit b if values[b] <= limit; values: (BLOCK).
    std::uint64_t (*at_most)(const std::int32_t* values, std::int32_t limit);
    // sum over i and channels of (image[cells[i]] - values[i])^2, modulo 2^32. image: (cells of the level, width),
    // values: (count, width).
    std::int32_t (*apart)(const std::int16_t* image, const std::int32_t* cells, const std::int16_t* values, int count,
                          int width);
    // nullptr where the instruction set has no vectors of bytes
    void (*byte_tile)(const ByteTile&);
    void (*byte_limits)(const ByteLimits&);
    // out[code][q] = min(255, floor(rows[q][code] * scales[q])) for 16 queries; q is the last axis, `stride` queries
    // long. rows[q]: (codes) int32; bytes: (16, padded codes) for its own use; padded codes is a multiple of 16.
    void (*byte_rows)(const std::int32_t* const* rows, const float* scales, int codes, int padded_codes,
                      std::uint8_t* bytes, std::uint8_t* out, int stride);
    // out[i] = min(most, floor(values[i] * scale)), most up to 255
    void (*scaled_bytes)(const std::int32_t* values, float scale, float most, int count, std::uint8_t* out);
    // nullptr where the instruction set does not look up GROUPS bytes at once
    void (*group_tile)(const GroupTile&);
    // false if a code is not below `rows`; such a code is not followed
    bool (*level_cells)(const LevelCells&);
    bool (*level_block)(const LevelBlock&);
    // out[i] = squared norm of cell i, modulo 2^32; values: (count, width) int16
    void (*norms)(const std::int16_t* values, int count, int width, std::int32_t* out);
    // One row of a canvas resize: out (side, width) int16 from the rows `top` and `low` (from, width) above and below,
    // which blend by 256 - fy and fy; columns i0[x] and i1[x] by 256 - f[x] and f[x]. rows: (from, width) for its own
    // use.
    void (*resize_row)(const std::int16_t* top, const std::int16_t* low, std::int32_t fy, int from, int side, int width,
                       const std::int32_t* i0, const std::int32_t* i1, const std::int32_t* f, std::int32_t* rows,
                       std::int16_t* out);
    // out[i] = the random word of `image` at step first + i
    void (*words)(std::uint64_t seed, std::uint32_t image, std::uint32_t first, int count, std::uint32_t* out);
    // sum of (a - b)^2 over the entries where weight is not 0 (all, if it is nullptr), in float64. Sixteen partial
    // sums, added up in one order whatever the instruction set.
    double (*direct)(const float* a, const float* b, const float* weight, std::int64_t width);
    // The same from one `a` to `count` rows: out[i] = direct(a, rows[i], weight, width).
    void (*direct_rows)(const float* a, const float* const* rows, const float* weight, std::int64_t width, int count,
                        double* out);
    // direct() without weights, rounded to float32.
    float (*distance)(const float* a, const float* b, std::int64_t width);
    void (*distances)(const Distances&);
    // direct() to rows laid out as lanes, (width, padded) in float64, width up to NARROW; padded: a multiple of 8.
    void (*direct_narrow)(const float* a, const double* rows, int width, int padded, double* out);
    void (*pack_rows)(const PackRows&);
    bool (*narrow_rows)(const NarrowRows&);
    // norms[b] = sums[b] * share, rounded to float32, of BLOCK sums from 0 on, or NaN; returns whether all sums are
    // below `limit`; then `largest` is the largest norm.
    bool (*norms_below)(const double* sums, double share, double limit, float* norms, float* largest);
    // out[i] = -2 (values[i] - centre[i]), the difference rounded once; returns the squared norm of the differences, in
    // float64 in any order.
    double (*place_row)(const float* values, const float* centre, std::int64_t width, float* out);
    void (*block_sums)(const BlockSums&);
    void (*scaled)(const Scaled&);
    // Bits of bfloat16 as float32, and back, rounded to the nearest, ties to even; NaN becomes 0x7FC0.
    void (*widen)(const std::uint16_t* values, std::int64_t count, float* out);
    void (*narrow)(const float* values, std::int64_t count, std::uint16_t* out);
    // Bits of float16 as float32.
    void (*widen_half)(const std::uint16_t* values, std::int64_t count, float* out);
};

// The table for `isa`: "avx512", "avx2", "baseline" (SSE2 on x86, NEON on aarch64), or "" for the best that this
// machine can run.
// Throws std::invalid_argument for a name that is unknown, not compiled in, or not supported by the machine.
const Kernels& kernels(const std::string& isa);

// What kernels() accepts here, best first.
std::vector<std::string> available();

extern const Kernels kernels_baseline;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

}  // namespace lpkernel
