// Conversion of points and weights to samples: the cell of each, and the weights of its corners.
// Generic over the vector type V, which each instruction set's file defines (see avx512.cpp).
//
// Included inside the unnamed namespace of those files, so that each compiles its own copy.
#pragma once

using deformable_detr::Call;
using deformable_detr::corner_weights;
using deformable_detr::Corners;
using deformable_detr::Dims;
using deformable_detr::pixel_of_location;
using deformable_detr::sample_gradient;
using deformable_detr::Unit;

constexpr int64_t round_up(int64_t size, int64_t multiple) {
  return (size + multiple - 1) / multiple * multiple;
}

// Allocates aligned arrays from one block of memory; from null, it only measures the size needed.
class Arena {
 public:
  explicit Arena(std::byte* memory) : memory_(memory) {}
  template <typename T>
  T* take(int64_t count) {
    T* array = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + used_);
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return array;
  }
  int64_t used() const { return used_; }

 private:
  std::byte* memory_;
  int64_t used_ = 0;
};

// A call as a unit sees it: pointers to the entries of its image and head.
template <typename Scalar>
struct View {
  const Scalar* points;     // L * P pairs (x, y) per query
  const Scalar* weights;    // L * P per query
  const Scalar* reference;  // L * R per query, the same for all heads
  Scalar* grad_points;
  Scalar* grad_weights;
  Scalar* grad_reference;  // L * R per query, or null
  bool is_streamed;
  int64_t size;    // L * P
  int64_t stride;  // of weights from one query to the next; that of points is twice as large
  int64_t L, P, R, M;

  View(const Call& call, int64_t n, int64_t m) {
    const auto& dims = call.dims;
    L = dims.L, P = dims.P, R = dims.R, M = dims.M;
    size = L * P;
    stride = M * size;
    const int64_t head = n * dims.Q * M + m;  // the first query's
    points = at(call.points, 2 * head * size);
    weights = at(call.weights, head * size);
    reference = at(call.reference_points, n * dims.Q * L * R);
    grad_points = at(call.grad_points, 2 * head * size);
    grad_weights = at(call.grad_weights, head * size);
    grad_reference = at(call.grad_reference, head * L * R);
    is_streamed = call.is_streamed;
  }

 private:
  static const Scalar* at(const void* array, int64_t i) {
    return static_cast<const Scalar*>(array) + i;
  }
  static Scalar* at(void* array, int64_t i) {
    return array == nullptr ? nullptr : static_cast<Scalar*>(array) + i;
  }
};

// Geometry of the level of the k-th of a query's L * P samples, one array per quantity.
template <typename Scalar>
struct SampleTable {
  Scalar *width, *height;
  int32_t *stride, *origin;  // of the level's cells in memory: from row to row, of pixel (0, 0)
  int32_t* reference;        // of the level's first number among a query's reference points

  SampleTable(Arena& arena, int64_t size)
      : width(arena.take<Scalar>(size)),
        height(arena.take<Scalar>(size)),
        stride(arena.take<int32_t>(size)),
        origin(arena.take<int32_t>(size)),
        reference(arena.take<int32_t>(size)) {}

  void set(int64_t k, const deformable_detr::Level& level, int64_t row, int64_t first,
           int64_t reference_index) {
    // No sample can be inside the size of a level without cells.
    const bool is_empty = level.width == 0 || level.height == 0;
    width[k] = is_empty ? Scalar(-1) : static_cast<Scalar>(level.width);
    height[k] = is_empty ? Scalar(-1) : static_cast<Scalar>(level.height);
    stride[k] = static_cast<int32_t>(row);
    origin[k] = static_cast<int32_t>(first);
    reference[k] = static_cast<int32_t>(reference_index);
  }
};

// Positions of a vector of samples: `left` and `top` are the pixel of the top left corner, `x` and
// `y` the distance from there. All four are 0 for a sample that is not inside, none of whose
// corners is a cell of the level.
template <typename V>
struct Location {
  typename V::F x, y, left, top;
  typename V::Mask inside;
  typename V::F scale_x, scale_y;  // derivative of the sample's pixels by its point
};

