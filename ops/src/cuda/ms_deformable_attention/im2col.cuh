// Multi-scale deformable attention on CUDA: the forward kernel and the backward kernel.
//
// A thread, called lane here, owns kVector channels of one head (16 bytes of value; one channel in
// the general form) and prepares every kLanes-th sample: location, softmax, corner weights.
// A group of kLanes neighboring lanes owns one query of one head of one image, all D channels. Its
// lanes prepare kLanes samples at a time, hand them to each other, and walk through them together,
// so that a corner costs one load of 16 bytes per lane and no sample is computed twice.
// A block owns up to kThreads / kLanes successive queries of one head of one image: neighbors on
// the map, whose samples hit the same lines of L1.
//
// Shared memory holds the samples in flight: their corners and weights, 32 bytes per lane. A group
// lies within a warp, so __syncwarp orders it and there is no __syncthreads. Blocks have 256
// threads, or 128 if groups have fewer than four lanes: registers are few enough for several blocks
// per multiprocessor, and the queries of a block still read a compact part of the map.
//
// This file needs nvcc only, not PyTorch.
#pragma once

#include <cstdint>

#include "channels.cuh"
#include "samples.cuh"

namespace deformable_detr {

template <int D, typename T, int kVector>
__device__ __forceinline__ void add_corner(Accumulator<T> (&sum)[kVector], const T* value,
                                           int32_t corner, int64_t stride, Accumulator<T> weight) {
  if (corner < 0) return;
  const auto channels = load_channels<T, kVector>(at_corner<D, kVector>(value, corner, stride));
#pragma unroll
  for (int i = 0; i < kVector; ++i) sum[i] += weight * widen(channels.items[i]);
}

template <typename T, int D, bool kFused>
__global__ void __launch_bounds__(Layout<T, D>::kThreads, Layout<T, D>::kForwardBlocks)
    ms_deform_attn_forward(const __grid_constant__ Call<T> call) {
  using Acc = Accumulator<T>;
  using Form = Layout<T, D>;
  constexpr int kLanes = Form::kLanes, kVector = Form::kVector;
  __shared__ SharedSamples<Acc, Form::kPlaces> shared;
  const Place<kLanes> place(call, Form::kQueries);
  const int channels = D == 0 ? static_cast<int>(call.dims.D) : D;
  // The divisor of the softmax is only known at the end: the whole output is divided by it.
  Softmax<Acc> numerators = {0, 1};
  if constexpr (kFused) {
    numerators.maximum = maximum_of<kLanes>(call.weights + place.row(call.dims) * call.samples,
                                            place.lane, call.samples);
  }
  const T* head = call.value + (place.n * call.dims.S * call.dims.M + place.m) * channels;
  const int64_t stride = call.dims.M * channels;
  // A single iteration, except in the general form.
  for (int base = 0; base < channels; base += kLanes * kVector) {
    const int channel = base + place.lane * kVector;
    const bool has_channels = D != 0 || channel < channels;
    const T* value = in_one_piece(head + channel);
    Acc sum[kVector] = {}, weight_sum = 0;
    for (int first = 0; first < call.samples; first += kLanes) {
      const Sample<Acc> sample = prepare_sample<D, kFused, GradValue::kScatter>(
          call, place, first + place.lane, numerators);
      weight_sum += sample.weight;
      shared.put(place.first + place.lane, sample);
      const int count = has_channels ? min(kLanes, call.samples - first) : 0;
#pragma unroll 1
      for (int j = 0; j < count; ++j) {
        const Corners<int32_t> corners = shared.corners[place.first + j].corners;
        const Corners<Acc> weights = shared.weights[place.first + j].corners;
        add_corner<D, T>(sum, value, corners.top_left, stride, weights.top_left);
        add_corner<D, T>(sum, value, corners.top_right, stride, weights.top_right);
        add_corner<D, T>(sum, value, corners.bottom_left, stride, weights.bottom_left);
        add_corner<D, T>(sum, value, corners.bottom_right, stride, weights.bottom_right);
      }
    }
    const Acc scale = kFused ? 1 / group_sum<kLanes>(weight_sum) : 1;
    if (place.active && has_channels) {
      Channels<T, kVector> result;
#pragma unroll
      for (int i = 0; i < kVector; ++i) result.items[i] = narrow<T>(scale * sum[i]);
      store_channels<T>(call.output + place.row(call.dims) * channels + channel, result);
    }
  }
}

// A lane's loop over the samples of its group: the products of the output's gradient with their
// corners, and at the same time the gradient of value.
template <typename T, int D, GradValue kGradValue>
struct BackwardWalk {
  using Acc = Accumulator<T>;
  using Form = Layout<T, D>;
  static constexpr int kVector = Form::kVector, kLanes = Form::kLanes;

