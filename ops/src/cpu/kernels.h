// Interface of the kernels of one instruction set: arguments and table of functions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../dims.h"
#include "deform_kernel/call.h"

namespace deformable_detr {

// Elements of value, output and their gradients. The other tensors are double with kFloat64, else
// float.
enum ValueType { kFloat32, kFloat16, kBFloat16, kFloat64 };

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

// One call of an operator, forward or backward, plain (dims.R = 0) or fused. Tensors are
// contiguous. The plain operator's `points` are sampling_locations and its `weights` are
// attention_weights; the fused one's are sampling_offsets and attention_logits.
struct Call {
  Dims dims;
  LevelTable levels;
  const void* value;
  const void* points;
  const void* weights;
  const void* reference_points;
  bool is_streamed;        // the results of queries are too large for the caches: write past them
  void* output;            // forward only; what follows is for the backward pass only
  bool is_value_streamed;  // the same for the gradient of value
  const void* grad_output;
  void* grad_value;
  void* grad_points;
  void* grad_weights;
  void* grad_reference;  // (N, Q, M, L, R), each head's share; null if not needed
};

// Queries of some heads of one image: the unit of work that a thread takes. A backward unit holds
// all queries of its heads, so that no two threads add to the same gradient of value.
struct Unit {
  int64_t n, first_head, last_head;  // last_head and the query `end` are exclusive
  int64_t begin, end;
};

// The queries of a block walk through the levels together. Units begin at multiples of its size, so
// that results do not depend on the assignment of queries to threads.
constexpr int64_t kBlockQueries = 64;

// The kernels of one instruction set, by ValueType.
struct Kernels {
  using Function = void (*)(const Call&, const Unit&);
  const char* name;
  int64_t lanes;  // of a vector
  Function forward[4], backward[4];
  DeformKernels deform_kernels[2];  // of float and double
};

// The kernels for any processor, and the only ones for kFloat64.
extern const Kernels kGenericKernels;
#if defined(__x86_64__) && defined(__GNUC__)
#define DEFORMABLE_DETR_X86
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

// The kernels in use.
const Kernels& kernels_for(ValueType type);

// Whether a packed copy of value would cost more than it saves with few samples. Rows that are not
// whole vectors are only read from the packed copy, where they are padded.
inline bool is_direct(const Dims& dims, int64_t lanes) {
  return dims.Q * dims.L * dims.P < dims.S && dims.D % lanes == 0;
}

// At least `bytes` bytes of thread-local memory, aligned to 64, kept for the thread's next call.
std::byte* thread_scratch(int64_t bytes);

}  // namespace deformable_detr
