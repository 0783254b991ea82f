// Common parts of the CUDA kernels: their arguments, the division of the work among lanes, and the
// preparation of a sample by a lane.
#pragma once

#include <cstdint>

#include "../../bilinear.h"
#include "../../dims.h"
#include "channels.cuh"

namespace deformable_detr {

// The corners of a sample, moved between memory and registers as a whole.
template <typename T>
struct alignas(sizeof(T) * 4 > 16 ? 16 : sizeof(T) * 4) PackedCorners {
  Corners<T> corners;
};

// Arguments of every kernel. In the fused operator points are offsets and weights are logits; their
// gradients likewise. Pointers that a kernel neither reads nor writes are null.
template <typename T>
struct Call {
  using Acc = Accumulator<T>;
  const T* value;               // (N, S, M, D)
  const Acc* points;            // (N, Q, M, L, P, 2)
  const Acc* weights;           // (N, Q, M, L, P)
  const Acc* reference_points;  // (N, Q, L, R)
  T* output;                    // (N, Q, M * D)
  const T* grad_output;         // (N, Q, M * D)
  Acc* grad_value;              // (N, S, M, D), zeros at first
  Acc* grad_points;
  Acc* grad_weights;
  Acc* grad_reference;                 // (N, Q, M, L, R), to be summed over M; null if not needed
  int64_t* base_cells;                 // (N, Q, M, L, P), see base_cell_of
  PackedCorners<Acc>* corner_weights;  // (N, Q, M, L, P)
  Dims dims;
  LevelTable levels;
  int32_t first_image;   // of a launch, which takes a grid of (blocks of queries, M, images)
  int32_t samples;       // L * P
  float inverse_points;  // 1 / P
  Acc half_step;         // 0.5 / P: share of a box's size by which an offset of 1 moves a point
};

// Handling of the gradient of value in the backward kernel.
enum class GradValue {
  kScatter,  // added by atomic operations, in any order
  kDefer,    // samples are stored for the kernel that gathers them in a fixed order
};

// Division of the work for a value of type T and D channels per head; D = 0: any number.
template <typename T, int D>
struct Layout {
  static constexpr int kVector = D == 0 ? 1 : 16 / static_cast<int>(sizeof(T));
  static constexpr int kLanes = D == 0 ? 8 : D / kVector;
  static constexpr int kThreads = kLanes < 4 ? 128 : 256;
  static constexpr int kQueries = kThreads / kLanes;  // per block
  // Minimum number of blocks per multiprocessor, in units of 256 threads: from 80 on for at most 40
  // or 48 registers forward and 80 or 128 backward, the most blocks without spills.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  static constexpr int kForward = 4;  // as many as fit
#else
  static constexpr int kForward = sizeof(T) == 4 && D != 0 ? 6 : 5;
#endif
  static constexpr int kBackward = D == 0 || D == 64 ? 2 : 3;
  static constexpr int kForwardBlocks = kForward * 256 / kThreads;
  static constexpr int kBackwardBlocks = kBackward * 256 / kThreads;
  // One unused entry after each group, so that groups of a warp read different banks.
  static constexpr int kPlaces = kQueries * (kLanes + 1);
};

// A point (x, y) that is read once.
__device__ __forceinline__ float2 load_point(const float* address) {
  return __ldcs(reinterpret_cast<const float2*>(address));
}
__device__ __forceinline__ double2 load_point(const double* address) {
  return __ldcs(reinterpret_cast<const double2*>(address));
}

// Sum or maximum over the lanes of a group, the same in each of them.
template <int kLanes, typename Acc>
__device__ __forceinline__ Acc group_sum(Acc x) {
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}
template <int kLanes, typename Acc>
__device__ __forceinline__ Acc group_max(Acc x) {
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) x = max(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}

// The query of a group. Groups past the last query run the same code as the others of their warp,
// because shuffles need all lanes, but load and store nothing.
template <int kLanes>
struct Place {
  int lane;     // in the group
  int first;    // the group's first place in shared memory
  bool active;  // false past the last query
  int n, m, q;

  template <typename T>
  __device__ __forceinline__ Place(const Call<T>& call, int queries) {
    const int group = threadIdx.x / kLanes;
    const int Q = static_cast<int>(call.dims.Q);
    lane = threadIdx.x % kLanes;
    first = group * (kLanes + 1);
    n = call.first_image + static_cast<int>(blockIdx.z);
    m = static_cast<int>(blockIdx.y);
    const int64_t query = static_cast<int64_t>(blockIdx.x) * queries + group;
    active = query < Q;
    q = active ? static_cast<int>(query) : Q - 1;
  }

  // Of (N, Q, ...) and of (N, Q, M, ...).
  __device__ __forceinline__ int64_t query(const Dims& dims) const { return n * dims.Q + q; }
  __device__ __forceinline__ int64_t row(const Dims& dims) const {
    return query(dims) * dims.M + m;
  }
};

// Maximum of a query's logits and the inverse of the sum of exp(logit - maximum).
template <typename Acc>
struct Softmax {
  Acc maximum, scale;

