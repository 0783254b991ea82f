// A deformable kernel convolution of some channels of one image: channels are innermost, so that a
// vector holds the same tap of several channels, which read the scope at the same place.
#pragma once

#include "rows.h"

// Vectors of channels that are processed together.
template <typename V>
constexpr int kChannelVectors = V::kLanes >= 16 ? 2 : 4;

template <typename V>
constexpr int64_t kChannels = kChannelVectors<V>* V::kLanes;

// ScopeCorners of a bilinear sample: this cell, the next one in the row, and both in the next row.
template <typename V>
struct ScopeCorners {
  int64_t at[4];
  typename V::F shares[4];

  ScopeCorners(const TapRow<V>& taps, int64_t sample, int64_t next_row) {
    const int64_t cell = taps.cells[sample] * kChannels<V>;
    for (int i = 0; i < 4; ++i) {
      at[i] = cell + (i % 2) * kChannels<V> + (i / 2) * next_row;
      shares[i] = typename V::F(taps.shares[i][sample]);
    }
  }
};

template <typename V, int kVectors>
void deform_kernel_forward_of(const DeformKernelCall& call, const DeformKernelUnit& unit) {
  using F = typename V::F;
  using Scalar = typename V::Scalar;
  constexpr int64_t kWidth = kChannels<V>;
  const Workspace<V> work(call, kWidth, false);
  work.load_scope(call, unit);
  const int64_t next_row = (call.scope[1] + 2) * kWidth;
  RowWindow<V> window(call, unit, work);
  for (int64_t y = 0; y < call.output_size[0]; ++y) {
    window.slide_to(y);
    work.taps.prepare(call, unit, y);
    for (int64_t z = 0; z < call.output_size[1]; ++z) {
      F sums[kVectors];
      for (F& sum : sums) sum = F(Scalar(0));
      for (int64_t tap = 0; tap < call.num_taps; ++tap) {
        const ScopeCorners<V> corners(work.taps, tap * work.taps.row + z, next_row);
        const Scalar* features = work.rows + window.at(z, tap);
        for (int k = 0; k < kVectors; ++k) {
          const Scalar* scope = work.scope + k * V::kLanes;
          F value = V::load(scope + corners.at[0]) * corners.shares[0];
          for (int i = 1; i < 4; ++i) {
            value = V::fma(V::load(scope + corners.at[i]), corners.shares[i], value);
          }
          sums[k] = V::fma(value, V::load(features + k * V::kLanes), sums[k]);
        }
      }
      for (int k = 0; k < kVectors; ++k) {
        V::store(work.output_row + z * kWidth + k * V::kLanes, sums[k]);
      }
    }
    unpack_row(work.output_row, kWidth, unit.count, call.output_size[1],
               static_cast<Scalar*>(call.output) + call.output_at(unit, y), call.output_step());
  }
}

// One tap of one position: adds to the gradients of features and scope, and returns the products of
// the four corners' values with the gradient of the tap's kernel value, summed over the channels.
template <typename V, int kVectors>
typename V::Four tap_gradients(const ScopeCorners<V>& corners, const typename V::Scalar* scope,
                               const typename V::Scalar* features,
                               const typename V::Scalar* grad_output,
                               typename V::Scalar* grad_features, typename V::Scalar* grad_scope) {
  using F = typename V::F;
  F products[4];
  for (F& product : products) product = F(typename V::Scalar(0));
  for (int k = 0; k < kVectors * V::kLanes; k += V::kLanes) {
    const F grad = V::load(grad_output + k);
    const F received = grad * V::load(features + k);
    F value = F(typename V::Scalar(0));
    for (int i = 0; i < 4; ++i) {
      const int64_t at = corners.at[i] + k;
      const F corner = V::load(scope + at);
      value = i == 0 ? corner * corners.shares[i] : V::fma(corner, corners.shares[i], value);
      products[i] = V::fma(received, corner, products[i]);
      V::store(grad_scope + at, V::fma(received, corners.shares[i], V::load(grad_scope + at)));
    }
    V::store(grad_features + k, V::fma(grad, value, V::load(grad_features + k)));
  }
  return V::sums_of_four(products[0], products[1], products[2], products[3]);
}

template <typename V, int kVectors>
void deform_kernel_backward_of(const DeformKernelCall& call, const DeformKernelUnit& unit) {
  using Scalar = typename V::Scalar;
  constexpr int64_t kWidth = kChannels<V>;
  const Workspace<V> work(call, kWidth, true);
  work.load_scope(call, unit);
  const int64_t next_row = (call.scope[1] + 2) * kWidth;
  RowWindow<V> window(call, unit, work);
  for (int64_t y = 0; y < call.output_size[0]; ++y) {
    window.slide_to(y);
    work.taps.prepare(call, unit, y);
    pack_row(static_cast<const Scalar*>(call.grad_output) + call.output_at(unit, y),
             call.output_step(), unit.count, call.output_size[1], work.output_row, kWidth);
    for (int64_t tap = 0; tap < call.num_taps; ++tap) {
      for (int64_t start = 0; start < call.output_size[1]; start += 4) {
        typename V::Four parts[4] = {};
        const auto sample = [&](int64_t i) {
          const int64_t z = start + i;
          parts[i] = tap_gradients<V, kVectors>(
              ScopeCorners<V>(work.taps, tap * work.taps.row + z, next_row), work.scope,
              work.rows + window.at(z, tap), work.output_row + z * kWidth,
              work.grad_rows + window.at(z, tap), work.grad_scope);
        };
        const int64_t count = call.output_size[1] - start;
        if (count >= 4) {
          for (int i = 0; i < 4; ++i) sample(i);
        } else {
          for (int64_t i = 0; i < count; ++i) sample(i);
        }
        V::store_sums(parts, work.taps.products + tap * work.taps.row + start,
                      call.num_taps * work.taps.row, false);
      }
    }
    work.taps.put_gradient(call, unit, y);
  }
  window.finish();
  work.put_scope_gradient(call, unit);
}

// Processes as many vectors as the unit's channels fill.
template <typename V>
void deform_kernel_forward(const DeformKernelCall& call, const DeformKernelUnit& unit) {
  const int64_t vectors = (unit.count + V::kLanes - 1) / V::kLanes;
  if (vectors == 1) return deform_kernel_forward_of<V, 1>(call, unit);
  if (vectors == 2) return deform_kernel_forward_of<V, 2>(call, unit);
  deform_kernel_forward_of<V, kChannelVectors<V>>(call, unit);
}

template <typename V>
void deform_kernel_backward(const DeformKernelCall& call, const DeformKernelUnit& unit) {
  if (unit.count <= V::kLanes) return deform_kernel_backward_of<V, 1>(call, unit);
  deform_kernel_backward_of<V, kChannelVectors<V>>(call, unit);
}

template <typename V>
constexpr deformable_detr::DeformKernels kDeformKernels = {kChannels<V>, deform_kernel_forward<V>,
                                                           deform_kernel_backward<V>};
