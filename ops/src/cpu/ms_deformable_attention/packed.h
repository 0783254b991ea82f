// Forward and backward of one head from a packed copy of its values, generic over the vector type.
//
// Blocks of queries walk through the levels, so that a block's neighborhood in a level is reused
// while it is in the nearest cache.
#pragma once

#include "packed_copy.h"

// Cells and corner weights of a block's samples; their attention weights are `weights`, of the
// block's first query, `stride` from query to query.
template <typename V, typename Memory>
inline void prepare_samples(const View<typename V::Scalar>& view, int64_t query, int64_t count,
                            const typename V::Scalar* weights, int64_t stride,
                            const Memory& memory) {
  for (int64_t q = 0; q < count; ++q) {
    for (int64_t k = 0; k < view.size; k += V::kLanes) {
      const Location<V> at = locate<V>(view, memory.table, query + q, k);
      const auto weight = V::keep(
          at.inside, V::load_some(weights + q * stride + k, view.size - k, typename V::Scalar(0)));
      const auto corners = corner_weights(weight, at.x, at.y);
      auto* cells = memory.samples + q * kSampleArrays * memory.samples_row + k;
      V::store_cells(cells, at.inside, at.left, at.top, memory.table.stride + k,
                     memory.table.origin + k, kNowhere);
      auto* share = reinterpret_cast<typename V::Scalar*>(cells) + memory.samples_row;
      V::store(share, corners.top_left);
      V::store(share + memory.samples_row, corners.top_right);
      V::store(share + 2 * memory.samples_row, corners.bottom_left);
      V::store(share + 3 * memory.samples_row, corners.bottom_right);
    }
  }
}

// Prefetches during the walks of a block through the levels: the next block's points and weights,
// and the cache lines of the block's output, unless it is written past the caches. Each walk
// fetches a part, a little with each query, because memory serves only a few requests at a time.
class Ahead {
 public:
  // `row` is the first query's row of output, or of its gradient, `row_step` elements before the
  // next query's.
  template <typename Scalar, typename T>
  Ahead(const View<Scalar>& view, int64_t next, const T* row, int64_t row_step, int64_t D)
      : pieces_{piece(view.points + 2 * next * view.stride, 2 * view.stride, view.size),
                piece(view.points + 2 * next * view.stride + view.size, 2 * view.stride, view.size),
                piece(row, row_step, D),
                piece(view.weights + next * view.stride, view.stride, view.size)} {}

  // Fetches the part of this query in the walk through this level.
  void fetch(int64_t query, int64_t level, int64_t levels) const {
    for (int64_t i = level; i < 4; i += levels) {
      prefetch(pieces_[i].memory + query * pieces_[i].step, pieces_[i].bytes);
    }
  }

 private:
  struct Piece {
    const std::byte* memory;
    int64_t step, bytes;
  };

  template <typename T>
  static Piece piece(const T* memory, int64_t step, int64_t count) {
    constexpr int64_t kSize = sizeof(T);
    return {reinterpret_cast<const std::byte*>(memory), step * kSize, count * kSize};
  }

  Piece pieces_[4];
};

// Adds one level's samples to the sums of a block's queries, in a group of channels; the sums of
// the last level go to the output, where a head's rows are M * D numbers apart. Template parameters
// for sizes are 0 if the size is not known at compile time.
template <typename V, typename Rows, int kVectors, int64_t kPoints, int64_t kSamplesRow,
          typename Memory, typename T>
