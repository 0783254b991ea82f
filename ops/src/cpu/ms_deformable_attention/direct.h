// Forward and backward of a few queries of one head directly on value, generic over the vector
// type: with fewer samples than cells, a packed copy would cost more than it saves.
//
// Corners outside the level are moved onto the nearest corner inside, with a weight of zero. That
// cell belongs to the sample anyway, so no other cell, which may be NaN, can leak into the result.
#pragma once

#include "packed_copy.h"

// Cell of a sample that is entirely outside.
constexpr int32_t kNoCell = -1;

// Cells and weights of the top left, top right, bottom left and bottom right corners of each
// sample; each of the eight is a row over the samples of a query.
constexpr int64_t kDirectArrays = 8;

// Memory of a unit. The forward pass processes the heads of one query together, because they read
// nearly the same pixels; the backward pass processes one head after the other.
template <typename V, bool kBackward>
struct DirectMemory {
  using Scalar = typename V::Scalar;
  int64_t samples_row;
  int64_t dots_row;  // includes room for the last four sums
  SampleTable<Scalar> table;
  Scalar* weights;  // softmax of the logits, one row per head
  typename V::Index* samples;
  // Backward only: one row per corner of one query; and the gradient of one head's value, its rows
  // together, so that random accesses stay in the nearer caches.
  Scalar *dots, *grad_head;

  DirectMemory(Arena& arena, const Call& call)
      : samples_row(round_up(call.dims.L * call.dims.P, V::kLanes)),
        dots_row(samples_row + 4),
        table(arena, samples_row),
        weights(arena.take<Scalar>(call.dims.M * samples_row)),
        samples(arena.take<typename V::Index>(kDirectArrays * call.dims.M * samples_row)),
        dots(kBackward ? arena.take<Scalar>(4 * dots_row) : nullptr),
        grad_head(kBackward ? arena.take<Scalar>(call.dims.S * call.dims.D) : nullptr) {}

  static DirectMemory of_thread(const Call& call) {
    Arena counting(nullptr);
    DirectMemory(counting, call);
    Arena arena(deformable_detr::thread_scratch(counting.used()));
    DirectMemory memory(arena, call);
    for (int64_t k = 0; k < memory.samples_row; ++k) {  // values past the last sample are unused
      const int64_t i = std::min<int64_t>(k / call.dims.P, call.levels.count - 1);
      const auto& level = call.levels.levels[i];
      memory.table.set(k, level, level.width, level.start, i * call.dims.R);
    }
    return memory;
  }

  typename V::Index* samples_of(int64_t m) const {
    return samples + m * kDirectArrays * samples_row;
  }

  // The attention weights of a query's head.
  const Scalar* weights_of(const View<Scalar>& view, int64_t query, int64_t m) const {
    return view.R == 0 ? view.weights + query * view.stride : weights + m * samples_row;
  }
};

template <typename V, typename Memory>
inline void prepare_direct(const View<typename V::Scalar>& view, int64_t query, int64_t m,
                           const Memory& memory) {
  using F = typename V::F;
  using Scalar = typename V::Scalar;
  const F zero(Scalar(0)), one(Scalar(1));
  if (view.R != 0) {
    softmax<V>(view, query, 1, memory.samples_row, memory.weights + m * memory.samples_row);
  }
  const Scalar* weights = memory.weights_of(view, query, m);
  for (int64_t k = 0; k < view.size; k += V::kLanes) {
    const Location<V> at = locate<V>(view, memory.table, query, k);
    const F width = V::load(memory.table.width + k), height = V::load(memory.table.height + k);
    const auto weight = V::keep(at.inside, V::load_some(weights + k, view.size - k, Scalar(0)));
    const auto corners = keep_corners<V>(at, memory.table, k, corner_weights(weight, at.x, at.y));
    const F columns[2] = {V::max(at.left, zero), V::min(at.left + one, width - one)};
    const F rows[2] = {V::max(at.top, zero), V::min(at.top + one, height - one)};
    auto* cells = memory.samples_of(m) + k;
    auto* share = reinterpret_cast<Scalar*>(cells) + 4 * memory.samples_row;
    for (int i = 0; i < 4; ++i) {
      V::store_cells(cells + i * memory.samples_row, at.inside, columns[i % 2], rows[i / 2],
                     memory.table.stride + k, memory.table.origin + k, kNoCell);
    }
    V::store(share, corners.top_left);
    V::store(share + memory.samples_row, corners.top_right);
    V::store(share + 2 * memory.samples_row, corners.bottom_left);
    V::store(share + 3 * memory.samples_row, corners.bottom_right);
  }
}

template <typename V, int kVectors, typename T, typename Index>
inline void sum_samples(const T* head, const Index* cells, int64_t samples_row, int64_t size,
                        int64_t step, T* output) {
  using F = typename V::F;
  using Scalar = typename V::Scalar;
  const Scalar* weights = reinterpret_cast<const Scalar*>(cells) + 4 * samples_row;
  F sum[kVectors];
  for (int v = 0; v < kVectors; ++v) sum[v] = F(Scalar(0));
  for (int64_t k = 0; k < size; ++k) {
    if (cells[k] == kNoCell) continue;
    for (int i = 0; i < 4; ++i) {
      const T* row = head + cells[i * samples_row + k] * step;
      const F share(weights[i * samples_row + k]);
      for (int v = 0; v < kVectors; ++v) {
        sum[v] = V::fma(share, V::load_some(row + v * V::kLanes, V::kLanes, Scalar(0)), sum[v]);
      }
    }
  }
  for (int v = 0; v < kVectors; ++v) V::put(output + v * V::kLanes, sum[v], V::kLanes, false);
}

