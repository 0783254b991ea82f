// Deformable kernel convolution on CPU: registration, checks and division of the work.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "kernels.h"

namespace deformable_detr {

namespace {

// The contiguous tensors of a call, and the arguments of the kernels.
struct DeformKernelArguments {
  Tensor x, weight, rotation;
  DeformKernelCall call;
};

void set_geometry(const std::vector<int64_t>& geometry, DeformKernelCall* call) {
  STD_TORCH_CHECK(geometry.size() == 8, "geometry must hold eight numbers, got ", geometry.size());
  constexpr int64_t kMost = int64_t{1} << 20;
  for (int axis = 0; axis < 2; ++axis) {
    int64_t* const targets[] = {&call->kernel[axis], &call->stride[axis], &call->padding[axis],
                                &call->dilation[axis]};
    for (int i = 0; i < 4; ++i) {
      const int64_t number = geometry[2 * i + axis];
      STD_TORCH_CHECK(number >= (i == 2 ? 0 : 1) && number < kMost,
                      "geometry must hold positive kernel sizes, strides and dilations and no "
                      "negative padding, below 2^20, got ",
                      number);
      *targets[i] = number;
    }
    call->output_size[axis] =
        (call->padded_size(axis) - call->reach(axis) - 1 + call->stride[axis]) / call->stride[axis];
    STD_TORCH_CHECK(call->padded_size(axis) > call->reach(axis),
                    "the padded map must be at least as large as the dilated kernel, got ",
                    call->padded_size(axis), " and ", call->reach(axis) + 1);
    STD_TORCH_CHECK(call->scope[axis] >= call->kernel[axis] && call->scope[axis] < 4096,
                    "the scope must be at least as large as the kernel and below 4096, got ",
                    call->scope[axis], " and ", call->kernel[axis]);
  }
  call->num_taps = call->kernel[0] * call->kernel[1];
}

DeformKernelArguments check(const Tensor& x, const Tensor& weight, const Tensor& rotation,
                            const std::vector<int64_t>& geometry, bool clip_to_scope) {
  const ScalarType dtype = x.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "x must be float32 or float64, got ", torch::headeronly::toString(dtype));
  STD_TORCH_CHECK(weight.scalar_type() == dtype && rotation.scalar_type() == dtype,
                  "weight and rotation must have the dtype of x");
  STD_TORCH_CHECK(x.dim() == 4, "x must have shape (N, C, H, W), got ", shape_of(x));
  STD_TORCH_CHECK(weight.dim() == 4, "weight must have shape (C, 1, S_h, S_w), got ",
                  shape_of(weight));
  STD_TORCH_CHECK(rotation.dim() == 4, "rotation must have four dimensions, got ",
                  shape_of(rotation));
  DeformKernelCall call = {};
  call.N = x.size(0);
  call.C = x.size(1);
  for (int axis = 0; axis < 2; ++axis) {
    call.size[axis] = x.size(2 + axis);
    call.scope[axis] = weight.size(2 + axis);
  }
  set_geometry(geometry, &call);
  check_shape("weight", weight, {call.C, 1, call.scope[0], call.scope[1]});
  call.R = std::max<int64_t>(rotation.size(1) / (2 * call.num_taps), 1);
  check_shape("rotation", rotation,
              {call.N, call.R * 2 * call.num_taps, call.output_size[0], call.output_size[1]});
  STD_TORCH_CHECK(call.C % call.R == 0, "rotation must be of R groups with R a divisor of ", call.C,
                  ", got ", call.R);
  call.clip_to_scope = clip_to_scope;
  DeformKernelArguments arguments = {torch::stable::contiguous(x),
                                     torch::stable::contiguous(weight),
                                     torch::stable::contiguous(rotation), call};
  arguments.call.x = arguments.x.const_data_ptr();
  arguments.call.weight = arguments.weight.const_data_ptr();
  arguments.call.rotation = arguments.rotation.const_data_ptr();
  return arguments;
}

const DeformKernels& kernels_of(const Tensor& x) {
  const bool is_double = x.scalar_type() == ScalarType::Double;
  return kernels_for(is_double ? kFloat64 : kFloat32).deform_kernels[is_double ? 1 : 0];
}

// Number of blocks of channels per group.
int64_t num_blocks(const DeformKernelCall& call, const DeformKernels& kernels) {
  return (call.C / call.R + kernels.channels - 1) / kernels.channels;
}

// The i-th unit; blocks are innermost.
DeformKernelUnit unit_of(const DeformKernelCall& call, const DeformKernels& kernels, int64_t i) {
  const int64_t blocks = num_blocks(call, kernels);
  const int64_t first = i % blocks * kernels.channels;
  return {i / blocks / call.R,
          i / blocks % call.R,
          first,
          std::min(kernels.channels, call.C / call.R - first),
          nullptr,
          nullptr};
}

Tensor forward(const Tensor& x, const Tensor& weight, const Tensor& rotation,
               std::vector<int64_t> geometry, bool clip_to_scope) {
  DeformKernelArguments arguments = check(x, weight, rotation, geometry, clip_to_scope);
  DeformKernelCall& call = arguments.call;
  const DeformKernels& kernels = kernels_of(x);
  Tensor output = torch::stable::new_empty(
      arguments.x, {call.N, call.C, call.output_size[0], call.output_size[1]});
  call.output = output.mutable_data_ptr();
  const int64_t units = call.N * call.R * num_blocks(call, kernels);
  torch::stable::parallel_for(0, units, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) kernels.forward(call, unit_of(call, kernels, i));
  });
  return output;
}