[[gnu::noinline]] void add_level(const Memory& memory, int64_t level, int64_t level_stride,
                                 const Dims& dims, int64_t count, int64_t channel,
                                 const Ahead& ahead, T* output, bool is_streamed) {
  using F = typename V::F;
  using Scalar = typename V::Scalar;
  const int64_t row = kPoints != 0 ? kVectors * V::kLanes : memory.row;
  const int64_t P = kPoints != 0 ? kPoints : dims.P;
  const int64_t samples_row = kSamplesRow != 0 ? kSamplesRow : memory.samples_row;
  const int64_t below = level_stride * row;
  const auto* packed = memory.packed + channel;
  Scalar* sums = memory.sums + channel;
  const typename V::Index* cells = memory.samples + level * P;
  for (int64_t q = 0; q < count; ++q, sums += row, cells += kSampleArrays * samples_row) {
    if (channel == 0) ahead.fetch(q, level, dims.L);
    const Scalar* weights = reinterpret_cast<const Scalar*>(cells) + samples_row;
    F sum[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      sum[v] = level == 0 ? F(Scalar(0)) : V::load(sums + v * V::kLanes);
    }
    const auto add = [&](const auto* values, F share) {
      F value[kVectors];
      Rows::template load<kVectors>(values, value);
      for (int v = 0; v < kVectors; ++v) sum[v] = V::fma(share, value[v], sum[v]);
    };
    if constexpr (kPoints == 4) {
      const typename Rows::Element* const samples[4] = {
          packed + cells[0] * row, packed + cells[1] * row, packed + cells[2] * row,
          packed + cells[3] * row};
      // Corner by corner: the weights of four samples are loaded together, which is cheaper than
      // one after another, and those of all corners would not fit into the registers of AVX2. The
      // other branch adds in the same order.
#pragma GCC unroll 4
      for (int64_t corner = 0; corner < 4; ++corner) {
        const int64_t offset = corner / 2 * below + corner % 2 * row;
        const auto shares = V::load_four(weights + corner * samples_row);
        add(samples[0] + offset, V::template spread<0>(shares));
        add(samples[1] + offset, V::template spread<1>(shares));
        add(samples[2] + offset, V::template spread<2>(shares));
        add(samples[3] + offset, V::template spread<3>(shares));
      }
    } else {
      for (int64_t first = 0; first < P; first += 4) {
        for (int64_t corner = 0; corner < 4; ++corner) {
          const int64_t offset = corner / 2 * below + corner % 2 * row;
          for (int64_t p = first; p < std::min(first + 4, P); ++p) {
            add(packed + cells[p] * row + offset, F(weights[p + corner * samples_row]));
          }
        }
      }
    }
    if (level + 1 < dims.L) {
      for (int v = 0; v < kVectors; ++v) V::store(sums + v * V::kLanes, sum[v]);
      continue;
    }
    T* out = output + q * dims.M * dims.D + channel;
    for (int v = 0; v < kVectors && channel + v * V::kLanes < dims.D; ++v) {
      V::put(out + v * V::kLanes, sum[v], dims.D - channel - v * V::kLanes, is_streamed);
    }
  }
}

template <typename V, typename Rows, typename T>
void forward_packed(const Call& call, const Unit& unit, int64_t m) {
  using Scalar = typename V::Scalar;
  constexpr int64_t kBlock = deformable_detr::kBlockQueries;
  const auto& dims = call.dims;
  const int64_t row = round_up(dims.D, V::kLanes * Rows::kVectorsTogether);
  using Memory = PackedMemory<V, typename Rows::Element, false>;
  const Memory memory = Memory::of_thread(call, row);
  pack_head<V, Rows, T>(call, unit.n, m, memory);
  const View<Scalar> view(call, unit.n, m);
  T* output = static_cast<T*>(call.output) + (unit.n * dims.Q * dims.M + m) * dims.D;
  const int64_t step = dims.M * dims.D;
  for (int64_t begin = unit.begin; begin < unit.end; begin += kBlock) {
    const int64_t count = std::min(kBlock, unit.end - begin);
    if (view.R == 0) {
      prepare_samples<V>(view, begin, count, view.weights + begin * view.stride, view.stride,
                         memory);
    } else {
      softmax<V>(view, begin, count, memory.samples_row, memory.weights);
      prepare_samples<V>(view, begin, count, memory.weights, memory.samples_row, memory);
    }
    T* out = output + begin * step;
    const Ahead ahead(view, begin + kBlock, out, step, call.is_streamed ? 0 : dims.D);
    for (int32_t level = 0; level < call.levels.count; ++level) {
      const int64_t stride = call.levels.levels[level].width + int64_t{1};
      for_each_group<V, Rows>(row, [&](int64_t channel, auto vectors) {
        constexpr int kVectors = vectors.value;
        // The usual case: four points, four levels, and a row that is one group.
        if (dims.P == 4 && memory.samples_row == 16 && row == kVectors * V::kLanes) {
          add_level<V, Rows, kVectors, 4, 16>(memory, level, stride, dims, count, 0, ahead, out,
                                              call.is_streamed);
        } else {
          add_level<V, Rows, kVectors, 0, 0>(memory, level, stride, dims, count, channel, ahead,
                                             out, call.is_streamed);
        }
      });
    }
  }
}

