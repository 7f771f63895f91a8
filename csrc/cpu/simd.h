// Vectors of the instruction set that this file is compiled for: LANES int32 lanes (or twice as many int16), and LANES
// floats; four_sums(a, b, c, d, out): the sum of all lanes of each; count_less(sum, a, b): sum + 1 in the lanes
// where a < b. Everything has internal linkage and uses no templates of the standard library, so that code compiled for
// one instruction set can never be linked in place of another's. Every aarch64 has NEON, so there the baseline is NEON
// and nothing is chosen at run time.
// LPKERNEL_ONE_LANE: no vectors, for tests/kernels.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(LPKERNEL_ONE_LANE)
#elif defined(__AVX512BW__) && defined(__AVX512VNNI__)
#define LPKERNEL_AVX512
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 warns about its own header
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#elif defined(__AVX2__) && defined(__FMA__)
#define LPKERNEL_AVX2
#include <immintrin.h>
#elif defined(__SSE2__)
#define LPKERNEL_SSE2
#include <emmintrin.h>
#elif defined(__aarch64__) && defined(__ARM_NEON)
#define LPKERNEL_NEON
#include <arm_neon.h>
#endif

namespace {

#if defined(LPKERNEL_AVX512)

constexpr int LANES = 16;
using Ints = __m512i;
using Floats = __m512;
inline Ints zero() {
    return _mm512_setzero_si512();
}
inline Ints load(const void* p) {
    return _mm512_loadu_si512(p);
}
inline void store(void* p, Ints a) {
    _mm512_storeu_si512(p, a);
}
inline Ints fill(std::int32_t a) {
    return _mm512_set1_epi32(a);
}
inline Ints add(Ints a, Ints b) {
    return _mm512_add_epi32(a, b);
}
inline Ints sub(Ints a, Ints b) {
    return _mm512_sub_epi32(a, b);
}
inline Ints sub16(Ints a, Ints b) {
    return _mm512_sub_epi16(a, b);
}
inline Ints both(Ints a, Ints b) {
    return _mm512_and_si512(a, b);
}
inline Ints add_products(Ints sum, Ints a, Ints b) {
    return _mm512_dpwssd_epi32(sum, a, b);
}
inline Ints count_less(Ints sum, Ints a, Ints b) {
    return _mm512_mask_sub_epi32(sum, _mm512_cmplt_epi32_mask(a, b), sum, _mm512_set1_epi32(-1));
}
inline std::uint32_t at_most(Ints a, Ints limit) {
    return _mm512_cmple_epi32_mask(a, limit);
}
inline Floats load(const float* p) {
    return _mm512_loadu_ps(p);
}
inline void store(float* p, Floats a) {
    _mm512_storeu_ps(p, a);
}
inline Floats fill(float a) {
    return _mm512_set1_ps(a);
}
inline Floats add(Floats a, Floats b) {
    return _mm512_add_ps(a, b);
}
inline Floats lesser(Floats a, Floats b) {  // neither is NaN
    return _mm512_min_ps(a, b);
}
inline float least_lane(Floats a) {  // none is NaN
    return _mm512_reduce_min_ps(a);
}
inline float sum_of_lanes(Floats a) {
    return _mm512_reduce_add_ps(a);
}
inline std::uint32_t not_above(Floats a, Floats limit) {
    return _mm512_cmp_ps_mask(a, limit, _CMP_NGT_UQ);
}
inline Floats add_product(Floats sum, Floats a, Floats b) {
    return _mm512_fmadd_ps(a, b, sum);
}
inline Floats multiply(Floats a, Floats b) {
    return _mm512_mul_ps(a, b);
}
inline Floats to_floats(Ints a) {
    return _mm512_cvtepi32_ps(a);
}
inline Floats sub(Floats a, Floats b) {
    return _mm512_sub_ps(a, b);
}
inline Floats both(Floats a, Floats b) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}
inline void four_sums(Ints a, Ints b, Ints c, Ints d, std::int32_t* out) {
    const Ints ab = add(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    const Ints cd = add(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    const Ints each = add(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(each), _mm512_extracti64x4_epi64(each, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                     _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
}
inline void four_sums(Floats a, Floats b, Floats c, Floats d, float* out) {
    const Floats ab = add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const Floats cd = add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const Floats each = add(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xEE));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(each),
                                      _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(each), 1)));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}

