// The kernels for processors with AVX2, FMA and F16C.
//
// The standard headers come before the pragma: otherwise the linker could choose an inline
// function of theirs that was compiled for AVX2 for the whole library.
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
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#include "../bilinear.h"

namespace {

using deformable_detr::BFloat16;
using deformable_detr::Half;

#include "deform_kernel/convolution.h"
#include "ms_deformable_attention/unit.h"

struct Avx2 {
  using Scalar = float;
  using Index = int32_t;  // as wide as Scalar
  static constexpr int kLanes = 8;

  struct F {
    __m256 v;
    F() = default;
    F(__m256 vector) : v(vector) {}
    explicit F(float number) : v(_mm256_set1_ps(number)) {}
    F operator+(F b) const { return _mm256_add_ps(v, b.v); }
    F operator-(F b) const { return _mm256_sub_ps(v, b.v); }
    F operator*(F b) const { return _mm256_mul_ps(v, b.v); }
  };
  using Mask = __m256;  // all bits of a lane, or none

  static __m256i first(int64_t count) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const int clamped = static_cast<int>(std::clamp<int64_t>(count, 0, 8));
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(clamped), lanes);
  }
  static F load(const float* at) { return _mm256_loadu_ps(at); }
  static F load_some(const float* at, int64_t count, float other) {
    if (count >= 8) return _mm256_loadu_ps(at);
    const __m256i mask = first(count);
    return _mm256_blendv_ps(_mm256_set1_ps(other), _mm256_maskload_ps(at, mask),
                            _mm256_castsi256_ps(mask));
  }
  template <typename T>
  static __m128i load_bits(const T* at, int64_t count) {
    if (count >= 8) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    alignas(16) uint16_t bits[8] = {};
    std::memcpy(bits, at, count * sizeof(T));
    return _mm_load_si128(reinterpret_cast<const __m128i*>(bits));
  }
  static F load_some(const BFloat16* at, int64_t count, float) {
    const __m256i bits = _mm256_cvtepu16_epi32(load_bits(at, count));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
  }
  static F load_some(const Half* at, int64_t count, float) {
    return _mm256_cvtph_ps(load_bits(at, count));
  }
  static void store(float* at, F a) { _mm256_storeu_ps(at, a.v); }
  // Four numbers, repeated; and one of the four in every lane.
  static F load_four(const float* at) {
    return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(at));
  }
  template <int kIndex>
  static F spread(F four) {
    return _mm256_permute_ps(four.v, kIndex * 0x55);
  }
  // Stores up to `count` numbers; if `stream`, past the caches where they are aligned, as two such
  // vectors make a cache line.
  static void put(float* at, F a, int64_t count, bool stream) {
    if (count < 8) return _mm256_maskstore_ps(at, first(count), a.v);
    if (stream && reinterpret_cast<uintptr_t>(at) % 32 == 0) return _mm256_stream_ps(at, a.v);
    _mm256_storeu_ps(at, a.v);
  }
  static void finish_streams() { _mm_sfence(); }
  template <typename T>
  static void store_bits(T* at, __m128i bits, int64_t count) {
    if (count >= 8) return _mm_storeu_si128(reinterpret_cast<__m128i*>(at), bits);
    alignas(16) uint16_t all[8];
    _mm_store_si128(reinterpret_cast<__m128i*>(all), bits);
    std::memcpy(at, all, count * sizeof(T));
  }
  static void put(Half* at, F a, int64_t count, bool) {
    store_bits(at, _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT), count);
  }
  static void put(BFloat16* at, F a, int64_t count, bool) {
    const __m256i bits = _mm256_castps_si256(a.v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000),
                                 _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q)));
    const __m256i high = _mm256_srli_epi32(rounded, 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x88);
    store_bits(at, _mm256_castsi256_si128(packed), count);
  }

  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
  static F min(F a, F b) { return _mm256_min_ps(a.v, b.v); }
  static F max(F a, F b) { return _mm256_max_ps(a.v, b.v); }
  static F floor(F a) { return _mm256_floor_ps(a.v); }
  static F nearest(F a) { return _mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | 8); }
  static float largest(F a) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
  }
  static float sum(F a) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }
  // In two steps, as 2^n alone may be too small for a normal number.
  static F times_power_of_two(F a, F exponent) {
    const __m256i n = _mm256_cvtps_epi32(exponent.v);
    const __m256i half = _mm256_srai_epi32(n, 1);
    return a * power_of_two(half) * power_of_two(_mm256_sub_epi32(n, half));
  }
  static F power_of_two(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
  }
  static F exp(F a) { return exp_of<Avx2>(a); }

  // Partial sums, in both halves, over the lanes of a, b, c and d.
  using Four = F;
  static Four sums_of_four(F a, F b, F c, F d) {
    return _mm256_hadd_ps(_mm256_hadd_ps(a.v, b.v), _mm256_hadd_ps(c.v, d.v));
  }
  static __m128 add_halves(F a) {
    return _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  }
  static void store_sums(const Four (&parts)[4], float* at, int64_t row, bool add) {
    __m128 a = add_halves(parts[0]), b = add_halves(parts[1]);
    __m128 c = add_halves(parts[2]), d = add_halves(parts[3]);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    store_four(at, a, add);
    store_four(at + row, b, add);
    store_four(at + 2 * row, c, add);
    store_four(at + 3 * row, d, add);
  }
  static void store_four(float* at, __m128 four, bool add) {
    _mm_storeu_ps(at, add ? _mm_add_ps(_mm_loadu_ps(at), four) : four);
  }

  static Mask between(F low, F a, F high) {
    return _mm256_and_ps(_mm256_cmp_ps(low.v, a.v, _CMP_LT_OQ),
                         _mm256_cmp_ps(a.v, high.v, _CMP_LT_OQ));
  }
  static Mask both(Mask a, Mask b) { return _mm256_and_ps(a, b); }
  static F keep(Mask mask, F a) { return _mm256_and_ps(mask, a.v); }
  static void store_cells(int32_t* at, Mask inside, F left, F top, const int32_t* stride,
                          const int32_t* origin, int32_t outside) {
    const __m256i row = _mm256_mullo_epi32(_mm256_cvttps_epi32(top.v), load_integers(stride));
    const __m256i column = _mm256_add_epi32(_mm256_cvttps_epi32(left.v), load_integers(origin));
    const __m256i cell = _mm256_add_epi32(row, column);
    _mm256_storeu_si256(
        reinterpret_cast<__m256i*>(at),
        _mm256_blendv_epi8(_mm256_set1_epi32(outside), cell, _mm256_castps_si256(inside)));
  }
  static F lookup(const float* table, int64_t count, const int32_t* index) {
    if (count > kLanes) return _mm256_i32gather_ps(table, load_integers(index), 4);
    return _mm256_permutevar8x32_ps(load_some(table, count, 0.0f).v, load_integers(index));
  }
  static __m256i load_integers(const int32_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  static void load_pairs(const float* at, int64_t count, F& x, F& y) {
    const __m256 low = load_some(at, 2 * count, 0.0f).v;
    const __m256 high = count > 4 ? load_some(at + 8, 2 * count - 8, 0.0f).v : _mm256_setzero_ps();
    x = in_order(_mm256_shuffle_ps(low, high, 0x88));
    y = in_order(_mm256_shuffle_ps(low, high, 0xdd));
  }
  static F in_order(__m256 v) {
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(v), 0xd8));
  }
  static void put_pairs(float* at, F x, F y, int64_t count, bool stream) {
    const __m256 even = _mm256_unpacklo_ps(x.v, y.v), odd = _mm256_unpackhi_ps(x.v, y.v);
    put(at, _mm256_permute2f128_ps(even, odd, 0x20), 2 * count, stream);
    if (count > 4) put(at + 8, _mm256_permute2f128_ps(even, odd, 0x31), 2 * count - 8, stream);
  }
};

