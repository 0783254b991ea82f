// Gradient of value without atomic operations, in an order that depends on the arguments only. The
// backward kernel stores every sample's base cell and corner weights (GradValue::kDefer);
// the samples are then sorted by base cell, and this kernel gathers them.
#pragma once

#include <cstdint>

#include "channels.cuh"
#include "samples.cuh"

namespace deformable_detr {

// Index of the first sorted number that is at least `bound`.
__device__ __forceinline__ int64_t lower_bound(const int64_t* sorted, int64_t count,
                                               int64_t bound) {
  int64_t low = 0;
  while (count > 0) {
    const int64_t half = count / 2;
    if (sorted[low + half] < bound) {
      low += half + 1;
      count -= half + 1;
    } else {
      count = half;
    }
  }
  return low;
}

// Gradient of value without atomic operations, with sums in an order that depends on the arguments
// only. A thread owns one channel of one head of one cell, a block any kGatherThreads of them in
// the order of memory. The cell is a corner of the samples of four base cells. The samples of a
// base cell are contiguous in the list sorted by base cell, where a search finds them, and are
// added one after another. `order` holds the samples' indices, `base_cells` the sorted numbers.
inline constexpr int kGatherThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kGatherThreads)
    ms_deform_attn_gather(const __grid_constant__ Call<T> call, const int64_t* base_cells,
                          const int64_t* order, T* grad_value) {
  using Acc = Accumulator<T>;
  const Dims& dims = call.dims;
  const int64_t total = dims.N * dims.S * dims.M * dims.D;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kGatherThreads + threadIdx.x;
  if (i >= total) return;
  const int64_t d = i % dims.D, m = i / dims.D % dims.M;
  const int64_t s = i / (dims.D * dims.M) % dims.S, n = i / (dims.D * dims.M * dims.S);
  int level = 0;
  while (level + 1 < call.levels.count && s >= call.levels.levels[level + 1].start) ++level;
  const Level shape = call.levels.levels[level];
  const int row = static_cast<int>((s - shape.start) / shape.width);
  const int column = static_cast<int>((s - shape.start) % shape.width);
  const int64_t samples = dims.N * dims.Q * dims.M * call.samples;
  Acc sum = 0;
  for (int bottom = 1; bottom >= 0; --bottom) {  // which corner of the samples the cell is
    const int64_t first =
        base_cell_of(call.levels, n * dims.M + m, level, row - bottom, column - 1);
    int64_t k = lower_bound(base_cells, samples, first);
    for (; k < samples && base_cells[k] <= first + 1; ++k) {
      const Corners<Acc> weights = call.corner_weights[order[k]].corners;
      const bool is_right = base_cells[k] == first;
      const Acc top_weight = is_right ? weights.top_right : weights.top_left;
      const Acc bottom_weight = is_right ? weights.bottom_right : weights.bottom_left;
      const Acc gradient = widen(call.grad_output[order[k] / call.samples * dims.D + d]);
      sum += (bottom ? bottom_weight : top_weight) * gradient;
    }
  }
  grad_value[i] = narrow<T>(sum);
}

}  // namespace deformable_detr