#elif defined(LPKERNEL_AVX2)

constexpr int LANES = 8;
using Ints = __m256i;
using Floats = __m256;
inline Ints zero() {
    return _mm256_setzero_si256();
}
inline Ints load(const void* p) {
    return _mm256_loadu_si256(static_cast<const Ints*>(p));
}
inline void store(void* p, Ints a) {
    _mm256_storeu_si256(static_cast<Ints*>(p), a);
}
inline Ints fill(std::int32_t a) {
    return _mm256_set1_epi32(a);
}
inline Ints add(Ints a, Ints b) {
    return _mm256_add_epi32(a, b);
}
inline Ints sub(Ints a, Ints b) {
    return _mm256_sub_epi32(a, b);
}
inline Ints sub16(Ints a, Ints b) {
    return _mm256_sub_epi16(a, b);
}
inline Ints both(Ints a, Ints b) {
    return _mm256_and_si256(a, b);
}
inline Ints add_products(Ints sum, Ints a, Ints b) {
    return add(sum, _mm256_madd_epi16(a, b));
}
inline Ints count_less(Ints sum, Ints a, Ints b) {
    return sub(sum, _mm256_cmpgt_epi32(b, a));
}
inline std::uint32_t at_most(Ints a, Ints limit) {
    const int above = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(a, limit)));
    return ~static_cast<std::uint32_t>(above) & 0xFFu;
}
inline Floats load(const float* p) {
    return _mm256_loadu_ps(p);
}
inline void store(float* p, Floats a) {
    _mm256_storeu_ps(p, a);
}
inline Floats fill(float a) {
    return _mm256_set1_ps(a);
}
inline Floats add(Floats a, Floats b) {
    return _mm256_add_ps(a, b);
}
inline Floats lesser(Floats a, Floats b) {  // neither is NaN
    return _mm256_min_ps(a, b);
}
inline std::uint32_t not_above(Floats a, Floats limit) {
    return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, limit, _CMP_NGT_UQ)));
}
inline Floats add_product(Floats sum, Floats a, Floats b) {
    return _mm256_fmadd_ps(a, b, sum);
}
inline Floats multiply(Floats a, Floats b) {
    return _mm256_mul_ps(a, b);
}
inline Floats to_floats(Ints a) {
    return _mm256_cvtepi32_ps(a);
}
inline Floats sub(Floats a, Floats b) {
    return _mm256_sub_ps(a, b);
}
inline Floats both(Floats a, Floats b) {
    return _mm256_and_ps(a, b);
}
inline void four_sums(Ints a, Ints b, Ints c, Ints d, std::int32_t* out) {
    const Ints each = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                     _mm_add_epi32(_mm256_castsi256_si128(each), _mm256_extracti128_si256(each, 1)));
}
inline void four_sums(Floats a, Floats b, Floats c, Floats d, float* out) {
    const Floats each = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(each), _mm256_extractf128_ps(each, 1)));
}

#elif defined(LPKERNEL_SSE2)

