// Thread-local memory of a unit of the deformable kernel convolution: some rows of the map,
// channels innermost, its part of the scope with a border of zeros, and the places where the taps
// of a row of the output are read.
#pragma once

using deformable_detr::DeformKernelCall;
using deformable_detr::DeformKernelUnit;

// Some channels of a row -> the same with channels innermost, `width` apart; and back.
template <typename Scalar>
void pack_row(const Scalar* from, int64_t step, int64_t channels, int64_t cells, Scalar* to,
              int64_t width) {
  int64_t c = 0;
  for (; c + 4 <= channels; c += 4) {
    const Scalar* source = from + c * step;
    for (int64_t z = 0; z < cells; ++z) {
      Scalar* const target = to + z * width + c;
      const Scalar numbers[4] = {source[z], source[z + step], source[z + 2 * step],
                                 source[z + 3 * step]};
      std::memcpy(target, numbers, sizeof numbers);
    }
  }
  for (; c < channels; ++c) {
    for (int64_t z = 0; z < cells; ++z) to[z * width + c] = from[c * step + z];
  }
}

template <typename Scalar>
void unpack_row(const Scalar* from, int64_t width, int64_t channels, int64_t cells, Scalar* to,
                int64_t step) {
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t z = 0; z < cells; ++z) to[c * step + z] = from[z * width + c];
  }
}

// The taps of a row of the output: planes of numbers, [tap][position].
template <typename V>
struct TapRow {
  using F = typename V::F;
  using Scalar = typename V::Scalar;
  int64_t row;               // positions of a plane's row, whole vectors
  typename V::Index* cells;  // of the first corner, in the scope with its border
  Scalar* shares[4];         // of the corners
  Scalar* fractions[2];      // of the coordinates; from here on for the backward pass only
  Scalar* is_free[2];        // 1 where a coordinate is not clipped, else 0
  Scalar* products;          // of the corners with the gradient of the kernel value, four planes

  void prepare(const DeformKernelCall& call, const DeformKernelUnit& unit, int64_t y) const {
    int32_t strides[V::kLanes], origins[V::kLanes];
    const int32_t row_stride = static_cast<int32_t>(call.scope[1] + 2);
    std::fill(strides, strides + V::kLanes, row_stride);
    std::fill(origins, origins + V::kLanes, row_stride + 1);
    const Scalar* rotation = static_cast<const Scalar*>(call.rotation) + call.rotation_at(unit, y);
    const int64_t plane = call.output_size[0] * call.output_size[1];
    for (int64_t tap = 0; tap < call.num_taps; ++tap) {
      for (int64_t z = 0; z < call.output_size[1]; z += V::kLanes) {
        const int64_t count = call.output_size[1] - z, at = tap * row + z;
        const Scalar* offsets = rotation + 2 * tap * plane + z;
        const Axis rows = axis(call, 0, tap / call.kernel[1], offsets, count, at);
        const Axis columns = axis(call, 1, tap % call.kernel[1], offsets + plane, count, at);
        const auto inside = V::both(rows.is_inside, columns.is_inside);
        V::store_cells(cells + at, inside, columns.low, rows.low, strides, origins, 0);
        // Samples outside read the first corner of the border.
        const F down = V::keep(inside, rows.fraction), right = V::keep(inside, columns.fraction);
        const F one(Scalar(1));
        V::store(shares[0] + at, (one - down) * (one - right));
        V::store(shares[1] + at, (one - down) * right);
        V::store(shares[2] + at, down * (one - right));
        V::store(shares[3] + at, down * right);
        if (products == nullptr) continue;
        V::store(fractions[0] + at, down);
        V::store(fractions[1] + at, right);
      }
    }
  }