  __device__ __forceinline__ Acc operator()(Acc logit) const {
    return exp(logit - maximum) * scale;
  }
};

template <int kLanes, typename Acc>
__device__ __forceinline__ Acc maximum_of(const Acc* logits, int lane, int samples) {
  Acc maximum = -INFINITY;
#pragma unroll 1
  for (int k = lane; k < samples; k += kLanes) maximum = max(maximum, logits[k]);
  return group_max<kLanes>(maximum);
}

template <int kLanes, typename Acc>
__device__ __forceinline__ Softmax<Acc> softmax_of(const Acc* logits, int lane, int samples) {
  const Acc maximum = maximum_of<kLanes>(logits, lane, samples);
  Acc sum = 0;
#pragma unroll 1
  for (int k = lane; k < samples; k += kLanes) sum += exp(logits[k] - maximum);
  return {maximum, 1 / group_sum<kLanes>(sum)};
}

// k / P: the half keeps the product off whole numbers by more than its rounding, for k < 2^22.
template <typename T>
__device__ __forceinline__ int level_of(const Call<T>& call, int k) {
  return static_cast<int>((static_cast<float>(k) + 0.5f) * call.inverse_points);
}

// The base cell of a sample is its top left corner, on a map with one more row above and one more
// column on the left. Base cells are numbered through levels, heads and images; the number after
// the last stands for samples without a corner inside.
__host__ __device__ inline int64_t base_cells_of(const LevelTable& levels, int level_count) {
  int64_t count = 0;
  for (int i = 0; i < level_count; ++i) {
    count += (levels.levels[i].height + int64_t{1}) * (levels.levels[i].width + 1);
  }
  return count;
}
__host__ __device__ inline int64_t base_cell_of(const LevelTable& levels, int64_t head, int level,
                                                int row, int column) {
  return head * base_cells_of(levels, levels.count) + base_cells_of(levels, level) +
         (row + int64_t{1}) * (levels.levels[level].width + 1) + column + 1;
}

// One sample, in the registers of the lane that prepares it.
template <typename Acc>
struct Sample {
  Corners<int32_t> corners;  // see at_corner; -1: outside
  Acc weight;                // of attention
  Acc x, y;                  // pixels past the top left corner
  int64_t base_cell;         // see base_cell_of
  bool is_inside;            // has a corner inside
};

template <int D, bool kFused, GradValue kGradValue, typename T, int kLanes>
__device__ __forceinline__ Sample<Accumulator<T>> prepare_sample(
    const Call<T>& call, const Place<kLanes>& place, int k,
    const Softmax<Accumulator<T>>& softmax) {
  using Acc = Accumulator<T>;
  Sample<Acc> sample = {{-1, -1, -1, -1}, 0, 0, 0, -1, false};
  if (!place.active || k >= call.samples) return sample;
  const int level = level_of(call, k);
  const Level shape = call.levels.levels[level];
  const Acc width = static_cast<Acc>(shape.width), height = static_cast<Acc>(shape.height);
  const int64_t index = place.row(call.dims) * call.samples + k;
  const auto point = load_point(call.points + 2 * index);
  Acc x = point.x, y = point.y;
  sample.weight = call.weights[index];
  if constexpr (kFused) {
    sample.weight = softmax(sample.weight);
    const int R = static_cast<int>(call.dims.R);
    const Acc* reference =
        call.reference_points + (place.query(call.dims) * call.dims.L + level) * R;
    if (R == 4) {
      x *= reference[2] * width * call.half_step;
      y *= reference[3] * height * call.half_step;
    }
    x = pixel_of_location(reference[0], width) + x;
    y = pixel_of_location(reference[1], height) + y;
  } else {
    x = pixel_of_location(x, width);
    y = pixel_of_location(y, height);
  }
  // False for NaN too.
  sample.is_inside = x > -1 && x < width && y > -1 && y < height;
  if (!sample.is_inside) return sample;
  const Acc left = floor(x), top = floor(y);
  sample.x = x - left;
  sample.y = y - top;
  const int column = static_cast<int>(left), row = static_cast<int>(top);
  const bool has_left = column >= 0, has_right = column + 1 < shape.width;
  const bool has_top = row >= 0, has_bottom = row + 1 < shape.height;
  // Units of at_corner per cell, and per row of cells.
  const int step = D != 0 ? static_cast<int>(call.dims.M) * kLanes : 1;
  const int row_step = shape.width * step;
  const int32_t corner = (static_cast<int32_t>(shape.start) + column) * step + row * row_step;
  sample.corners = {has_top && has_left ? corner : -1, has_top && has_right ? corner + step : -1,
                    has_bottom && has_left ? corner + row_step : -1,
                    has_bottom && has_right ? corner + row_step + step : -1};
  if constexpr (kGradValue == GradValue::kDefer) {
    const int64_t head = place.n * call.dims.M + place.m;
    sample.base_cell = base_cell_of(call.levels, head, level, row, column);
  }
  return sample;
}

// The samples that the lanes of a block prepare for each other.
template <typename Acc, int kPlaces>
struct SharedSamples {
  PackedCorners<int32_t> corners[kPlaces];
  PackedCorners<Acc> weights[kPlaces];

  __device__ __forceinline__ void put(int place, const Sample<Acc>& sample) {
    __syncwarp();  // all lanes have read what this overwrites
    corners[place].corners = sample.corners;
    weights[place].corners = corner_weights(sample.weight, sample.x, sample.y);
    __syncwarp();
  }
};

}  // namespace deformable_detr
