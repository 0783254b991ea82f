// The operators on CUDA: registration, choice of the kernel, and launches.

// Declares PyTorch's CUDA functions.
#if !defined(USE_CUDA)
#define USE_CUDA
#endif

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "ms_deformable_attention/gather.cuh"
#include "ms_deformable_attention/im2col.cuh"
#include "ms_deformable_attention/launch.cuh"

namespace deformable_detr {

namespace {

bool is_empty(const Dims& dims) {
  return dims.N * dims.Q * dims.M * dims.D * dims.L * dims.P * dims.S == 0;
}

// A contiguous tensor may begin anywhere in its storage, but vector loads need alignment.
Tensor aligned(const Tensor& tensor) {
  constexpr uintptr_t kAlignment = 16;
  const bool is_aligned = reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % kAlignment == 0;
  return is_aligned ? tensor : torch::stable::clone(tensor);
}

Arguments aligned(Arguments arguments) {
  arguments.value = aligned(arguments.value);
  arguments.points = aligned(arguments.points);
  return arguments;
}

template <typename T>
Call<T> make_call(const Arguments& arguments) {
  using Acc = Accumulator<T>;
  const Dims& dims = arguments.dims;
  // Counted in 32 bits; of positions half, as what lies beyond the last is numbered too.
  constexpr int64_t kMaxIndex = (int64_t{1} << 31) - 1;
  STD_TORCH_CHECK(dims.S < (int64_t{1} << 30), "value must hold fewer than 2^30 positions, got ",
                  dims.S);
  STD_TORCH_CHECK(dims.N <= kMaxIndex && dims.Q <= kMaxIndex && dims.M * dims.D <= kMaxIndex,
                  "images, queries and channels must be fewer than 2^31");
  STD_TORCH_CHECK(dims.L * dims.P < (int64_t{1} << 22),
                  "a query must have fewer than 2^22 points a head, got ", dims.L * dims.P);
  Call<T> call = {};
  call.value = static_cast<const T*>(arguments.value.const_data_ptr());
  call.points = static_cast<const Acc*>(arguments.points.const_data_ptr());
  call.weights = static_cast<const Acc*>(arguments.weights.const_data_ptr());
  call.reference_points = static_cast<const Acc*>(arguments.reference_points.const_data_ptr());
  call.dims = dims;
  call.levels = arguments.levels;
  call.samples = static_cast<int32_t>(dims.L * dims.P);
  call.inverse_points = 1 / static_cast<float>(dims.P);
  call.half_step = Acc(0.5) / static_cast<Acc>(dims.P);
  return call;
}

// Whether the kernels for this D may be used; they number the vectors of an image in 30 bits.
template <typename T, int D>
bool has_vectors(const Dims& dims) {
  return dims.D == D && dims.S * dims.M * Layout<T, D>::kLanes < (int64_t{1} << 30);
}

template <typename T, int D>
void launch_forward(const Call<T>& call, cudaStream_t stream) {
  launch_for_queries<Layout<T, D>>(
      call.dims.R == 0 ? &ms_deform_attn_forward<T, D, false> : &ms_deform_attn_forward<T, D, true>,
      call, stream);
}

template <typename T, int D, GradValue kGradValue>
void launch_backward(const Call<T>& call, cudaStream_t stream) {
  launch_for_queries<Layout<T, D>>(call.dims.R == 0
                                       ? &ms_deform_attn_backward<T, D, false, kGradValue>
                                       : &ms_deform_attn_backward<T, D, true, kGradValue>,
                                   call, stream);
}

// Calls `launch.operator()<D>()` with D if there are kernels for it, or with 0. float64, meant for
// gradient checks, only has general kernels.
template <typename T, typename Launch>
void dispatch_channels(const Call<T>& call, const Launch& launch) {
  if constexpr (sizeof(T) < 8) {
    if (has_vectors<T, 16>(call.dims)) return launch.template operator()<16>();
    if (has_vectors<T, 32>(call.dims)) return launch.template operator()<32>();
    if (has_vectors<T, 64>(call.dims)) return launch.template operator()<64>();
  }
  launch.template operator()<0>();
}

// Calls `run` with a value of the C++ type of value's elements.
template <typename Run>
auto dispatch_type(const Tensor& value, const Run& run) {
  switch (value.scalar_type()) {
    case ScalarType::Double:
      return run(double{});
    case ScalarType::Half:
      return run(__half{});
    case ScalarType::BFloat16:
      return run(__nv_bfloat16{});
    default:
      return run(float{});
  }
}

Tensor run_forward(const Arguments& arguments) {
  const Dims& dims = arguments.dims;
  const std::vector<int64_t> shape = {dims.N, dims.Q, dims.M * dims.D};
  if (is_empty(dims)) return torch::stable::new_zeros(arguments.value, shape);
  const torch::stable::accelerator::DeviceGuard guard(arguments.value.get_device_index());
  const cudaStream_t stream = prepare_launches(arguments.value);
  Tensor output = torch::stable::new_empty(arguments.value, shape);
  dispatch_type(arguments.value, [&]<typename T>(T) {
    Call<T> call = make_call<T>(arguments);
    call.output = static_cast<T*>(output.mutable_data_ptr());
    dispatch_channels(call, [&]<int D>() { launch_forward<T, D>(call, stream); });
  });
  return output;
}

// aten::sort.stable; PyTorch's header has it for newer versions only.
std::tuple<Tensor, Tensor> stable_sort(const Tensor& tensor) {
  std::array<StableIValue, 4> stack = {
      torch::stable::detail::from(tensor), torch::stable::detail::from(std::optional<bool>(true)),
      torch::stable::detail::from(int64_t{0}), torch::stable::detail::from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

struct Gradients {
  Tensor value, points, weights, reference_points;
};

// `call` is complete except for the destination of the gradient of value.
template <typename T>
Tensor scatter_grad_value(Call<T> call, const Tensor& value, cudaStream_t stream) {
  const std::vector<int64_t> shape = {call.dims.N, call.dims.S, call.dims.M, call.dims.D};
  const ScalarType wide = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;
  const Tensor sums = torch::stable::new_zeros(value, shape, wide);
  call.grad_value = static_cast<Accumulator<T>*>(sums.mutable_data_ptr());
  dispatch_channels(call,
                    [&]<int D>() { launch_backward<T, D, GradValue::kScatter>(call, stream); });
  return torch::stable::to(sums, value.scalar_type());
}

template <typename T>
Tensor gather_grad_value(Call<T> call, const Tensor& value, cudaStream_t stream) {
  const Dims& dims = call.dims;
  const int64_t samples = dims.N * dims.Q * dims.M * call.samples;
  const ScalarType wide = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;
  const std::vector<int64_t> numbers = {samples}, corners = {samples, 4};
  const Tensor base_cells = torch::stable::new_empty(value, numbers, ScalarType::Long);
  const Tensor weights = torch::stable::new_empty(value, corners, wide);
  call.base_cells = static_cast<int64_t*>(base_cells.mutable_data_ptr());
  call.corner_weights = static_cast<PackedCorners<Accumulator<T>>*>(weights.mutable_data_ptr());
  launch_backward<T, 0, GradValue::kDefer>(call, stream);
  const auto [sorted, order] = stable_sort(base_cells);
  const std::vector<int64_t> shape = {dims.N, dims.S, dims.M, dims.D};
  const Tensor grad_value = torch::stable::new_empty(value, shape);
  const int64_t count = dims.N * dims.S * dims.M * dims.D;
  ms_deform_attn_gather<T><<<blocks_for(count, kGatherThreads), kGatherThreads, 0, stream>>>(
      call, static_cast<const int64_t*>(sorted.const_data_ptr()),
      static_cast<const int64_t*>(order.const_data_ptr()),
      static_cast<T*>(grad_value.mutable_data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return grad_value;
}

Gradients run_backward(const Tensor& grad_output, const Arguments& arguments,
                       bool needs_reference_grad, bool deterministic) {
  const Dims& dims = arguments.dims;
  const torch::stable::accelerator::DeviceGuard guard(arguments.value.get_device_index());
  const Tensor gradient = aligned(check_grad_output(grad_output, arguments.value, dims));
  const bool empty = is_empty(dims);
  const auto make = [&](const Tensor& like, const std::vector<int64_t>& shape) {
    return empty ? torch::stable::new_zeros(like, shape) : torch::stable::new_empty(like, shape);
  };
  const std::vector<int64_t> none = {0}, per_head = {dims.N, dims.Q, dims.M, dims.L, dims.R};
  Gradients gradients = {arguments.value,  // replaced below
                         make(arguments.points, {dims.N, dims.Q, dims.M, dims.L, dims.P, 2}),
                         make(arguments.points, {dims.N, dims.Q, dims.M, dims.L, dims.P}),
                         make(arguments.points, needs_reference_grad ? per_head : none)};
  if (empty) {
    gradients.value = make(arguments.value, {dims.N, dims.S, dims.M, dims.D});
  } else {
    const cudaStream_t stream = prepare_launches(arguments.value);
    gradients.value = dispatch_type(arguments.value, [&]<typename T>(T) {
      using Acc = Accumulator<T>;
      Call<T> call = make_call<T>(arguments);
      call.grad_output = static_cast<const T*>(gradient.const_data_ptr());
      call.grad_points = static_cast<Acc*>(gradients.points.mutable_data_ptr());
      call.grad_weights = static_cast<Acc*>(gradients.weights.mutable_data_ptr());
      if (needs_reference_grad) {
        call.grad_reference = static_cast<Acc*>(gradients.reference_points.mutable_data_ptr());
      }
      return deterministic ? gather_grad_value(call, arguments.value, stream)
                           : scatter_grad_value(call, arguments.value, stream);
    });
  }
  if (needs_reference_grad) {
    const std::vector<int64_t> heads = {2};
    gradients.reference_points = torch::stable::sum(gradients.reference_points, heads);
  }
  return gradients;
}

Tensor forward(const Tensor& value, std::vector<int64_t> level_shapes,
               const Tensor& sampling_locations, const Tensor& attention_weights) {
  return run_forward(aligned(
      check_arguments(value, level_shapes, sampling_locations, attention_weights, nullptr)));
}

Tensor forward_fused(const Tensor& value, std::vector<int64_t> level_shapes,
                     const Tensor& reference_points, const Tensor& sampling_offsets,
                     const Tensor& attention_logits) {
  return run_forward(aligned(
      check_arguments(value, level_shapes, sampling_offsets, attention_logits, &reference_points)));
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& value,
                                            std::vector<int64_t> level_shapes,
                                            const Tensor& sampling_locations,
                                            const Tensor& attention_weights, bool deterministic) {
  const Gradients gradients = run_backward(
      grad_output,
      aligned(check_arguments(value, level_shapes, sampling_locations, attention_weights, nullptr)),
      false, deterministic);
  return {gradients.value, gradients.points, gradients.weights};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward_fused(
    const Tensor& grad_output, const Tensor& value, std::vector<int64_t> level_shapes,
    const Tensor& reference_points, const Tensor& sampling_offsets, const Tensor& attention_logits,
    bool needs_reference_grad, bool deterministic) {
  const Gradients gradients =
      run_backward(grad_output,
                   aligned(check_arguments(value, level_shapes, sampling_offsets, attention_logits,
                                           &reference_points)),
                   needs_reference_grad, deterministic);
  return {gradients.value, gradients.reference_points, gradients.points, gradients.weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(deformable_detr, CUDA, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&forward));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&backward));
  m.impl("ms_deform_attn_fused", TORCH_BOX(&forward_fused));
  m.impl("ms_deform_attn_fused_backward", TORCH_BOX(&backward_fused));
}

}  // namespace deformable_detr