  const SharedSamples<Acc, Form::kPlaces>& shared;
  const Place<kLanes>& place;
  const T* value;  // at the lane's first channel, like the other pointers
  const T* grad_output;
  Acc* grad_value;
  int channels;
  int64_t stride;  // of channels from cell to cell
  Acc gradient[kVector];

  __device__ __forceinline__ void load_gradient(int base) {
    const auto loaded = load_channels<T, kVector>(grad_output + base);
#pragma unroll
    for (int i = 0; i < kVector; ++i) gradient[i] = widen(loaded.items[i]);
  }

  __device__ __forceinline__ void add_corner(Acc& dot, int32_t corner, Acc weight, int base) const {
    if (corner < 0) return;
    const auto loaded =
        load_channels<T, kVector>(at_corner<D, kVector>(value + base, corner, stride));
#pragma unroll
    for (int i = 0; i < kVector; ++i) dot += gradient[i] * widen(loaded.items[i]);
    if constexpr (kGradValue == GradValue::kScatter) {
      add_channels<kVector>(at_corner<D, kVector>(grad_value + base, corner, stride), weight,
                            gradient);
    }
  }

  __device__ __forceinline__ void add_sample(Corners<Acc>& dots, int j, int base) const {
    const Corners<int32_t> corners = shared.corners[place.first + j].corners;
    const Corners<Acc> weights = shared.weights[place.first + j].corners;
    add_corner(dots.top_left, corners.top_left, weights.top_left, base);
    add_corner(dots.top_right, corners.top_right, weights.top_right, base);
    add_corner(dots.bottom_left, corners.bottom_left, weights.bottom_left, base);
    add_corner(dots.bottom_right, corners.bottom_right, weights.bottom_right, base);
  }

  // Of the j-th sample, over this lane's channels.
  __device__ __forceinline__ Corners<Acc> dots_of_lane(int j) {
    Corners<Acc> dots = {0, 0, 0, 0};
    if constexpr (D != 0) {
      add_sample(dots, j, 0);
    } else {
      for (int base = 0; base + place.lane < channels; base += kLanes) {
        load_gradient(base);
        add_sample(dots, j, base);
      }
    }
    return dots;
  }

  static __device__ __forceinline__ Acc exchange(bool is_upper, Acc lower, Acc upper, int step) {
    const Acc sent = is_upper ? lower : upper;
    return (is_upper ? upper : lower) + __shfl_xor_sync(0xffffffffu, sent, step);
  }

