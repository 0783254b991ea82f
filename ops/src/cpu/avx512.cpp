// The kernels for processors with AVX-512 (F, BW, DQ and VL).
//
// The standard headers come before the pragma: otherwise the linker could choose an inline
// function of theirs that was compiled for AVX-512 for the whole library.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels.h"

#ifdef DEFORMABLE_DETR_X86

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(                                                             \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#else
// GCC 12 warns of uninitialized vectors in its own AVX-512 headers.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#include "../bilinear.h"

namespace {

using deformable_detr::BFloat16;
using deformable_detr::Half;

#include "deform_kernel/convolution.h"
#include "ms_deformable_attention/unit.h"

struct Avx512 {
  using Scalar = float;
  using Index = int32_t;  // as wide as Scalar
  using Mask = __mmask16;
  static constexpr int kLanes = 16;

  struct F {
    __m512 v;
    F() = default;
    F(__m512 vector) : v(vector) {}
    explicit F(float number) : v(_mm512_set1_ps(number)) {}
    F operator+(F b) const { return _mm512_add_ps(v, b.v); }
    F operator-(F b) const { return _mm512_sub_ps(v, b.v); }
    F operator*(F b) const { return _mm512_mul_ps(v, b.v); }
  };

  static __mmask16 first(int64_t count) {
    return static_cast<__mmask16>(count >= 16 ? 0xffff : (1u << count) - 1);
  }
  static F load(const float* at) { return _mm512_loadu_ps(at); }
  static F load_some(const float* at, int64_t count, float other) {
    if (count >= 16) return _mm512_loadu_ps(at);
    return _mm512_mask_loadu_ps(_mm512_set1_ps(other), first(count), at);
  }
  static F load_some(const BFloat16* at, int64_t count, float) {
    const __m256i bits = _mm256_maskz_loadu_epi16(first(count), at);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static F load_some(const Half* at, int64_t count, float) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(count), at));
  }
  static void store(float* at, F a) { _mm512_storeu_ps(at, a.v); }
  // Four numbers, repeated; and one of the four in every lane.
  static F load_four(const float* at) { return _mm512_broadcast_f32x4(_mm_loadu_ps(at)); }
  template <int kIndex>
  static F spread(F four) {
    return _mm512_permute_ps(four.v, kIndex * 0x55);
  }
  // Stores up to `count` numbers; if `stream`, past the caches if they are a whole aligned line.
  static void put(float* at, F a, int64_t count, bool stream) {
    if (count < 16) return _mm512_mask_storeu_ps(at, first(count), a.v);
    if (stream && reinterpret_cast<uintptr_t>(at) % 64 == 0) return _mm512_stream_ps(at, a.v);
    _mm512_storeu_ps(at, a.v);
  }
  static void finish_streams() { _mm_sfence(); }
  static void put(Half* at, F a, int64_t count, bool) {
    _mm256_mask_storeu_epi16(at, first(count), _mm512_cvtps_ph(a.v, 0));
  }
  static void put(BFloat16* at, F a, int64_t count, bool) {
    const __m512i bits = _mm512_castps_si512(a.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
    rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
    _mm256_mask_storeu_epi16(at, first(count),
                             _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
  }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
  static F min(F a, F b) { return _mm512_min_ps(a.v, b.v); }
  static F max(F a, F b) { return _mm512_max_ps(a.v, b.v); }
  static F floor(F a) { return _mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEG_INF | 8); }
  static float largest(F a) { return _mm512_reduce_max_ps(a.v); }
  static float sum(F a) { return _mm512_reduce_add_ps(a.v); }
  static F times_power_of_two(F a, F exponent) { return _mm512_scalef_ps(a.v, exponent.v); }
  static F nearest(F a) { return _mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | 8); }
  static F exp(F a) { return exp_of<Avx512>(a); }

  // Partial sums, in each four lanes, over the lanes of a, b, c and d.
  using Four = F;
  static Four sums_of_four(F a, F b, F c, F d) {
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a.v, b.v), _mm512_unpackhi_ps(a.v, b.v));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c.v, d.v), _mm512_unpackhi_ps(c.v, d.v));
    return _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  }
  static F add_halves(F a, F b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a.v, b.v, 0x88),
                         _mm512_shuffle_f32x4(a.v, b.v, 0xdd));
  }
  // The sums of four samples, four each: the i-th ones of all samples go to at + i * row, or are
  // added to what is there.
  static void store_sums(const Four (&parts)[4], float* at, int64_t row, bool add) {
    const F all = add_halves(add_halves(parts[0], parts[1]), add_halves(parts[2], parts[3]));
    const __m512i transposed =
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512 sums = _mm512_permutexvar_ps(transposed, all.v);
    store_four(at, _mm512_castps512_ps128(sums), add);
    store_four(at + row, _mm512_extractf32x4_ps(sums, 1), add);
    store_four(at + 2 * row, _mm512_extractf32x4_ps(sums, 2), add);
    store_four(at + 3 * row, _mm512_extractf32x4_ps(sums, 3), add);
  }
  static void store_four(float* at, __m128 four, bool add) {
    _mm_storeu_ps(at, add ? _mm_add_ps(_mm_loadu_ps(at), four) : four);
  }

  // Mask of low < a < high; false for NaN.
  static Mask between(F low, F a, F high) {
    return _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(low.v, a.v, _CMP_LT_OQ), a.v, high.v,
                                   _CMP_LT_OQ);
  }
  static Mask both(Mask a, Mask b) { return _kand_mask16(a, b); }
  static F keep(Mask mask, F a) { return _mm512_maskz_mov_ps(mask, a.v); }
  static void store_cells(int32_t* at, Mask inside, F left, F top, const int32_t* stride,
                          const int32_t* origin, int32_t outside) {
    const __m512i column =
        _mm512_add_epi32(_mm512_cvttps_epi32(left.v), _mm512_loadu_si512(origin));
    const __m512i row = _mm512_mullo_epi32(_mm512_cvttps_epi32(top.v), _mm512_loadu_si512(stride));
    _mm512_storeu_si512(at, _mm512_mask_add_epi32(_mm512_set1_epi32(outside), inside, row, column));
  }
  // table[index[i]] in lane i; the table has at most 32 numbers.
  static F lookup(const float* table, int64_t count, const int32_t* index) {
    const __m512i lanes = _mm512_loadu_si512(index);
    const __m512 low = _mm512_maskz_loadu_ps(first(count), table);
    if (count <= 16) return _mm512_permutexvar_ps(lanes, low);
    const __m512 high = _mm512_maskz_loadu_ps(first(count - 16), table + 16);
    return _mm512_permutex2var_ps(low, lanes, high);
  }
  static void load_pairs(const float* at, int64_t count, F& x, F& y) {
    const __m512 low = load_some(at, 2 * count, 0.0f).v;
    const __m512 high = count > 8 ? load_some(at + 16, 2 * count - 16, 0.0f).v : low;
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    x = _mm512_permutex2var_ps(low, even, high);
    y = _mm512_permutex2var_ps(low, _mm512_add_epi32(even, _mm512_set1_epi32(1)), high);
  }
  static void put_pairs(float* at, F x, F y, int64_t count, bool stream) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    put(at, _mm512_permutex2var_ps(x.v, low, y.v), 2 * count, stream);
    if (count > 8) put(at + 16, _mm512_permutex2var_ps(x.v, high, y.v), 2 * count - 16, stream);
  }
};