  // From `products` to the gradient of the rotation.
  void put_gradient(const DeformKernelCall& call, const DeformKernelUnit& unit, int64_t y) const {
    const int64_t plane = call.output_size[0] * call.output_size[1];
    const int64_t size = call.num_taps * row;
    Scalar* const target = static_cast<Scalar*>(unit.grad_rotation) + call.rotation_at(unit, y);
    const F one(Scalar(1)), half(Scalar(0.5)), two(Scalar(2));
    for (int64_t tap = 0; tap < call.num_taps; ++tap) {
      for (int64_t z = 0; z < call.output_size[1]; z += V::kLanes) {
        const int64_t count = call.output_size[1] - z, at = tap * row + z;
        F corners[4];
        for (int i = 0; i < 4; ++i) corners[i] = V::load(products + i * size + at);
        const F down = V::load(fractions[0] + at), right = V::load(fractions[1] + at);
        const F grad_row =
            (corners[2] - corners[0]) * (one - right) + (corners[3] - corners[1]) * right;
        const F grad_column =
            (corners[1] - corners[0]) * (one - down) + (corners[3] - corners[2]) * down;
        const F grads[2] = {grad_row, grad_column};
        for (int i = 0; i < 2; ++i) {
          const auto free = V::between(half, V::load(is_free[i] + at), two);
          V::put(target + (2 * tap + i) * plane + z, V::keep(free, grads[i]), count, false);
        }
      }
    }
  }

 private:
  struct Axis {
    F low, fraction;  // the lower of the two cells around a sample, and its distance from it
    typename V::Mask is_inside;
  };

  Axis axis(const DeformKernelCall& call, int axis, int64_t tap, const Scalar* offsets,
            int64_t count, int64_t at) const {
    const int64_t size = call.scope[axis];
    const Scalar last = static_cast<Scalar>(size - 1);
    const Scalar before_last = std::nextafter(last, Scalar(-1));
    const Scalar after_last = std::nextafter(last, last + 1);
    const F zero(Scalar(0)), one(Scalar(1));
    const Scalar start = static_cast<Scalar>(size - call.kernel[axis]) / 2;
    F coordinate = V::load_some(offsets, count, Scalar(0)) + F(static_cast<Scalar>(tap) + start);
    if (products != nullptr) {
      F free = one;
      if (call.clip_to_scope) {
        const F first(-std::numeric_limits<Scalar>::min());
        free = size > 1 ? V::keep(V::between(first, coordinate, F(after_last)), one) : zero;
      }
      V::store(is_free[axis] + at, free);
    }
    if (call.clip_to_scope) {  // max with NaN as its second operand is NaN; hence no min
      coordinate = zero - V::max(zero - F(last), zero - V::max(zero, coordinate));
    }
    // On the last cell, a sample lies between that one and the one before.
    const F step = V::keep(V::between(F(before_last), coordinate, F(after_last)), one);
    const F low = V::floor(coordinate) - step;
    return {low, coordinate - low, V::between(F(Scalar(-1)), coordinate, F(last + 1))};
  }
};

// Layout of the thread's memory; initially zero.
template <typename V>
struct Workspace {
  using Scalar = typename V::Scalar;
  int64_t width;             // channels, including the padding of the last vector
  int64_t cells;             // of the scope with its border
  Scalar *rows, *grad_rows;  // of the padded map, as many as the kernel reaches over
  Scalar* output_row;        // or of the output's gradient
  Scalar *scope, *grad_scope;
  int64_t* starts;  // of every tap of the first position in a row
  TapRow<V> taps;

  Workspace(const DeformKernelCall& call, int64_t width, bool backward) : width(width) {
    cells = (call.scope[0] + 2) * (call.scope[1] + 2);
    const int64_t bytes = lay_out(call, backward, nullptr);
    std::byte* const memory = deformable_detr::thread_scratch(bytes);
    std::memset(memory, 0, bytes);
    lay_out(call, backward, memory);
  }

  void load_scope(const DeformKernelCall& call, const DeformKernelUnit& unit) const {
    each_scope_number(call, unit, [&](int64_t in_weight, int64_t in_scope) {
      scope[in_scope] = static_cast<const Scalar*>(call.weight)[in_weight];
    });
  }
  void put_scope_gradient(const DeformKernelCall& call, const DeformKernelUnit& unit) const {
    each_scope_number(call, unit, [&](int64_t in_weight, int64_t in_scope) {
      static_cast<Scalar*>(unit.grad_weight)[in_weight] = grad_scope[in_scope];
    });
  }