constexpr int LANES = 4;
using Ints = __m128i;
using Floats = __m128;
inline Ints zero() {
    return _mm_setzero_si128();
}
inline Ints load(const void* p) {
    return _mm_loadu_si128(static_cast<const Ints*>(p));
}
inline void store(void* p, Ints a) {
    _mm_storeu_si128(static_cast<Ints*>(p), a);
}
inline Ints fill(std::int32_t a) {
    return _mm_set1_epi32(a);
}
inline Ints add(Ints a, Ints b) {
    return _mm_add_epi32(a, b);
}
inline Ints sub(Ints a, Ints b) {
    return _mm_sub_epi32(a, b);
}
inline Ints sub16(Ints a, Ints b) {
    return _mm_sub_epi16(a, b);
}
inline Ints both(Ints a, Ints b) {
    return _mm_and_si128(a, b);
}
inline Ints add_products(Ints sum, Ints a, Ints b) {
    return add(sum, _mm_madd_epi16(a, b));
}
inline Ints count_less(Ints sum, Ints a, Ints b) {
    return sub(sum, _mm_cmpgt_epi32(b, a));
}
inline std::uint32_t at_most(Ints a, Ints limit) {
    const int above = _mm_movemask_ps(_mm_castsi128_ps(_mm_cmpgt_epi32(a, limit)));
    return ~static_cast<std::uint32_t>(above) & 0xFu;
}
inline Floats load(const float* p) {
    return _mm_loadu_ps(p);
}
inline void store(float* p, Floats a) {
    _mm_storeu_ps(p, a);
}
inline Floats fill(float a) {
    return _mm_set1_ps(a);
}
inline Floats add(Floats a, Floats b) {
    return _mm_add_ps(a, b);
}
inline Floats lesser(Floats a, Floats b) {  // neither is NaN
    return _mm_min_ps(a, b);
}
inline std::uint32_t not_above(Floats a, Floats limit) {
    return static_cast<std::uint32_t>(_mm_movemask_ps(_mm_cmpngt_ps(a, limit)));
}
inline Floats add_product(Floats sum, Floats a, Floats b) {
    return _mm_add_ps(sum, _mm_mul_ps(a, b));
}
inline Floats multiply(Floats a, Floats b) {
    return _mm_mul_ps(a, b);
}
inline Floats to_floats(Ints a) {
    return _mm_cvtepi32_ps(a);
}
inline Floats sub(Floats a, Floats b) {
    return _mm_sub_ps(a, b);
}
inline Floats both(Floats a, Floats b) {
    return _mm_and_ps(a, b);
}
inline void four_sums(Ints a, Ints b, Ints c, Ints d, std::int32_t* out) {
    const Ints ab = add(_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b));
    const Ints cd = add(_mm_unpacklo_epi32(c, d), _mm_unpackhi_epi32(c, d));
    store(out, add(_mm_unpacklo_epi64(ab, cd), _mm_unpackhi_epi64(ab, cd)));
}
inline void four_sums(Floats a, Floats b, Floats c, Floats d, float* out) {
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(out, add(add(a, b), add(c, d)));
}

#elif defined(LPKERNEL_NEON)