template <typename V>
[[gnu::always_inline]] inline Location<V> locate(const View<typename V::Scalar>& view,
                                                 const SampleTable<typename V::Scalar>& table,
                                                 int64_t query, int64_t k) {
  using F = typename V::F;
  using Scalar = typename V::Scalar;
  const F width = V::load(table.width + k), height = V::load(table.height + k);
  F x, y;
  V::load_pairs(view.points + 2 * (query * view.stride + k), view.size - k, x, y);
  Location<V> at;
  if (view.R == 0) {
    at.scale_x = width;
    at.scale_y = height;
    x = pixel_of_location(x, width);
    y = pixel_of_location(y, height);
  } else {
    const int64_t count = view.L * view.R;
    const Scalar* reference = view.reference + query * count;
    const auto part = [&](int64_t i) {
      return V::lookup(reference + i, count - i, table.reference + k);
    };
    at.scale_x = at.scale_y = F(Scalar(1));
    if (view.R == 4) {  // offsets are in units of size / (2 * P)
      const F half(Scalar(0.5f) / static_cast<Scalar>(view.P));
      at.scale_x = part(2) * width * half;
      at.scale_y = part(3) * height * half;
    }
    x = x * at.scale_x + pixel_of_location(part(0), width);
    y = y * at.scale_y + pixel_of_location(part(1), height);
  }
  const F outside(Scalar(-1));
  at.inside = V::both(V::between(outside, x, width), V::between(outside, y, height));
  x = V::keep(at.inside, x);
  y = V::keep(at.inside, y);
  at.left = V::floor(x);
  at.top = V::floor(y);
  at.x = x - at.left;
  at.y = y - at.top;
  return at;
}

// The numbers of the corners that are cells of the level, and 0 for the others.
template <typename V>
inline Corners<typename V::F> keep_corners(const Location<V>& at,
                                           const SampleTable<typename V::Scalar>& table, int64_t k,
                                           const Corners<typename V::F>& corners) {
  using F = typename V::F;
  using Scalar = typename V::Scalar;
  const F before(Scalar(-1)), one(Scalar(1));
  const F width = V::load(table.width + k), height = V::load(table.height + k);
  const auto left = V::between(before, at.left, width);
  const auto right = V::between(before, at.left + one, width);
  const auto top = V::between(before, at.top, height);
  const auto bottom = V::between(before, at.top + one, height);
  return {V::keep(V::both(left, top), corners.top_left),
          V::keep(V::both(right, top), corners.top_right),
          V::keep(V::both(left, bottom), corners.bottom_left),
          V::keep(V::both(right, bottom), corners.bottom_right)};
}

// e^a, for a at most 0: 2^n times a polynomial in the remainder, within 2 units in the last place
// (Cody and Waite's reduction; the polynomial of Moshier's Cephes library, expf).
template <typename V>
inline typename V::F exp_of(typename V::F a) {
  using F = typename V::F;
  constexpr float kCoefficients[] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                     4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
  a = V::max(F(-150.0f), a);  // equivalent to minus infinity; NaN stays NaN
  const F n = V::nearest(a * F(1.44269504f));
  const F rest = V::fma(n, F(2.12194440e-4f), V::fma(n, F(-0.693359375f), a));
  F sum(kCoefficients[0]);
  for (int i = 1; i < 6; ++i) sum = V::fma(sum, rest, F(kCoefficients[i]));
  return V::times_power_of_two(V::fma(sum, rest * rest, rest) + F(1.0f), n);
}

// Softmax of the logits of `count` queries over all their levels and points, into rows of `row`.
template <typename V>
inline void softmax(const View<typename V::Scalar>& view, int64_t query, int64_t count, int64_t row,
                    typename V::Scalar* weights) {
  using F = typename V::F;
  using Scalar = typename V::Scalar;
  constexpr Scalar kNone = -std::numeric_limits<Scalar>::infinity();
  for (int64_t q = 0; q < count; ++q) {
    const Scalar* logits = view.weights + (query + q) * view.stride;
    Scalar* out = weights + q * row;
    F most(kNone);
    for (int64_t k = 0; k < view.size; k += V::kLanes) {
      most = V::max(most, V::load_some(logits + k, view.size - k, kNone));
    }
    const F shift(V::largest(most));
    F total(Scalar(0));
    for (int64_t k = 0; k < view.size; k += V::kLanes) {
      const F power = V::exp(V::load_some(logits + k, view.size - k, kNone) - shift);
      V::store(out + k, power);
      total = total + power;
    }
    const F scale(Scalar(1) / V::sum(total));
    for (int64_t k = 0; k < view.size; k += V::kLanes) V::store(out + k, V::load(out + k) * scale);
  }
}

