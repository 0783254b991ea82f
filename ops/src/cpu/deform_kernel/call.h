// One call of the deformable kernel convolution, and its unit of work.
#pragma once

#include <cstdint>

namespace deformable_detr {

// Some channels of one rotation group of one image: the unit that a thread takes.
struct DeformKernelUnit {
  int64_t n, group;
  int64_t first, count;  // channels, counted within the group
  void* grad_weight;     // (C, S_h, S_w) of this image
  void* grad_rotation;   // (N, R, k_h, k_w, 2, H_out, W_out) of these channels
};

// Pairs are (height, width); tensors are contiguous, all of floats or all of doubles.
struct DeformKernelCall {
  int64_t N, C, R;
  int64_t size[2], output_size[2], scope[2];
  int64_t kernel[2], stride[2], padding[2], dilation[2];
  int64_t num_taps;
  bool clip_to_scope;
  const void *x, *weight, *rotation;
  void* output;  // forward only; what follows is for the backward pass only
  const void* grad_output;
  void* grad_x;

  int64_t reach(int axis) const { return dilation[axis] * (kernel[axis] - 1); }
  int64_t padded_size(int axis) const { return size[axis] + 2 * padding[axis]; }
  // Channel c belongs to group c % R.
  int64_t channel(const DeformKernelUnit& unit, int64_t c) const {
    return (unit.first + c) * R + unit.group;
  }
  // Start of a row of the unit's first channel, and distance to the next channel's row.
  int64_t x_at(const DeformKernelUnit& unit, int64_t row) const {
    return ((unit.n * C + channel(unit, 0)) * size[0] + row) * size[1];
  }
  int64_t x_step() const { return R * size[0] * size[1]; }
  int64_t output_at(const DeformKernelUnit& unit, int64_t row) const {
    return ((unit.n * C + channel(unit, 0)) * output_size[0] + row) * output_size[1];
  }
  int64_t output_step() const { return R * output_size[0] * output_size[1]; }
  // Start of a row of the first tap's row offsets.
  int64_t rotation_at(const DeformKernelUnit& unit, int64_t row) const {
    return ((unit.n * R + unit.group) * num_taps * 2 * output_size[0] + row) * output_size[1];
  }
};

// The kernels of one instruction set for one type.
struct DeformKernels {
  using Function = void (*)(const DeformKernelCall&, const DeformKernelUnit&);
  int64_t channels;  // maximum of a unit
  Function forward, backward;
};

}  // namespace deformable_detr