constexpr int LANES = 4;
using Ints = uint32x4_t;  // not int32x4_t, whose overflow GCC takes to be undefined
using Floats = float32x4_t;
inline int32x4_t as_signed(Ints a) {
    return vreinterpretq_s32_u32(a);
}
inline int16x8_t as_halves(Ints a) {
    return vreinterpretq_s16_u32(a);
}
// One bit per lane, for lanes whose bits are all set or all clear.
inline std::uint32_t lane_bits(uint32x4_t lanes) {
    const uint32x4_t bits = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(lanes, bits));
}
inline Ints zero() {
    return vdupq_n_u32(0);
}
inline Ints load(const void* p) {
    Ints a;
    __builtin_memcpy(&a, p, sizeof a);  // any alignment and type
    return a;
}
inline void store(void* p, Ints a) {
    __builtin_memcpy(p, &a, sizeof a);
}
inline Ints fill(std::int32_t a) {
    return vdupq_n_u32(static_cast<std::uint32_t>(a));
}
inline Ints add(Ints a, Ints b) {
    return vaddq_u32(a, b);
}
inline Ints sub(Ints a, Ints b) {
    return vsubq_u32(a, b);
}
inline Ints sub16(Ints a, Ints b) {
    return vreinterpretq_u32_u16(vsubq_u16(vreinterpretq_u16_u32(a), vreinterpretq_u16_u32(b)));
}
inline Ints both(Ints a, Ints b) {
    return vandq_u32(a, b);
}
inline Ints add_products(Ints sum, Ints a, Ints b) {
    const int32x4_t low = vmull_s16(vget_low_s16(as_halves(a)), vget_low_s16(as_halves(b)));
    const int32x4_t high = vmull_high_s16(as_halves(a), as_halves(b));
    return add(sum, vpaddq_u32(vreinterpretq_u32_s32(low), vreinterpretq_u32_s32(high)));
}
inline Ints count_less(Ints sum, Ints a, Ints b) {
    return sub(sum, vcltq_s32(as_signed(a), as_signed(b)));
}
inline std::uint32_t at_most(Ints a, Ints limit) {
    return lane_bits(vcleq_s32(as_signed(a), as_signed(limit)));
}
inline Floats load(const float* p) {
    return vld1q_f32(p);
}
inline void store(float* p, Floats a) {
    vst1q_f32(p, a);
}
inline Floats fill(float a) {
    return vdupq_n_f32(a);
}
inline Floats add(Floats a, Floats b) {
    return vaddq_f32(a, b);
}
inline Floats lesser(Floats a, Floats b) {  // neither is NaN
    return vminq_f32(a, b);
}
inline std::uint32_t not_above(Floats a, Floats limit) {
    return lane_bits(vmvnq_u32(vcgtq_f32(a, limit)));
}
inline Floats add_product(Floats sum, Floats a, Floats b) {
    return vfmaq_f32(sum, a, b);
}
inline Floats multiply(Floats a, Floats b) {
    return vmulq_f32(a, b);
}
inline Floats to_floats(Ints a) {
    return vcvtq_f32_s32(as_signed(a));
}
inline Floats sub(Floats a, Floats b) {
    return vsubq_f32(a, b);
}
inline Floats both(Floats a, Floats b) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a), vreinterpretq_u32_f32(b)));
}
inline void four_sums(Ints a, Ints b, Ints c, Ints d, std::int32_t* out) {
    store(out, vpaddq_u32(vpaddq_u32(a, b), vpaddq_u32(c, d)));
}
inline void four_sums(Floats a, Floats b, Floats c, Floats d, float* out) {
    vst1q_f32(out, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
}

#else  // one lane, any machine

constexpr int LANES = 1;
struct Ints {
    std::uint32_t v;
};
struct Floats {
    float v;
};
inline std::int32_t half(Ints a, int i) {
    return static_cast<std::int16_t>(a.v >> (16 * i));
}
inline Ints zero() {
    return {0};
}
inline Ints load(const void* p) {
    Ints a;
    __builtin_memcpy(&a.v, p, 4);
    return a;
}
inline void store(void* p, Ints a) {
    __builtin_memcpy(p, &a.v, 4);
}
inline Ints fill(std::int32_t a) {
    return {static_cast<std::uint32_t>(a)};
}
inline Ints add(Ints a, Ints b) {
    return {a.v + b.v};
}
inline Ints sub(Ints a, Ints b) {
    return {a.v - b.v};
}
inline Ints sub16(Ints a, Ints b) {
    return {((a.v - b.v) & 0xFFFFu) | (((a.v >> 16) - (b.v >> 16)) << 16)};
}
inline Ints both(Ints a, Ints b) {
    return {a.v & b.v};
}
inline Ints add_products(Ints sum, Ints a, Ints b) {
    return {sum.v + static_cast<std::uint32_t>(half(a, 0) * half(b, 0)) +
            static_cast<std::uint32_t>(half(a, 1) * half(b, 1))};
}
inline Ints count_less(Ints sum, Ints a, Ints b) {
    return {sum.v + (static_cast<std::int32_t>(a.v) < static_cast<std::int32_t>(b.v))};
}
inline std::uint32_t at_most(Ints a, Ints limit) {
    return static_cast<std::int32_t>(a.v) <= static_cast<std::int32_t>(limit.v);
}
inline Floats load(const float* p) {
    return {*p};
}
inline void store(float* p, Floats a) {
    *p = a.v;
}
inline Floats fill(float a) {
    return {a};
}
inline Floats add(Floats a, Floats b) {
    return {a.v + b.v};
}
inline Floats lesser(Floats a, Floats b) {  // neither is NaN
    return {b.v < a.v ? b.v : a.v};
}
inline std::uint32_t not_above(Floats a, Floats limit) {
    return !(a.v > limit.v);
}
inline Floats add_product(Floats sum, Floats a, Floats b) {
    return {sum.v + a.v * b.v};
}
inline Floats multiply(Floats a, Floats b) {
    return {a.v * b.v};
}
inline Floats to_floats(Ints a) {
    return {static_cast<float>(static_cast<std::int32_t>(a.v))};
}
inline Floats sub(Floats a, Floats b) {
    return {a.v - b.v};
}
inline Floats both(Floats a, Floats b) {
    std::uint32_t left, right;
    __builtin_memcpy(&left, &a.v, 4);
    __builtin_memcpy(&right, &b.v, 4);
    left &= right;
    __builtin_memcpy(&a.v, &left, 4);
    return a;
}
inline void four_sums(Ints a, Ints b, Ints c, Ints d, std::int32_t* out) {
    const std::uint32_t sums[4] = {a.v, b.v, c.v, d.v};
    __builtin_memcpy(out, sums, sizeof sums);
}
inline void four_sums(Floats a, Floats b, Floats c, Floats d, float* out) {
    const float sums[4] = {a.v, b.v, c.v, d.v};
    __builtin_memcpy(out, sums, sizeof sums);
}

#endif

#if !defined(LPKERNEL_AVX512)
inline float least_lane(Floats a) {  // none is NaN
    float lane[LANES];
    store(lane, a);
    for (int half = LANES / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) lane[i] = lane[i + half] < lane[i] ? lane[i + half] : lane[i];
    }
    return lane[0];
}
inline float sum_of_lanes(Floats a) {
    float lane[LANES];
    store(lane, a);
    for (int half = LANES / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    }
    return lane[0];
}
#endif

