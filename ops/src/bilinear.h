// Bilinear sampling and its derivatives: one place for the formulas of CPU and CUDA, plain and
// fused. T is a float, a double, or a vector of either.
#pragma once

#if defined(__CUDACC__)
#define DEFORMABLE_DETR_HOST_DEVICE __host__ __device__ __forceinline__
#else
// Internal linkage: each instruction set's file compiles its own.
#define DEFORMABLE_DETR_HOST_DEVICE static inline
#endif

namespace deformable_detr {

// One number for each of the four cells around a sample.
template <typename T>
struct Corners {
  T top_left, top_right, bottom_left, bottom_right;
};

// Location relative to a level, 0 and 1 on its outer edges -> pixels, 0 in the first cell's center.
template <typename T>
DEFORMABLE_DETR_HOST_DEVICE T pixel_of_location(T location, T size) {
  return location * size - T(0.5f);
}

// Weight of each corner in a sample with this attention weight, at `x` and `y` from the top left.
template <typename T>
DEFORMABLE_DETR_HOST_DEVICE Corners<T> corner_weights(T attention_weight, T x, T y) {
  const T bottom = attention_weight * y;
  const T top = attention_weight - bottom;
  const T top_right = top * x;
  const T bottom_right = bottom * x;
  return {top - top_right, top_right, bottom - bottom_right, bottom_right};
}

template <typename T>
struct SampleGradient {
  T attention_weight;
  T pixel_x, pixel_y;
};

// `dots` are the products of the output's gradient with the values in the four corners.
template <typename T>
DEFORMABLE_DETR_HOST_DEVICE SampleGradient<T> sample_gradient(T attention_weight, T x, T y,
                                                              const Corners<T>& dots) {
  const T top_slope = dots.top_right - dots.top_left;
  const T bottom_slope = dots.bottom_right - dots.bottom_left;
  const T top = dots.top_left + x * top_slope;
  const T drop = dots.bottom_left + x * bottom_slope - top;
  return {top + y * drop, attention_weight * (top_slope + y * (bottom_slope - top_slope)),
          attention_weight * drop};
}

}  // namespace deformable_detr