  // Sums of kCount samples from j on, over as many neighboring lanes, each lane keeping those of
  // one sample: two halves, summed over half the lanes each, swap what the other one keeps. For a
  // group, that is 4 * (kLanes - 1) shuffles instead of 4 * kLanes * log2(kLanes).
  template <int kCount>
  __device__ __forceinline__ Corners<Acc> dots_of(int j) {
    if constexpr (kCount == 1) {
      return dots_of_lane(j);
    } else {
      constexpr int kStep = kCount / 2;
      const Corners<Acc> lower = dots_of<kStep>(j), upper = dots_of<kStep>(j + kStep);
      const bool is_upper = (place.lane & kStep) != 0;
      return {exchange(is_upper, lower.top_left, upper.top_left, kStep),
              exchange(is_upper, lower.top_right, upper.top_right, kStep),
              exchange(is_upper, lower.bottom_left, upper.bottom_left, kStep),
              exchange(is_upper, lower.bottom_right, upper.bottom_right, kStep)};
    }
  }
};

// Last part of the fused backward, after all samples. `call.grad_points` holds the gradients
// of pixels, `call.grad_weights` those of weights; `inner` is the sum of their products with these.
template <typename T, int kLanes>
__device__ __forceinline__ void finish_fused(const Call<T>& call, const Place<kLanes>& place,
                                             const Softmax<Accumulator<T>>& softmax,
                                             Accumulator<T> inner) {
  using Acc = Accumulator<T>;
  const int L = static_cast<int>(call.dims.L), P = static_cast<int>(call.dims.P);
  const int R = static_cast<int>(call.dims.R);
  const int64_t start = place.row(call.dims) * call.samples;
  if (call.grad_reference != nullptr) {
    __syncwarp();  // the other lanes' gradients of pixels are written
#pragma unroll 1
    for (int i = place.lane; place.active && i < L * R; i += kLanes) {
      const int level = i / R, axis = i % 2;
      const bool is_size = i % R >= 2;
      const Level shape = call.levels.levels[level];
      Acc sum = 0;
#pragma unroll 1
      for (int k = level * P; k < (level + 1) * P; ++k) {
        const Acc gradient = call.grad_points[2 * (start + k) + axis];
        const Acc factor = is_size ? call.points[2 * (start + k) + axis] * call.half_step : Acc(1);
        // A point without a location may have a non-finite offset.
        if (gradient != 0) sum += gradient * factor;
      }
      const int size = axis == 0 ? shape.width : shape.height;
      call.grad_reference[place.row(call.dims) * L * R + i] = sum * static_cast<Acc>(size);
    }
    __syncwarp();  // the other lanes have read them
  }
#pragma unroll 1
  for (int k = place.lane; place.active && k < call.samples; k += kLanes) {
    const Acc gradient_of_weight = call.grad_weights[start + k];
    call.grad_weights[start + k] = softmax(call.weights[start + k]) * (gradient_of_weight - inner);
    if (R == 4) {
      const int level = k / P;
      const Level shape = call.levels.levels[level];
      const Acc* reference = call.reference_points + (place.query(call.dims) * L + level) * R;
      const Acc size_x = reference[2] * static_cast<Acc>(shape.width) * call.half_step;
      const Acc size_y = reference[3] * static_cast<Acc>(shape.height) * call.half_step;
      Acc* gradient = call.grad_points + 2 * (start + k);
      if (gradient[0] != 0) gradient[0] *= size_x;
      if (gradient[1] != 0) gradient[1] *= size_y;
    }
  }
}

template <typename T, int D, bool kFused, GradValue kGradValue>
__global__ void __launch_bounds__(Layout<T, D>::kThreads, Layout<T, D>::kBackwardBlocks)
    ms_deform_attn_backward(const __grid_constant__ Call<T> call) {
  using Acc = Accumulator<T>;
  using Form = Layout<T, D>;
  constexpr int kLanes = Form::kLanes, kVector = Form::kVector;
  __shared__ SharedSamples<Acc, Form::kPlaces> shared;
  const Place<kLanes> place(call, Form::kQueries);
  const int channels = D == 0 ? static_cast<int>(call.dims.D) : D;
  const int channel = place.lane * kVector;
  const int64_t head = (place.n * call.dims.S * call.dims.M + place.m) * channels + channel;
  BackwardWalk<T, D, kGradValue> walk = {
      shared,
      place,
      in_one_piece(call.value + head),
      call.grad_output + place.row(call.dims) * channels + channel,
      in_one_piece(call.grad_value + head),
      channels,
      call.dims.M * channels};
  if constexpr (D != 0) walk.load_gradient(0);
  Softmax<Acc> softmax = {};
  if constexpr (kFused) {
    softmax = softmax_of<kLanes>(in_one_piece(call.weights + place.row(call.dims) * call.samples),
                                 place.lane, call.samples);
  }
  Acc inner = 0;
  for (int first = 0; first < call.samples; first += kLanes) {
    const int k = first + place.lane;
    const Sample<Acc> sample = prepare_sample<D, kFused, kGradValue>(call, place, k, softmax);
    shared.put(place.first + place.lane, sample);
    const Corners<Acc> dots = walk.template dots_of<kLanes>(0);
    if (!place.active || k >= call.samples) continue;
    SampleGradient<Acc> gradient = sample_gradient(sample.weight, sample.x, sample.y, dots);
    if (!sample.is_inside) gradient = {0, 0, 0};
    const int64_t index = place.row(call.dims) * call.samples + k;
    if constexpr (kFused) {
      inner += sample.weight * gradient.attention_weight;
    } else {
      const Level shape = call.levels.levels[level_of(call, k)];
      gradient.pixel_x *= static_cast<Acc>(shape.width);
      gradient.pixel_y *= static_cast<Acc>(shape.height);
    }
    call.grad_weights[index] = gradient.attention_weight;
    call.grad_points[2 * index] = gradient.pixel_x;
    call.grad_points[2 * index + 1] = gradient.pixel_y;
    if constexpr (kGradValue == GradValue::kDefer) {
      call.base_cells[index] = sample.is_inside ? sample.base_cell
                                                : call.dims.N * call.dims.M *
                                                      base_cells_of(call.levels, call.levels.count);
      call.corner_weights[index].corners = corner_weights(sample.weight, sample.x, sample.y);
    }
  }
  if constexpr (kFused) {
    finish_fused(call, place, softmax, group_sum<kLanes>(inner));
  }
}

}  // namespace deformable_detr