// Four rows' values from `first` on, minus those of `centre`, columns first: out[i * stride + r].
#if defined(LPKERNEL_AVX512) || defined(LPKERNEL_AVX2) || defined(LPKERNEL_SSE2)
inline void transpose_less(const float* const* rows, std::int64_t first, const float* centre, float* out,
                           std::int64_t stride) {
    const __m128 middle = _mm_loadu_ps(centre);
    __m128 a = _mm_sub_ps(_mm_loadu_ps(rows[0] + first), middle), b = _mm_sub_ps(_mm_loadu_ps(rows[1] + first), middle);
    __m128 c = _mm_sub_ps(_mm_loadu_ps(rows[2] + first), middle), d = _mm_sub_ps(_mm_loadu_ps(rows[3] + first), middle);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(out, a);
    _mm_storeu_ps(out + stride, b);
    _mm_storeu_ps(out + 2 * stride, c);
    _mm_storeu_ps(out + 3 * stride, d);
}
#else
inline void transpose_less(const float* const* rows, std::int64_t first, const float* centre, float* out,
                           std::int64_t stride) {
    for (int i = 0; i < 4; ++i) {
        for (int r = 0; r < 4; ++r) out[i * stride + r] = rows[r][first + i] - centre[i];
    }
}
#endif

#if defined(LPKERNEL_AVX512) || defined(LPKERNEL_AVX2) || defined(LPKERNEL_SSE2) || defined(LPKERNEL_NEON)
#define LPKERNEL_BYTES