 private:
  int64_t lay_out(const DeformKernelCall& call, bool backward, std::byte* memory) {
    int64_t offset = 0;
    const auto take = [&](auto*& part, int64_t count) {
      part = nullptr;
      if (count == 0) return;
      part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(
          reinterpret_cast<uintptr_t>(memory) + offset);
      offset += (count * static_cast<int64_t>(sizeof *part) + 63) / 64 * 64;
    };
    const int64_t map = (call.reach(0) + 1) * call.padded_size(1) * width;
    taps.row = (call.output_size[1] + 15) / 16 * 16;  // whole vectors, of any kind
    const int64_t plane = call.num_taps * taps.row, grad = backward ? 1 : 0;
    take(rows, map);
    take(grad_rows, grad * map);
    take(output_row, call.output_size[1] * width);
    take(scope, cells * width);
    take(grad_scope, grad * cells * width);
    take(starts, call.num_taps);
    take(taps.cells, plane);
    for (auto& part : taps.shares) take(part, plane);
    for (auto& part : taps.fractions) take(part, grad * plane);
    for (auto& part : taps.is_free) take(part, grad * plane);
    take(taps.products, grad * 4 * plane);
    return offset;
  }

  template <typename Visit>
  void each_scope_number(const DeformKernelCall& call, const DeformKernelUnit& unit,
                         const Visit& visit) const {
    const int64_t height = call.scope[0], columns = call.scope[1];
    for (int64_t c = 0; c < unit.count; ++c) {
      for (int64_t i = 0; i < height * columns; ++i) {
        const int64_t cell = (i / columns + 1) * (columns + 2) + i % columns + 1;
        visit(call.channel(unit, c) * height * columns + i, cell * width + c);
      }
    }
  }
};

// The rows of the padded map under the kernel, for one row of the output after another.
template <typename V>
class RowWindow {
 public:
  using Scalar = typename V::Scalar;

  RowWindow(const DeformKernelCall& call, const DeformKernelUnit& unit, const Workspace<V>& work)
      : call_(call), unit_(unit), work_(work), count_(call.reach(0) + 1) {}

  void slide_to(int64_t y) {
    enter_until(y * call_.stride[0] + count_);
    for (int64_t tap = 0; tap < call_.num_taps; ++tap) {
      const int64_t row = y * call_.stride[0] + tap / call_.kernel[1] * call_.dilation[0];
      const int64_t column = tap % call_.kernel[1] * call_.dilation[1];
      work_.starts[tap] = row % count_ * row_size() + column * work_.width;
    }
  }
  // Writes the remaining rows of the gradient.
  void finish() { enter_until(call_.padded_size(0) + count_); }

  // Pointer to the tap of position z in the rows, or to its gradient in their gradients.
  int64_t at(int64_t z, int64_t tap) const {
    return work_.starts[tap] + z * call_.stride[1] * work_.width;
  }

 private:
  int64_t row_size() const { return call_.padded_size(1) * work_.width; }

  void enter_until(int64_t end) {
    for (; entered_ < end; ++entered_) {
      const int64_t slot = entered_ % count_ * row_size();
      if (work_.grad_rows != nullptr && entered_ >= count_) leave(entered_ - count_, slot);
      const int64_t row = entered_ - call_.padding[0];
      if (row >= 0 && row < call_.size[0]) {
        pack_row(static_cast<const Scalar*>(call_.x) + call_.x_at(unit_, row), call_.x_step(),
                 unit_.count, call_.size[1], work_.rows + slot + call_.padding[1] * work_.width,
                 work_.width);
      } else {
        std::fill_n(work_.rows + slot, row_size(), Scalar(0));
      }
    }
  }

  void leave(int64_t padded_row, int64_t slot) {
    const int64_t row = padded_row - call_.padding[0];
    if (row >= 0 && row < call_.size[0]) {
      unpack_row(work_.grad_rows + slot + call_.padding[1] * work_.width, work_.width, unit_.count,
                 call_.size[1], static_cast<Scalar*>(call_.grad_x) + call_.x_at(unit_, row),
                 call_.x_step());
    }
    std::fill_n(work_.grad_rows + slot, row_size(), Scalar(0));
  }

  const DeformKernelCall& call_;
  const DeformKernelUnit& unit_;
  const Workspace<V>& work_;
  int64_t count_;
  int64_t entered_ = 0;
};