// Adds the other parts to the first, always in the same order.
template <typename Scalar>
void add_parts(void* first, const void* others, int64_t size, int64_t count) {
  constexpr int64_t kGrain = 4096;
  Scalar* const sums = static_cast<Scalar*>(first);
  const Scalar* const parts = static_cast<const Scalar*>(others);
  torch::stable::parallel_for(0, count == 0 ? 0 : size, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t part = 0; part < count; ++part) {
      for (int64_t i = begin; i < end; ++i) sums[i] += parts[part * size + i];
    }
  });
}

// A gradient to which several units contribute; the first part is the gradient itself.
struct Parts {
  Tensor gradient, others;
  int64_t size, count, bytes;

  Parts(const Tensor& like, int64_t parts)
      : gradient(parts == 0 ? torch::stable::new_zeros(like, like.sizes())
                            : torch::stable::new_empty(like, like.sizes())),
        others(torch::stable::new_empty(like, {std::max<int64_t>(parts - 1, 0), like.numel()})),
        size(like.numel()),
        count(others.size(0)),
        bytes(like.scalar_type() == ScalarType::Double ? 8 : 4) {}

  void* at(int64_t part) {
    if (part == 0) return gradient.mutable_data_ptr();
    return static_cast<std::byte*>(others.mutable_data_ptr()) + (part - 1) * size * bytes;
  }
  void add() {
    const auto function = bytes == 8 ? add_parts<double> : add_parts<float>;
    function(gradient.mutable_data_ptr(), others.const_data_ptr(), size, count);
  }
};

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& x,
                                            const Tensor& weight, const Tensor& rotation,
                                            std::vector<int64_t> geometry, bool clip_to_scope) {
  DeformKernelArguments arguments = check(x, weight, rotation, geometry, clip_to_scope);
  DeformKernelCall& call = arguments.call;
  check_shape("grad_output", grad_output,
              {call.N, call.C, call.output_size[0], call.output_size[1]});
  STD_TORCH_CHECK(grad_output.scalar_type() == x.scalar_type(),
                  "grad_output must have the dtype of x");
  const Tensor gradient = torch::stable::contiguous(grad_output);
  const DeformKernels& kernels = kernels_of(x);
  const int64_t blocks = num_blocks(call, kernels);
  Tensor grad_x = torch::stable::new_empty(arguments.x, arguments.x.sizes());
  Parts grad_weight(arguments.weight, call.N), grad_rotation(arguments.rotation, blocks);
  call.grad_output = gradient.const_data_ptr();
  call.grad_x = grad_x.mutable_data_ptr();
  torch::stable::parallel_for(0, call.N * call.R * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      DeformKernelUnit unit = unit_of(call, kernels, i);
      unit.grad_weight = grad_weight.at(unit.n);
      unit.grad_rotation = grad_rotation.at(i % blocks);
      kernels.backward(call, unit);
    }
  });
  grad_weight.add();
  grad_rotation.add();
  return {grad_x, grad_weight.gradient, grad_rotation.gradient};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(deformable_detr, CPU, m) {
  m.impl("deform_kernel_conv2d", TORCH_BOX(&forward));
  m.impl("deform_kernel_conv2d_backward", TORCH_BOX(&backward));
}

}  // namespace deformable_detr