// bfloat16 rows without conversion, half the bytes: each 32 bits hold one channel of the first half
// of a group of 16 and, in the upper bits, one of the second half.
struct BFloat16Rows {
  using V = Avx2;
  using Element = uint16_t;
  static constexpr int kVectorsTogether = 2;
  static void pack(const BFloat16* row, int64_t D, Element* packed) {
    for (int64_t d = 0; d < D; d += 16) {
      const __m256i low = _mm256_cvtepu16_epi32(V::load_bits(row + d, D - d));
      const __m256i high = D - d <= 8 ? _mm256_setzero_si256()
                                      : _mm256_cvtepu16_epi32(V::load_bits(row + d + 8, D - d - 8));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(packed + d),
                          _mm256_or_si256(low, _mm256_slli_epi32(high, 16)));
    }
  }
  template <int kVectors>
  static void load(const Element* packed, V::F (&row)[kVectors]) {
    static_assert(kVectors % 2 == 0);
    for (int i = 0; i < kVectors; i += 2) {
      const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(packed + i * 8));
      row[i] = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
      row[i + 1] = _mm256_castsi256_ps(
          _mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
    }
  }
};

}  // namespace

namespace deformable_detr {

const Kernels kAvx2Kernels = {
    "AVX2",
    Avx2::kLanes,
    {forward<Avx2, float>, forward<Avx2, Half>, forward<Avx2, BFloat16, BFloat16Rows>},
    {backward<Avx2, float>, backward<Avx2, Half>, backward<Avx2, BFloat16>},
    {kDeformKernels<Avx2>}};

}  // namespace deformable_detr

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // DEFORMABLE_DETR_X86