// N bytes, 16 to 64: the widest register there is, or halves.
template <int N>
struct Bytes {
    Bytes<N / 2> low, high;
    static Bytes zero() { return {Bytes<N / 2>::zero(), Bytes<N / 2>::zero()}; }
    static Bytes load(const std::uint8_t* p) { return {Bytes<N / 2>::load(p), Bytes<N / 2>::load(p + N / 2)}; }
    void store(std::uint8_t* p) const {
        low.store(p);
        high.store(p + N / 2);
    }
    void add_saturated(Bytes b) {
        low.add_saturated(b.low);
        high.add_saturated(b.high);
    }
    std::uint64_t at_most(Bytes limit) const { return low.at_most(limit.low) | high.at_most(limit.high) << (N / 2); }
};

#if defined(LPKERNEL_NEON)
template <>
struct Bytes<16> {
    uint8x16_t v;
    static Bytes zero() { return {vdupq_n_u8(0)}; }
    static Bytes load(const std::uint8_t* p) { return {vld1q_u8(p)}; }
    void store(std::uint8_t* p) const { vst1q_u8(p, v); }
    void add_saturated(Bytes b) { v = vqaddq_u8(v, b.v); }
    std::uint64_t at_most(Bytes limit) const {
        const uint8x16_t bits = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
        const uint8x16_t found = vandq_u8(vcleq_u8(v, limit.v), bits);
        return vaddv_u8(vget_low_u8(found)) | static_cast<std::uint64_t>(vaddv_u8(vget_high_u8(found))) << 8;
    }
    static Bytes zip_low(Bytes a, Bytes b) { return {vzip1q_u8(a.v, b.v)}; }
    static Bytes zip_high(Bytes a, Bytes b) { return {vzip2q_u8(a.v, b.v)}; }
};
#else
template <>
struct Bytes<16> {
    __m128i v;
    static Bytes zero() { return {_mm_setzero_si128()}; }
    static Bytes load(const std::uint8_t* p) { return {_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))}; }
    void store(std::uint8_t* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), v); }
    void add_saturated(Bytes b) { v = _mm_adds_epu8(v, b.v); }
    std::uint64_t at_most(Bytes limit) const {
        return static_cast<std::uint32_t>(_mm_movemask_epi8(_mm_cmpeq_epi8(_mm_min_epu8(v, limit.v), v)));
    }
    static Bytes zip_low(Bytes a, Bytes b) { return {_mm_unpacklo_epi8(a.v, b.v)}; }
    static Bytes zip_high(Bytes a, Bytes b) { return {_mm_unpackhi_epi8(a.v, b.v)}; }
};
#endif

#if defined(LPKERNEL_AVX512) || defined(LPKERNEL_AVX2)
template <>
struct Bytes<32> {
    __m256i v;
    static Bytes zero() { return {_mm256_setzero_si256()}; }
    static Bytes load(const std::uint8_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
    void store(std::uint8_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
    void add_saturated(Bytes b) { v = _mm256_adds_epu8(v, b.v); }
    std::uint64_t at_most(Bytes limit) const {
        return static_cast<std::uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_min_epu8(v, limit.v), v)));
    }
};
#endif

#if defined(LPKERNEL_AVX512)
template <>
struct Bytes<64> {
    __m512i v;
    static Bytes zero() { return {_mm512_setzero_si512()}; }
    static Bytes load(const std::uint8_t* p) { return {_mm512_loadu_si512(p)}; }
    void store(std::uint8_t* p) const { _mm512_storeu_si512(p, v); }
    void add_saturated(Bytes b) { v = _mm512_adds_epu8(v, b.v); }
    std::uint64_t at_most(Bytes limit) const { return _mm512_cmple_epu8_mask(v, limit.v); }
};
#endif

