// The kernels of a unit: choice between the packed and the direct way.
#pragma once

#include "direct.h"
#include "packed.h"

template <typename V, typename T, typename Rows = PlainRows<V>>
void forward(const Call& call, const Unit& unit) {
  if (deformable_detr::is_direct(call.dims, V::kLanes)) {
    return forward_direct<V, T>(call, unit);
  }
  for (int64_t m = unit.first_head; m < unit.last_head; ++m) {
    forward_packed<V, Rows, T>(call, unit, m);
  }
  V::finish_streams();
}

template <typename V, typename T>
void backward(const Call& call, const Unit& unit) {
  if (deformable_detr::is_direct(call.dims, V::kLanes)) {
    backward_direct<V, T>(call, unit);
  } else {
    for (int64_t m = unit.first_head; m < unit.last_head; ++m) backward_packed<V, T>(call, unit, m);
  }
  V::finish_streams();
}
