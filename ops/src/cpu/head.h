// The kernels of one head, and which of the two ways each call takes.

template <typename V, typename T, typename Rows = PlainRows<V>>
void forward(const Call& call, const Unit& unit) {
  if (deformable_detr::is_direct(call.dims, V::kLanes)) {
    forward_direct<V, T>(call, unit);
  } else {
    forward_packed<V, Rows, T>(call, unit);
  }
}

template <typename V, typename T>
void backward(const Call& call, const Unit& unit) {
  if constexpr (std::is_same_v<T, typename V::Scalar>) {
    if (deformable_detr::is_direct(call.dims, V::kLanes)) return backward_direct<V>(call, unit);
  }
  backward_packed<V, T>(call, unit);
}