// (16, 16) bytes, rows `from_stride` apart, to their transpose, rows `to_stride` apart.
inline void transpose_bytes(const std::uint8_t* from, std::int64_t from_stride, std::uint8_t* to,
                            std::int64_t to_stride) {
    Bytes<16> rows[16], mixed[16];
    for (int i = 0; i < 16; ++i) rows[i] = Bytes<16>::load(from + i * from_stride);
    for (int stage = 0; stage < 4; ++stage) {  // each is a perfect shuffle of the 256 bytes
        for (int i = 0; i < 8; ++i) {
            mixed[2 * i] = Bytes<16>::zip_low(rows[i], rows[i + 8]);
            mixed[2 * i + 1] = Bytes<16>::zip_high(rows[i], rows[i + 8]);
        }
        for (int i = 0; i < 16; ++i) rows[i] = mixed[i];
    }
    for (int i = 0; i < 16; ++i) rows[i].store(to + i * to_stride);
}

#endif

// sum = add_products(sum, a, b), for loops with many sums: around the intrinsic GCC 12 copies each to another register
// and to memory, which took 2.4 times as long.
inline void accumulate_products(Ints& sum, Ints a, Ints b) {
#if defined(LPKERNEL_AVX512)
    asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#else
    sum = add_products(sum, a, b);
#endif
}

// The int32 whose bits are two neighbouring int16 (any alignment).
inline std::int32_t pair_at(const std::int16_t* p) {
    std::int32_t bits;
    __builtin_memcpy(&bits, p, sizeof bits);
    return bits;
}

// Eight numbers from `first` on of four rows, blended in float64: the first two rows and the last two by 1 - down and
// down, the results by 1 - across and across, rounded to the nearest, ties to even: the low bits of the sum with
// 1.5 * 2^52.
constexpr double ROUNDED = 0x1.8p52;

#if defined(LPKERNEL_AVX512)

inline void blend_eight(const float* const* rows, int first, double down, double across, std::int16_t* out) {
    const auto wide = [&](int i) __attribute__((always_inline)) {
        return _mm512_maskz_cvtps_pd(0xFF, _mm256_loadu_ps(rows[i] + first));
    };
    const auto mixed = [](__m512d a, __m512d b, double part) __attribute__((always_inline)) {
        return _mm512_add_pd(_mm512_mul_pd(a, _mm512_set1_pd(1.0 - part)), _mm512_mul_pd(b, _mm512_set1_pd(part)));
    };
    const __m512d value = mixed(mixed(wide(0), wide(1), down), mixed(wide(2), wide(3), down), across);
    const __m512i bits = _mm512_castpd_si512(_mm512_add_pd(value, _mm512_set1_pd(ROUNDED)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_maskz_cvtepi64_epi16(0xFF, bits));
}

#elif defined(LPKERNEL_AVX2)

inline void blend_eight(const float* const* rows, int first, double down, double across, std::int16_t* out) {
    const auto mixed = [](__m256d a, __m256d b, double part) __attribute__((always_inline)) {
        return _mm256_add_pd(_mm256_mul_pd(a, _mm256_set1_pd(1.0 - part)), _mm256_mul_pd(b, _mm256_set1_pd(part)));
    };
    __m128i halves[2];
    for (int half = 0; half < 2; ++half) {
        const auto wide = [&](int i) __attribute__((always_inline)) {
            return _mm256_cvtps_pd(_mm_loadu_ps(rows[i] + first + 4 * half));
        };
        const __m256d value = mixed(mixed(wide(0), wide(1), down), mixed(wide(2), wide(3), down), across);
        halves[half] = _mm256_cvtpd_epi32(value);
    }
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_packs_epi32(halves[0], halves[1]));
}

#else

inline void blend_eight(const float* const* rows, int first, double down, double across, std::int16_t* out) {
    for (int c = first; c < first + 8; ++c) {
        const double left = rows[0][c] * (1.0 - down) + rows[1][c] * down;
        const double right = rows[2][c] * (1.0 - down) + rows[3][c] * down;
        const double sum = (left * (1.0 - across) + right * across) + ROUNDED;
        std::int64_t bits;
        std::memcpy(&bits, &sum, sizeof bits);
        *out++ = static_cast<std::int16_t>(bits);
    }
}

#endif

}  // namespace