// For one level's samples of a block's queries, in a group of channels: the dot products of the
// queries' output gradients, which are stored in place of the sums, with the corners; and the
// gradients of the corners. Both are computed in one walk, because both access the same cells.
template <typename V, int kVectors, int64_t kPoints, int64_t kSamplesRow, typename Memory>
[[gnu::noinline]] void spread_level(const Memory& memory, int64_t level, int64_t level_stride,
                                    const Dims& dims, int64_t count, int64_t channel,
                                    const Ahead& ahead) {
  using F = typename V::F;
  using Scalar = typename V::Scalar;
  const int64_t row = kPoints != 0 ? kVectors * V::kLanes : memory.row;
  const int64_t P = kPoints != 0 ? kPoints : dims.P;
  const int64_t samples_row = kSamplesRow != 0 ? kSamplesRow : memory.samples_row;
  const int64_t size = Memory::cell_size(row), below = level_stride * size;
  const Scalar* packed = memory.packed + channel;
  Scalar* grad_packed = memory.packed + row + channel;
  const Scalar* gradients = memory.sums + channel;
  const typename V::Index* cells = memory.samples + level * P;
  Scalar* dots = memory.dots + level * P;
  for (int64_t q = 0; q < count; ++q) {
    if (channel == 0) ahead.fetch(q, level, dims.L);
    const Scalar* weights = reinterpret_cast<const Scalar*>(cells) + samples_row;
    F gradient[kVectors];
    for (int v = 0; v < kVectors; ++v) gradient[v] = V::load(gradients + v * V::kLanes);
    for (int64_t p = 0; p < P; p += 4) {
      const int64_t together = kPoints == 4 ? 4 : std::min<int64_t>(P - p, 4);
      typename V::Four products[4] = {};
#pragma GCC unroll 4
      for (int64_t i = 0; i < together; ++i) {
        const int64_t at = cells[p + i] * size;
        const Scalar* weight = weights + p + i;
        const auto visit = [&](int64_t offset, Scalar corner_weight) {
          F value[kVectors], sum[kVectors];
          const F share(corner_weight);
          for (int v = 0; v < kVectors; ++v) {
            value[v] = V::load(packed + at + offset + v * V::kLanes);
            sum[v] = V::load(grad_packed + at + offset + v * V::kLanes);
          }
          F product = gradient[0] * value[0];
          for (int v = 1; v < kVectors; ++v) product = V::fma(gradient[v], value[v], product);
          for (int v = 0; v < kVectors; ++v) {
            V::store(grad_packed + at + offset + v * V::kLanes, V::fma(share, gradient[v], sum[v]));
          }
          return product;
        };
        const F top_left = visit(0, weight[0]);
        const F top_right = visit(size, weight[samples_row]);
        const F bottom_left = visit(below, weight[2 * samples_row]);
        const F bottom_right = visit(below + size, weight[3 * samples_row]);
        products[i] = V::sums_of_four(top_left, top_right, bottom_left, bottom_right);
      }
      V::store_sums(products, dots + p, samples_row, channel != 0);
    }
    gradients += row;
    cells += kSampleArrays * samples_row;
    dots += 4 * samples_row;
  }
}

template <typename V, typename T>
void backward_packed(const Call& call, const Unit& unit, int64_t m) {
  using Scalar = typename V::Scalar;
  using Rows = PlainRows<V>;
  using Memory = PackedMemory<V, Scalar, true>;
  constexpr int64_t kBlock = deformable_detr::kBlockQueries;
  const auto& dims = call.dims;
  const int64_t row = round_up(dims.D, V::kLanes);
  const Memory memory = Memory::of_thread(call, row);
  pack_head<V, Rows, T>(call, unit.n, m, memory);
  const View<Scalar> view(call, unit.n, m);
  const T* output =
      static_cast<const T*>(call.grad_output) + (unit.n * dims.Q * dims.M + m) * dims.D;
  const int64_t step = dims.M * dims.D;
  for (int64_t begin = unit.begin; begin < unit.end; begin += kBlock) {
    const int64_t count = std::min(kBlock, unit.end - begin);
    const Scalar* weights = view.weights + begin * view.stride;
    int64_t stride = view.stride;
    if (view.R != 0) {
      softmax<V>(view, begin, count, memory.samples_row, memory.weights);
      weights = memory.weights, stride = memory.samples_row;
    }
    prepare_samples<V>(view, begin, count, weights, stride, memory);
    for (int64_t q = 0; q < count; ++q) {
      for (int64_t d = 0; d < row; d += V::kLanes) {
        V::store(memory.sums + q * row + d,
                 V::load_some(output + (begin + q) * step + d, dims.D - d, Scalar(0)));
      }
    }
    const Ahead ahead(view, begin + kBlock, output + (begin + kBlock) * step, step, dims.D);
    for (int32_t level = 0; level < call.levels.count; ++level) {
      const int64_t level_stride = call.levels.levels[level].width + int64_t{1};
      for_each_group<V, Rows>(row, [&](int64_t channel, auto vectors) {
        constexpr int kVectors = vectors.value;
        if (dims.P == 4 && memory.samples_row == 16 && row == kVectors * V::kLanes) {
          spread_level<V, kVectors, 4, 16>(memory, level, level_stride, dims, count, 0, ahead);
        } else {
          spread_level<V, kVectors, 0, 0>(memory, level, level_stride, dims, count, channel, ahead);
        }
      });
    }
    for (int64_t q = 0; q < count; ++q) {
      Scalar* dots = memory.dots + q * 4 * memory.samples_row;
      store_gradients<V, false>(view, memory.table, begin + q, weights + q * stride, dots,
                                memory.samples_row);
      if (view.grad_reference != nullptr) {
        store_reference_gradient<Scalar>(view, memory.table, begin + q, dots, memory.samples_row);
      }
    }
  }
  unpack_head<V, T>(call, unit.n, m, memory);
}