template <typename V, typename T>
void forward_direct(const Call& call, const Unit& unit) {
  using Scalar = typename V::Scalar;
  const auto& dims = call.dims;
  const auto memory = DirectMemory<V, false>::of_thread(call);
  const int64_t step = dims.M * dims.D;
  const T* value = static_cast<const T*>(call.value) + unit.n * dims.S * step;
  T* output = static_cast<T*>(call.output) + unit.n * dims.Q * step;
  for (int64_t q = unit.begin; q < unit.end; ++q) {
    for (int64_t m = unit.first_head; m < unit.last_head; ++m) {
      prepare_direct<V>(View<Scalar>(call, unit.n, m), q, m, memory);
    }
    for (int64_t m = unit.first_head; m < unit.last_head; ++m) {
      for_each_group<V, PlainRows<V>>(dims.D, [&](int64_t channel, auto vectors) {
        const int64_t of = m * dims.D + channel;
        sum_samples<V, vectors.value>(value + of, memory.samples_of(m), memory.samples_row,
                                      dims.L * dims.P, step, output + q * step + of);
      });
    }
  }
}

template <typename V, int kVectors, typename T, typename Index>
inline void spread_samples(const T* head, typename V::Scalar* grad_head, const Index* cells,
                           int64_t samples_row, int64_t size, int64_t step, int64_t D,
                           const T* grad_output, bool add, typename V::Scalar* dots,
                           int64_t dots_row) {
  using F = typename V::F;
  using Scalar = typename V::Scalar;
  const auto load = [](const T* row, int v) {
    return V::load_some(row + v * V::kLanes, V::kLanes, Scalar(0));
  };
  const Scalar* weights = reinterpret_cast<const Scalar*>(cells) + 4 * samples_row;
  F gradient[kVectors];
  for (int v = 0; v < kVectors; ++v) gradient[v] = load(grad_output, v);
  for (int64_t first = 0; first < size; first += 4) {
    typename V::Four products[4] = {};
    for (int64_t k = first; k < std::min(first + 4, size); ++k) {
      if (cells[k] == kNoCell) continue;
      F product[4];
      for (int i = 0; i < 4; ++i) {
        const int64_t cell = cells[i * samples_row + k];
        const T* row = head + cell * step;
        Scalar* grad_row = grad_head + cell * D;
        const F share(weights[i * samples_row + k]);
        product[i] = F(Scalar(0));
        for (int v = 0; v < kVectors; ++v) {
          Scalar* sum = grad_row + v * V::kLanes;
          product[i] = V::fma(gradient[v], load(row, v), product[i]);
          V::store(sum, V::fma(share, gradient[v], V::load(sum)));
        }
      }
      products[k - first] = V::sums_of_four(product[0], product[1], product[2], product[3]);
    }
    V::store_sums(products, dots + first, dots_row, add);
  }
}

// Writes the gradient of a head to its place in the result, and resets the memory to zeros.
template <typename V, typename T>
inline void move_gradient(const Call& call, typename V::Scalar* grad_head, T* to) {
  using F = typename V::F;
  using Scalar = typename V::Scalar;
  const int64_t D = call.dims.D, step = call.dims.M * D;
  for (int64_t cell = 0; cell < call.dims.S; ++cell, grad_head += D, to += step) {
    for (int64_t d = 0; d < D; d += V::kLanes) {
      V::put(to + d, V::load(grad_head + d), V::kLanes, call.is_value_streamed);
      V::store(grad_head + d, F(Scalar(0)));
    }
  }
}

template <typename V, typename T>
void backward_direct(const Call& call, const Unit& unit) {
  using Scalar = typename V::Scalar;
  const auto& dims = call.dims;
  const auto memory = DirectMemory<V, true>::of_thread(call);
  const int64_t step = dims.M * dims.D, size = dims.L * dims.P;
  const T* value = static_cast<const T*>(call.value) + unit.n * dims.S * step;
  T* grad_value = static_cast<T*>(call.grad_value) + unit.n * dims.S * step;
  const T* grad_output = static_cast<const T*>(call.grad_output) + unit.n * dims.Q * step;
  std::fill(memory.grad_head, memory.grad_head + dims.S * dims.D, Scalar(0));
  for (int64_t m = unit.first_head; m < unit.last_head; ++m) {
    const View<Scalar> view(call, unit.n, m);
    for (int64_t q = unit.begin; q < unit.end; ++q) {
      prepare_direct<V>(view, q, m, memory);
      for_each_group<V, PlainRows<V>>(dims.D, [&](int64_t channel, auto vectors) {
        const int64_t of = m * dims.D + channel;
        spread_samples<V, vectors.value>(
            value + of, memory.grad_head + channel, memory.samples_of(m), memory.samples_row, size,
            step, dims.D, grad_output + q * step + of, channel != 0, memory.dots, memory.dots_row);
      });
      store_gradients<V, true>(view, memory.table, q, memory.weights_of(view, q, m), memory.dots,
                               memory.dots_row);
      if (view.grad_reference != nullptr) {
        store_reference_gradient<Scalar>(view, memory.table, q, memory.dots, memory.dots_row);
      }
    }
    move_gradient<V>(call, memory.grad_head, grad_value + m * dims.D);
  }
}
