// Loads and stores of channels in the CUDA kernels: several at once, widened to the type of sums.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

namespace deformable_detr {

// Type of sums, and of points, weights and their gradients.
template <typename T>
struct AccumulatorOf {
  using Type = float;
};
template <>
struct AccumulatorOf<double> {
  using Type = double;
};
template <typename T>
using Accumulator = typename AccumulatorOf<T>::Type;

// Channels that one lane loads at once, as stored in memory.
template <typename T, int kVector>
struct Channels {
  T items[kVector];
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T narrow(Accumulator<T> x) {
  if constexpr (sizeof(T) >= 4) {
    return x;
  } else if constexpr (__is_same(T, __half)) {
    return __float2half_rn(x);
  } else {
    return __float2bfloat16_rn(x);
  }
}

template <typename T, int kVector>
__device__ __forceinline__ Channels<T, kVector> load_channels(const T* address) {
  Channels<T, kVector> channels;
  if constexpr (sizeof(channels) == 16) {
    const uint4 bits = __ldg(reinterpret_cast<const uint4*>(address));
    memcpy(&channels, &bits, 16);
  } else {
    static_assert(kVector == 1);
    channels.items[0] = __ldg(address);
  }
  return channels;
}

template <typename T, int kVector>
__device__ __forceinline__ void store_channels(T* address, const Channels<T, kVector>& channels) {
  if constexpr (sizeof(channels) == 16) {
    uint4 bits;
    memcpy(&bits, &channels, 16);
    *reinterpret_cast<uint4*>(address) = bits;
  } else {
    address[0] = channels.items[0];
  }
}

// The same address as a single value: the compiler would recompute a sum at every corner.
template <typename T>
__device__ __forceinline__ T* in_one_piece(T* address) {
  uint64_t bits;
  asm("mov.b64 %0, %1;" : "=l"(bits) : "l"(reinterpret_cast<uint64_t>(address)));
  return reinterpret_cast<T*>(bits);
}

// Address of corner c of a sample, relative to the first cell: an index of vectors of channels for
// a fixed D, which costs one instruction, or, in the general form, an index of cells.
template <int D, int kVector, typename T>
__device__ __forceinline__ T* at_corner(T* first, int32_t corner, int64_t cell_stride) {
  const uint64_t unsigned_corner = static_cast<uint32_t>(corner);
  return first + unsigned_corner * (D != 0 ? kVector : cell_stride);
}

__device__ __forceinline__ void add_to_global(float* address, float x) {
  asm volatile("red.global.add.f32 [%0], %1;" ::"l"(address), "f"(x));
}
__device__ __forceinline__ void add_to_global(double* address, double x) {
  asm volatile("red.global.add.f64 [%0], %1;" ::"l"(address), "d"(x));
}

__device__ __forceinline__ void add_to_global(float* address, const float (&x)[4]) {
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(address), "f"(x[0]), "f"(x[1]),
               "f"(x[2]), "f"(x[3]));
}

// Whether the GPU can add four channels at once.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
inline constexpr bool kHasVectorAdd = true;
#else
inline constexpr bool kHasVectorAdd = false;
#endif

// Adds atomically: other groups add to the same memory.
template <int kVector, typename Acc>
__device__ __forceinline__ void add_channels(Acc* address, Acc weight,
                                             const Acc (&gradient)[kVector]) {
  if constexpr (kHasVectorAdd && kVector % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kVector; i += 4) {
      add_to_global(address + i, {weight * gradient[i], weight * gradient[i + 1],
                                  weight * gradient[i + 2], weight * gradient[i + 3]});
    }
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i) add_to_global(address + i, weight * gradient[i]);
  }
}

}  // namespace deformable_detr
