// Checks of the operators' arguments, and their sizes. Arguments of calls through
// deformable_detr.ops have already been checked in Python; those of direct calls of torch.ops are
// checked here.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "dims.h"

namespace deformable_detr {

// PyTorch's stable interface has hidden visibility, so every file compiles its own copy.
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The tensors of a call, contiguous, as the kernels need them. `points` is sampling_locations, or
// sampling_offsets in the fused operator; `weights` is attention_weights, or attention_logits.
struct Arguments {
  Tensor value;
  Tensor points;
  Tensor weights;
  Tensor reference_points;  // of the fused operator; else a copy of `points`, unread
  Dims dims;
  LevelTable levels;
};

inline std::string shape_of(const Tensor& tensor) {
  std::ostringstream text;
  text << "(";
  for (int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "") << tensor.size(i);
  text << ")";
  return text.str();
}

inline void check_shape(const char* name, const Tensor& tensor,
                        std::initializer_list<int64_t> expected) {
  bool equal = tensor.dim() == static_cast<int64_t>(expected.size());
  std::ostringstream wanted;
  int64_t i = 0;
  for (const int64_t size : expected) {
    equal = equal && tensor.size(i) == size;
    wanted << (i++ ? ", " : "") << size;
  }
  STD_TORCH_CHECK(equal, name, " must have shape (", wanted.str(), "), got ", shape_of(tensor));
}

inline LevelTable level_table(const std::vector<int64_t>& level_shapes, int64_t S) {
  STD_TORCH_CHECK(level_shapes.size() % 2 == 0 && level_shapes.size() >= 2,
                  "level_shapes must hold a height and a width for each level, got ",
                  level_shapes.size(), " numbers");
  LevelTable table = {};
  STD_TORCH_CHECK(level_shapes.size() <= 2 * kMaxLevels, "level_shapes must describe at most ",
                  kMaxLevels, " levels, got ", level_shapes.size() / 2);
  table.count = static_cast<int32_t>(level_shapes.size() / 2);
  int64_t start = 0;
  for (int32_t i = 0; i < table.count; ++i) {
    const int64_t height = level_shapes[2 * i];
    const int64_t width = level_shapes[2 * i + 1];
    // Pixels of a level are numbered in float32, which holds integers up to 2^24 exactly.
    STD_TORCH_CHECK(height >= 0 && width >= 0 && height < (1 << 24) && width < (1 << 24),
                    "level_shapes must be sizes from 0 to 2^24 - 1, got ", height, " x ", width);
    const int64_t cells = height * width;
    // The size of a level without cells is 0 x 0, so that its other side is never used.
    table.levels[i] = {static_cast<int32_t>(cells == 0 ? 0 : height),
                       static_cast<int32_t>(cells == 0 ? 0 : width), start};
    start += cells;
  }
  STD_TORCH_CHECK(start == S, "value holds S = ", S, " positions but level_shapes describe ",
                  start);
  return table;
}

inline void check_dtypes(const Tensor& value, std::initializer_list<const Tensor*> coordinates) {
  const ScalarType dtype = value.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Double || dtype == ScalarType::Float ||
                      dtype == ScalarType::Half || dtype == ScalarType::BFloat16,
                  "value must be float64, float32, float16 or bfloat16, got ",
                  torch::headeronly::toString(dtype));
  const ScalarType wanted = dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  for (const Tensor* tensor : coordinates) {
    STD_TORCH_CHECK(tensor->scalar_type() == wanted, "points and weights must be ",
                    torch::headeronly::toString(wanted), " as value is ",
                    torch::headeronly::toString(dtype), ", got ",
                    torch::headeronly::toString(tensor->scalar_type()));
    STD_TORCH_CHECK(tensor->device() == value.device(),
                    "points and weights must be on the device of value");
  }
}

inline Arguments check_arguments(const Tensor& value, const std::vector<int64_t>& level_shapes,
                                 const Tensor& points, const Tensor& weights,
                                 const Tensor* reference_points) {
  STD_TORCH_CHECK(value.dim() == 4, "value must have shape (N, S, M, D), got ", shape_of(value));
  STD_TORCH_CHECK(points.dim() == 6, "points must have shape (N, Q, M, L, P, 2), got ",
                  shape_of(points));
  const int64_t N = value.size(0), S = value.size(1), M = value.size(2), D = value.size(3);
  const int64_t Q = points.size(1), P = points.size(4);
  const LevelTable levels = level_table(level_shapes, S);
  const int64_t L = levels.count;
  check_shape("points", points, {N, Q, M, L, P, 2});
  check_shape("weights", weights, {N, Q, M, L, P});
  check_dtypes(value, {&points, &weights});
  int64_t R = 0;
  if (reference_points != nullptr) {
    STD_TORCH_CHECK(reference_points->dim() == 4 &&
                        (reference_points->size(3) == 2 || reference_points->size(3) == 4),
                    "reference_points must have shape (N, Q, L, 2) or (N, Q, L, 4), got ",
                    shape_of(*reference_points));
    R = reference_points->size(3);
    check_shape("reference_points", *reference_points, {N, Q, L, R});
    check_dtypes(value, {reference_points});
  }
  return {torch::stable::contiguous(value),
          torch::stable::contiguous(points),
          torch::stable::contiguous(weights),
          torch::stable::contiguous(reference_points == nullptr ? points : *reference_points),
          {N, S, M, D, Q, L, P, R},
          levels};
}

inline Tensor check_grad_output(const Tensor& grad_output, const Tensor& value, const Dims& dims) {
  check_shape("grad_output", grad_output, {dims.N, dims.Q, dims.M * dims.D});
  STD_TORCH_CHECK(
      grad_output.scalar_type() == value.scalar_type() && grad_output.device() == value.device(),
      "grad_output must have the dtype and the device of value");
  return torch::stable::contiguous(grad_output);
}

}  // namespace

}  // namespace deformable_detr
