// The kernels for any processor, and for float64: vectors are arrays, left to the compiler's
// auto-vectorization.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "../bilinear.h"
#include "kernels.h"

namespace {

using deformable_detr::BFloat16;
using deformable_detr::Half;

#include "deform_kernel/convolution.h"
#include "ms_deformable_attention/unit.h"

inline float to_float(float number) { return number; }
inline double to_float(double number) { return number; }

inline float float_of_bits(uint32_t bits) {
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

inline uint32_t bits_of_float(float number) {
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  return bits;
}

inline float to_float(BFloat16 number) { return float_of_bits(uint32_t{number.bits} << 16); }

inline float to_float(Half number) {
  const uint32_t sign = uint32_t{number.bits & 0x8000u} << 16;
  const uint32_t magnitude = uint32_t{number.bits & 0x7fffu} << 13;
  if (magnitude >= 0x0f800000u) return float_of_bits(sign | 0x70000000u | magnitude);  // inf, NaN
  // Scaling by 2^112 moves the exponent's bias, of subnormal numbers too.
  return float_of_bits(sign | bits_of_float(float_of_bits(magnitude) * 0x1p112f));
}

inline void from_float(float number, float* to) { *to = number; }
inline void from_float(double number, double* to) { *to = number; }

inline void from_float(float number, BFloat16* to) {
  const uint32_t bits = bits_of_float(number);
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  to->bits = static_cast<uint16_t>(number == number ? rounded >> 16 : 0x7fc0u);
}

inline void from_float(float number, Half* to) {
  const uint32_t bits = bits_of_float(number);
  const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;  // NaN
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;  // rounds to infinity
  } else if (magnitude < 0x38800000u) {
    // Subnormal: the addition rounds to the last bit available.
    half = bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  to->bits = static_cast<uint16_t>(sign | half);
}

template <typename Number, typename Integer>
struct Array {
  using Scalar = Number;
  using Index = Integer;  // as wide as Scalar
  static constexpr int kLanes = 4;

  struct F {
    Scalar v[kLanes];
    F() = default;
    explicit F(Scalar number) {
      for (Scalar& lane : v) lane = number;
    }
    F operator+(const F& b) const {
      return each([&](int i) { return v[i] + b.v[i]; });
    }
    F operator-(const F& b) const {
      return each([&](int i) { return v[i] - b.v[i]; });
    }
    F operator*(const F& b) const {
      return each([&](int i) { return v[i] * b.v[i]; });
    }
  };
  struct Mask {
    bool v[kLanes];
  };

  template <typename Lane>
  static F each(const Lane& lane) {
    F result;
    for (int i = 0; i < kLanes; ++i) result.v[i] = lane(i);
    return result;
  }

  static F load(const Scalar* at) {
    return each([&](int i) { return at[i]; });
  }
  template <typename T>
  static F load_some(const T* at, int64_t count, Scalar other) {
    return each([&](int i) { return i < count ? static_cast<Scalar>(to_float(at[i])) : other; });
  }
  // Four numbers; and one of them in every lane.
  static F load_four(const Scalar* at) { return load(at); }
  template <int kIndex>
  static F spread(const F& four) {
    return F(four.v[kIndex]);
  }
  static void store(Scalar* at, const F& a) {
    for (int i = 0; i < kLanes; ++i) at[i] = a.v[i];
  }
  template <typename T>
  static void put(T* at, const F& a, int64_t count, bool) {
    for (int i = 0; i < kLanes && i < count; ++i) from_float(a.v[i], at + i);
  }

  static void finish_streams() {}

  static F fma(const F& a, const F& b, const F& c) { return a * b + c; }
  static F min(const F& a, const F& b) {
    return each([&](int i) { return std::min(a.v[i], b.v[i]); });
  }
  // Takes b where a is NaN.
  static F max(const F& a, const F& b) {
    return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static F floor(const F& a) {
    return each([&](int i) { return std::floor(a.v[i]); });
  }
  static F exp(const F& a) {
    return each([&](int i) { return std::exp(a.v[i]); });
  }
  static Scalar largest(const F& a) { return *std::max_element(a.v, a.v + kLanes); }
  static Scalar sum(const F& a) {
    Scalar total = 0;
    for (const Scalar lane : a.v) total += lane;
    return total;
  }

  struct Four {
    Scalar v[4] = {};
  };
  static Four sums_of_four(const F& a, const F& b, const F& c, const F& d) {
    return {{sum(a), sum(b), sum(c), sum(d)}};
  }
  static void store_sums(const Four (&parts)[4], Scalar* at, int64_t row, bool add) {
    for (int i = 0; i < 4; ++i) {
      for (int k = 0; k < 4; ++k) {
        at[i * row + k] = (add ? at[i * row + k] : Scalar(0)) + parts[k].v[i];
      }
    }
  }

  static Mask between(const F& low, const F& a, const F& high) {
    Mask mask;
    for (int i = 0; i < kLanes; ++i) mask.v[i] = low.v[i] < a.v[i] && a.v[i] < high.v[i];
    return mask;
  }
  static Mask both(const Mask& a, const Mask& b) {
    Mask mask;
    for (int i = 0; i < kLanes; ++i) mask.v[i] = a.v[i] && b.v[i];
    return mask;
  }
  static F keep(const Mask& mask, const F& a) {
    return each([&](int i) { return mask.v[i] ? a.v[i] : Scalar(0); });
  }
  static void store_cells(Index* at, const Mask& inside, const F& left, const F& top,
                          const int32_t* stride, const int32_t* origin, int32_t outside) {
    for (int i = 0; i < kLanes; ++i) {
      at[i] = outside;
      if (inside.v[i]) {
        at[i] =
            static_cast<Index>(top.v[i]) * stride[i] + static_cast<Index>(left.v[i]) + origin[i];
      }
    }
  }
  static F lookup(const Scalar* table, int64_t, const int32_t* index) {
    return each([&](int i) { return table[index[i]]; });
  }
  static void load_pairs(const Scalar* at, int64_t count, F& x, F& y) {
    x = each([&](int i) { return i < count ? at[2 * i] : Scalar(0); });
    y = each([&](int i) { return i < count ? at[2 * i + 1] : Scalar(0); });
  }
  static void put_pairs(Scalar* at, const F& x, const F& y, int64_t count, bool) {
    for (int i = 0; i < kLanes && i < count; ++i) at[2 * i] = x.v[i], at[2 * i + 1] = y.v[i];
  }
};

using Floats = Array<float, int32_t>;
using Doubles = Array<double, int64_t>;

}  // namespace

namespace deformable_detr {

const Kernels kGenericKernels = {"generic",
                                 Floats::kLanes,
                                 {forward<Floats, float>, forward<Floats, Half>,
                                  forward<Floats, BFloat16>, forward<Doubles, double>},
                                 {backward<Floats, float>, backward<Floats, Half>,
                                  backward<Floats, BFloat16>, backward<Doubles, double>},
                                 {kDeformKernels<Floats>, kDeformKernels<Doubles>}};

}  // namespace deformable_detr
