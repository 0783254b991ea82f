// A packed copy of one head's values, generic over the vector type.
//
// In value, a head's rows are M * D numbers apart. They are first copied into thread-local memory,
// where they are contiguous and stay in the second-level cache. There each level has a border of
// zeros: a row above, a row below, and a column on the left, which is also the right border of the
// row before. So the four corners of a sample are read without a test, and those outside are zero.
// Cell 0 begins a range of zeros for samples that are entirely outside.
#pragma once

#include "samples.h"

// Rows of value in the packed copy as numbers of V's scalar type, padded to whole vectors.
template <typename V>
struct PlainRows {
  using Scalar = typename V::Scalar;
  using Element = Scalar;
  static constexpr int kVectorsTogether = 1;

  template <typename T>
  static void pack(const T* row, int64_t D, Element* packed) {
    for (int64_t d = 0; d < D; d += V::kLanes) {
      V::store(packed + d, V::load_some(row + d, D - d, Scalar(0)));
    }
  }

  template <int kVectors>
  static void load(const Element* packed, typename V::F (&row)[kVectors]) {
    for (int i = 0; i < kVectors; ++i) row[i] = V::load(packed + i * V::kLanes);
  }
};

constexpr int64_t kSampleArrays = 5;

// The packed cell of samples that lie outside.
constexpr int32_t kNowhere = 0;

// Memory of a unit. Cells are rows of `row` elements, and so are the queries' sums.
template <typename V, typename Element, bool kBackward>
struct PackedMemory {
  using Scalar = typename V::Scalar;
  int64_t cells, row, samples_row;
  Element* packed;  // in the backward pass each row is followed by its gradient's
  Scalar* sums;     // of a block's queries; their gradients in the backward pass
  Scalar* weights;  // softmax of a block's logits
  SampleTable<Scalar> table;
  // Samples of a block, kSampleArrays rows per query: the cell of the top left corner, and the
  // weights of the top left, top right, bottom left and bottom right corners.
  typename V::Index* samples;
  Scalar* dots;  // backward only: per query, one row per corner

  PackedMemory(Arena& arena, const Call& call, int64_t row_size)
      : cells(count_cells(call.levels)),
        row(row_size),
        // Dot products are stored four at a time.
        samples_row(round_up(call.dims.L * call.dims.P + (call.dims.P % 4 ? 3 : 0), V::kLanes)),
        packed(arena.take<Element>(cells * cell_size(row_size))),
        sums(arena.take<Scalar>(deformable_detr::kBlockQueries * row)),
        weights(arena.take<Scalar>(deformable_detr::kBlockQueries * samples_row)),
        table(arena, samples_row),
        samples(arena.take<typename V::Index>(kSampleArrays * deformable_detr::kBlockQueries *
                                              samples_row)),
        dots(kBackward ? arena.take<Scalar>(4 * deformable_detr::kBlockQueries * samples_row)
                       : nullptr) {}

  static PackedMemory of_thread(const Call& call, int64_t row) {
    Arena counting(nullptr);
    PackedMemory(counting, call, row);
    Arena arena(deformable_detr::thread_scratch(counting.used()));
    PackedMemory memory(arena, call, row);
    const auto& levels = call.levels;
    int64_t next = leading_zeros(levels);
    for (int64_t k = 0; k < memory.samples_row; ++k) {  // values past the last sample are unused
      const int64_t i = std::min<int64_t>(k / std::max<int64_t>(call.dims.P, 1), levels.count - 1);
      const int64_t stride = levels.levels[i].width + 1;
      memory.table.set(k, levels.levels[i], stride, next + stride + 1, i * call.dims.R);
      if (k % std::max<int64_t>(call.dims.P, 1) == call.dims.P - 1 && i + 1 < levels.count) {
        next += (levels.levels[i].height + 2) * stride;
      }
    }
    return memory;
  }

  static constexpr int64_t cell_size(int64_t row) { return kBackward ? 2 * row : row; }

  static int64_t leading_zeros(const deformable_detr::LevelTable& levels) {
    int64_t widest = 0;
    for (int32_t i = 0; i < levels.count; ++i) {
      widest = std::max<int64_t>(widest, levels.levels[i].width);
    }
    return widest + 3;
  }

  static int64_t count_cells(const deformable_detr::LevelTable& levels) {
    int64_t cells = leading_zeros(levels) + 1;  // 1 for the bottom right corner of the last level
    for (int32_t i = 0; i < levels.count; ++i) {
      cells += (levels.levels[i].height + int64_t{2}) * (levels.levels[i].width + int64_t{1});
    }
    return cells;
  }
};

// Calls `visit` with the packed cell, and the cell of value, of the first pixel of every row.
template <typename Visit>
inline void for_each_pixel_row(const deformable_detr::LevelTable& levels, int64_t first_cell,
                               const Visit& visit) {
  for (int32_t i = 0; i < levels.count; ++i) {
    const auto& level = levels.levels[i];
    const int64_t stride = level.width + int64_t{1};
    for (int64_t y = 0; y < level.height; ++y) {
      visit(first_cell + (y + 1) * stride + 1, level.start + y * level.width, level.width);
    }
    first_cell += (level.height + int64_t{2}) * stride;
  }
}

template <typename V, typename Rows, typename T, bool kBackward>
inline void pack_head(const Call& call, int64_t n, int64_t m,
                      const PackedMemory<V, typename Rows::Element, kBackward>& memory) {
  // Far enough ahead for main memory to respond while the rows before are copied.
  constexpr int64_t kAhead = 24;
  const auto& dims = call.dims;
  const int64_t step = dims.M * dims.D, size = memory.cell_size(memory.row);
  const T* head = static_cast<const T*>(call.value) + (n * dims.S * dims.M + m) * dims.D;
  auto* packed = memory.packed;
  int64_t done = 0;
  const auto zero_until = [&](int64_t cell) {
    std::fill(packed + done * size, packed + cell * size, typename Rows::Element(0));
  };
  for_each_pixel_row(call.levels, memory.leading_zeros(call.levels),
                     [&](int64_t cell, int64_t from, int64_t width) {
                       zero_until(cell);
                       for (int64_t i = 0; i < width; ++i) {
                         const T* at = head + (from + i) * step;
                         prefetch(at + kAhead * step, dims.D * sizeof(T));
                         auto* to = packed + (cell + i) * size;
                         Rows::pack(at, dims.D, to);
                         std::fill(to + memory.row, to + size, typename Rows::Element(0));
                       }
                       done = cell + width;
                     });
  zero_until(memory.cells);
}

template <typename V, typename T>
inline void unpack_head(const Call& call, int64_t n, int64_t m,
                        const PackedMemory<V, typename V::Scalar, true>& memory) {
  const auto& dims = call.dims;
  const int64_t step = dims.M * dims.D;
  T* head = static_cast<T*>(call.grad_value) + (n * dims.S * dims.M + m) * dims.D;
  for_each_pixel_row(
      call.levels, memory.leading_zeros(call.levels), [&](int64_t cell, int64_t to, int64_t width) {
        for (int64_t i = 0; i < width; ++i) {
          const auto* from = memory.packed + (cell + i) * memory.cell_size(memory.row) + memory.row;
          for (int64_t d = 0; d < dims.D; d += V::kLanes) {
            V::put(head + (to + i) * step + d, V::load(from + d), dims.D - d,
                   call.is_value_streamed);
          }
        }
      });
}