// Computes the gradients of a query's points and weights from the dot products in the corners.
// `weights` are its attention weights. `dots` is four rows, of the top left, top right, bottom left
// and bottom right corners; the fused operator overwrites them with the gradients of attention
// weights and pixels. With kMasked, there are dot products of corners outside the level too.
template <typename V, bool kMasked>
inline void store_gradients(const View<typename V::Scalar>& view,
                            const SampleTable<typename V::Scalar>& table, int64_t query,
                            const typename V::Scalar* weights, typename V::Scalar* dots,
                            int64_t row) {
  using F = typename V::F;
  using Scalar = typename V::Scalar;
  F mean(Scalar(0));  // of the gradients of the attention weights, for the backward of softmax
  for (int64_t k = 0; k < view.size; k += V::kLanes) {
    const int64_t count = view.size - k;
    const Location<V> at = locate<V>(view, table, query, k);
    const F weight = V::load_some(weights + k, count, Scalar(0));
    const auto load_dots = [&](const Scalar* from) {  // values past the last sample may be NaN
      return V::load_some(from + k, count, Scalar(0));
    };
    Corners<F> products = {load_dots(dots), load_dots(dots + row), load_dots(dots + 2 * row),
                           load_dots(dots + 3 * row)};
    if constexpr (kMasked) products = keep_corners<V>(at, table, k, products);
    const auto gradient = sample_gradient(V::keep(at.inside, weight), at.x, at.y, products);
    // Samples outside have no gradient; zero times the scale of an infinite box would be NaN.
    V::put_pairs(view.grad_points + 2 * (query * view.stride + k),
                 V::keep(at.inside, gradient.pixel_x * at.scale_x),
                 V::keep(at.inside, gradient.pixel_y * at.scale_y), count, view.is_streamed);
    if (view.R == 0) {
      V::put(view.grad_weights + query * view.stride + k, gradient.attention_weight, count,
             view.is_streamed);
      continue;
    }
    mean = V::fma(weight, gradient.attention_weight, mean);
    V::store(dots + k, gradient.attention_weight);
    V::store(dots + row + k, gradient.pixel_x);
    V::store(dots + 2 * row + k, gradient.pixel_y);
  }
  if (view.R == 0) return;
  const F shift(V::sum(mean));
  for (int64_t k = 0; k < view.size; k += V::kLanes) {
    const F weight = V::load_some(weights + k, view.size - k, Scalar(0));
    V::put(view.grad_weights + query * view.stride + k, weight * (V::load(dots + k) - shift),
           view.size - k, view.is_streamed);
  }
}

// One head's share of the gradient of a query's reference points, from the gradients of the pixels
// that store_gradients left in `dots`.
template <typename Scalar>
inline void store_reference_gradient(const View<Scalar>& view, const SampleTable<Scalar>& table,
                                     int64_t query, const Scalar* dots, int64_t row) {
  for (int64_t level = 0; level < view.L; ++level) {
    Scalar sum[4] = {};
    for (int64_t k = level * view.P; k < (level + 1) * view.P; ++k) {
      const Scalar* offset = view.points + 2 * (query * view.stride + k);
      const Scalar x = dots[row + k] * table.width[k], y = dots[2 * row + k] * table.height[k];
      sum[0] += x;
      sum[1] += y;
      // The sample of an infinite offset is outside: its gradient is zero, not NaN.
      sum[2] += x == 0 ? Scalar(0) : x * offset[0];
      sum[3] += y == 0 ? Scalar(0) : y * offset[1];
    }
    const Scalar half = Scalar(0.5f) / static_cast<Scalar>(view.P);
    Scalar* gradient = view.grad_reference + (query * view.M * view.L + level) * view.R;
    for (int64_t i = 0; i < view.R; ++i) gradient[i] = i < 2 ? sum[i] : sum[i] * half;
  }
}

// Prefetches into the second-level cache. The first-level cache is smaller than what a block of
// queries reads, and would have evicted the line before its use.
inline void prefetch(const void* memory, int64_t bytes) {
#if defined(__GNUC__)
  constexpr int kRead = 0, kSecondLevel = 2;
  for (int64_t i = 0; i < bytes; i += 64) {
    __builtin_prefetch(static_cast<const std::byte*>(memory) + i, kRead, kSecondLevel);
  }
#endif
}

// Calls `visit` with the first channel of each group of vectors and their number, as a constant:
// groups of four as long as possible, so that the sums of a group stay in registers.
template <typename V, typename Rows, typename Visit>
inline void for_each_group(int64_t channels, const Visit& visit) {
  int64_t c = 0;
  for (; c + 4 * V::kLanes <= channels; c += 4 * V::kLanes) {
    visit(c, std::integral_constant<int, 4>());
  }
  if (c + 2 * V::kLanes <= channels) {
    visit(c, std::integral_constant<int, 2>());
    c += 2 * V::kLanes;
  }
  if constexpr (Rows::kVectorsTogether == 1) {
    if (c < channels) visit(c, std::integral_constant<int, 1>());
  }
}