// bfloat16 rows without conversion, half the bytes: each 32 bits hold one channel of the first half
// of a group of 32 and, in the upper bits, one of the second half.
struct BFloat16Rows {
  using V = Avx512;
  using Element = uint16_t;
  static constexpr int kVectorsTogether = 2;
  static void pack(const BFloat16* row, int64_t D, Element* packed) {
    for (int64_t d = 0; d < D; d += 32) {
      const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(V::first(D - d), row + d));
      const __m512i high =
          D - d <= 16
              ? _mm512_setzero_si512()
              : _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(V::first(D - d - 16), row + d + 16));
      _mm512_storeu_si512(packed + d, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
  }
  template <int kVectors>
  static void load(const Element* packed, V::F (&row)[kVectors]) {
    static_assert(kVectors % 2 == 0);
    for (int i = 0; i < kVectors; i += 2) {
      const __m512i pairs = _mm512_loadu_si512(packed + i * 16);
      row[i] = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
      row[i + 1] = _mm512_castsi512_ps(
          _mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
    }
  }
};

}  // namespace

namespace deformable_detr {

const Kernels kAvx512Kernels = {
    "AVX-512",
    Avx512::kLanes,
    {forward<Avx512, float>, forward<Avx512, Half>, forward<Avx512, BFloat16, BFloat16Rows>},
    {backward<Avx512, float>, backward<Avx512, Half>, backward<Avx512, BFloat16>},
    {kDeformKernels<Avx512>}};

}  // namespace deformable_detr

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
