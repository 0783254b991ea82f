// The operators on CPU: registration, division of the work, and the choice of instruction set.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>
#include <string>
#include <tuple>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "../checks.h"
#include "kernels.h"

namespace deformable_detr {

namespace {

#if defined(__linux__)
constexpr size_t kHugePage = size_t{1} << 21;

uintptr_t round_down(uintptr_t address, size_t multiple) { return address / multiple * multiple; }

uintptr_t round_up(uintptr_t address, size_t multiple) {
  return round_down(address + multiple - 1, multiple);
}
#endif

// Memory that grows and is kept: fresh memory would cost a page fault for every page of every call.
// On Linux it uses huge pages where they fit, because reading rows at random places then needs
// fewer address translations.
class Scratch {
 public:
  ~Scratch() { release(); }

  std::byte* at_least(size_t bytes) {
    if (bytes <= size_) return memory_;
    release();
#if defined(__linux__)
    mapped_ = bytes + kHugePage;  // untouched pages take no memory
    void* mapping =
        mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) throw std::bad_alloc();
    mapping_ = static_cast<std::byte*>(mapping);
    const uintptr_t begin = reinterpret_cast<uintptr_t>(mapping_);
    memory_ = mapping_ + (round_up(begin, kHugePage) - begin);
    madvise(memory_, round_down(bytes, kHugePage), MADV_HUGEPAGE);
#else
    memory_ = static_cast<std::byte*>(::operator new(bytes, kLine));
#endif
    size_ = bytes;
    return memory_;
  }

 private:
  void release() {
    if (memory_ == nullptr) return;
#if defined(__linux__)
    munmap(mapping_, mapped_);
#else
    ::operator delete(memory_, kLine);
#endif
    memory_ = nullptr;
    size_ = 0;
  }

#if defined(__linux__)
  std::byte* mapping_ = nullptr;
  size_t mapped_ = 0;
#else
  static constexpr std::align_val_t kLine{64};
#endif
  std::byte* memory_ = nullptr;
  size_t size_ = 0;
};

// A result of at least this size gets fresh memory from the system at every call: the C library
// does not keep blocks of this size (glibc's largest threshold for mmap on 64 bits).
constexpr size_t kFreshBytes = size_t{32} << 20;

// Asks the system for huge pages for a large result, and for the rest at its ends at once: one by
// one, the page faults of two images take as long as half the work on one image.
void ask_for_pages(void* memory, size_t bytes) {
#if defined(__linux__)
  constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE, which older headers lack
  if (bytes <= kFreshBytes) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory), end = begin + bytes;
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto ask = [](uintptr_t from, uintptr_t to, int what) {  // failure is harmless
    if (from < to) madvise(reinterpret_cast<void*>(from), to - from, what);
  };
  const uintptr_t first = round_up(begin, kHugePage), last = round_down(end, kHugePage);
  ask(first, last, MADV_HUGEPAGE);
  ask(round_up(begin, page), first, kPopulateWrite);
  ask(last, round_down(end, page), kPopulateWrite);
#endif
}

// A result that the kernels fill.
Tensor new_result(const Tensor& like, const std::vector<int64_t>& shape) {
  Tensor result = torch::stable::new_empty(like, shape);
  ask_for_pages(result.mutable_data_ptr(), result.numel() * result.element_size());
  return result;
}

std::vector<const Kernels*> supported_kernels() {
  std::vector<const Kernels*> kernels = {&kGenericKernels};
#if defined(DEFORMABLE_DETR_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    kernels.push_back(&kAvx2Kernels);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      kernels.push_back(&kAvx512Kernels);
    }
  }
#endif
  return kernels;
}

std::atomic<const Kernels*>& chosen_kernels() {
  static std::atomic<const Kernels*> kernels{supported_kernels().back()};
  return kernels;
}

ValueType value_type(const Tensor& value) {
  switch (value.scalar_type()) {
    case ScalarType::Double:
      return kFloat64;
    case ScalarType::Half:
      return kFloat16;
    case ScalarType::BFloat16:
      return kBFloat16;
    default:
      return kFloat32;
  }
}

Call make_call(const Arguments& arguments) {
  // Cells are numbered in 32 bits; the packed copy's border at most doubles their number.
  STD_TORCH_CHECK(arguments.dims.S < (int64_t{1} << 29),
                  "value must hold fewer than 2^29 positions, got ", arguments.dims.S);
  Call call = {};
  call.dims = arguments.dims;
  call.levels = arguments.levels;
  call.value = arguments.value.const_data_ptr();
  call.points = arguments.points.const_data_ptr();
  call.weights = arguments.weights.const_data_ptr();
  call.reference_points = arguments.reference_points.const_data_ptr();
  return call;
}

bool is_empty(const Dims& dims) {
  return dims.N * dims.Q * dims.M * dims.D * dims.L * dims.P * dims.S == 0;
}

// A result of this many numbers, about 8 MB, will not stay in the caches until it is read.
constexpr int64_t kStreamedNumbers = int64_t{1} << 21;

Tensor run_forward(const Arguments& arguments) {
  const Dims& dims = arguments.dims;
  const std::vector<int64_t> shape = {dims.N, dims.Q, dims.M * dims.D};
  if (is_empty(dims)) return torch::stable::new_zeros(arguments.value, shape);
  Tensor output = new_result(arguments.value, shape);
  const ValueType type = value_type(arguments.value);
  Call call = make_call(arguments);
  call.output = output.mutable_data_ptr();
  // Rows of 16 bits are not whole vectors.
  call.is_streamed = type == kFloat32 && output.numel() > kStreamedNumbers;
  const Kernels& kernels = kernels_for(type);
  // With few queries, a unit is some queries with all their heads; else it is a head, or, with more
  // threads than heads, a part of its queries.
  const bool direct = is_direct(dims, kernels.lanes);
  const int64_t heads = direct ? 1 : dims.M;
  const int64_t blocks = (dims.Q + kBlockQueries - 1) / kBlockQueries;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t wanted =
      direct ? 4 * threads : threads;  // queries differ, so more parts than threads
  const int64_t parts = std::clamp<int64_t>((wanted + dims.N * heads - 1) / (dims.N * heads), 1,
                                            direct ? dims.Q : blocks);
  const int64_t queries =
      direct ? (dims.Q + parts - 1) / parts : (blocks + parts - 1) / parts * kBlockQueries;
  torch::stable::parallel_for(0, dims.N * heads * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % parts * queries, head = i / parts % heads;
      kernels.forward[type](call, {i / parts / heads, head, direct ? dims.M : head + 1, first,
                                   std::min(first + queries, dims.Q)});
    }
  });
  return output;
}

struct Gradients {
  Tensor value, points, weights, reference_points;
};

Gradients run_backward(const Tensor& grad_output, const Arguments& arguments,
                       bool needs_reference_grad) {
  const Dims& dims = arguments.dims;
  const Tensor gradient = check_grad_output(grad_output, arguments.value, dims);
  const ValueType type = value_type(arguments.value);
  const Kernels& kernels = kernels_for(type);
  const bool empty = is_empty(dims);
  const auto make = [&](const Tensor& like, const std::vector<int64_t>& shape, bool zeros) {
    return zeros ? torch::stable::new_zeros(like, shape) : new_result(like, shape);
  };
  const std::vector<int64_t> none = {0}, reference = {dims.N, dims.Q, dims.M, dims.L, dims.R};
  Gradients gradients = {make(arguments.value, {dims.N, dims.S, dims.M, dims.D}, empty),
                         make(arguments.points, {dims.N, dims.Q, dims.M, dims.L, dims.P, 2}, empty),
                         make(arguments.points, {dims.N, dims.Q, dims.M, dims.L, dims.P}, empty),
                         make(arguments.points, needs_reference_grad ? reference : none, empty)};
  if (!empty) {
    Call call = make_call(arguments);
    call.grad_output = gradient.const_data_ptr();
    call.grad_value = gradients.value.mutable_data_ptr();
    call.grad_points = gradients.points.mutable_data_ptr();
    call.grad_weights = gradients.weights.mutable_data_ptr();
    if (needs_reference_grad) {
      call.grad_reference = gradients.reference_points.mutable_data_ptr();
    }
    call.is_streamed = gradients.points.numel() > kStreamedNumbers;
    call.is_value_streamed = gradients.value.numel() > kStreamedNumbers;
    torch::stable::parallel_for(0, dims.N * dims.M, 1, [&](int64_t begin, int64_t end) {
      while (begin < end) {  // as many heads of one image as possible
        const int64_t n = begin / dims.M, last = std::min(end, (n + 1) * dims.M);
        kernels.backward[type](call, {n, begin - n * dims.M, last - n * dims.M, 0, dims.Q});
        begin = last;
      }
    });
  }
  if (needs_reference_grad) {
    const std::vector<int64_t> heads = {2};
    gradients.reference_points = torch::stable::sum(gradients.reference_points, heads);
  }
  return gradients;
}

Tensor forward(const Tensor& value, std::vector<int64_t> level_shapes,
               const Tensor& sampling_locations, const Tensor& attention_weights) {
  return run_forward(
      check_arguments(value, level_shapes, sampling_locations, attention_weights, nullptr));
}

Tensor forward_fused(const Tensor& value, std::vector<int64_t> level_shapes,
                     const Tensor& reference_points, const Tensor& sampling_offsets,
                     const Tensor& attention_logits) {
  return run_forward(
      check_arguments(value, level_shapes, sampling_offsets, attention_logits, &reference_points));
}

// `deterministic` is not needed: one thread adds all gradients of a head, in a fixed order.
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& value,
                                            std::vector<int64_t> level_shapes,
                                            const Tensor& sampling_locations,
                                            const Tensor& attention_weights, bool deterministic) {
  const Gradients gradients = run_backward(
      grad_output,
      check_arguments(value, level_shapes, sampling_locations, attention_weights, nullptr), false);
  return {gradients.value, gradients.points, gradients.weights};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward_fused(
    const Tensor& grad_output, const Tensor& value, std::vector<int64_t> level_shapes,
    const Tensor& reference_points, const Tensor& sampling_offsets, const Tensor& attention_logits,
    bool needs_reference_grad, bool deterministic) {
  const Gradients gradients = run_backward(
      grad_output,
      check_arguments(value, level_shapes, sampling_offsets, attention_logits, &reference_points),
      needs_reference_grad);
  return {gradients.value, gradients.reference_points, gradients.points, gradients.weights};
}

// Changes to the requested instruction set, 0 generic, 1 AVX2, 2 AVX-512, and returns the name of
// the one in use. The best one is in use by default; the change is for tests.
std::string cpu_capability(int64_t index) {
  const auto kernels = supported_kernels();
  if (index >= 0) {
    STD_TORCH_CHECK(index < static_cast<int64_t>(kernels.size()),
                    "this processor supports capabilities below ", kernels.size(), ", got ", index);
    chosen_kernels() = kernels[index];
  }
  return chosen_kernels().load()->name;
}

}  // namespace

const Kernels& kernels_for(ValueType type) {
  return type == kFloat64 ? kGenericKernels : *chosen_kernels().load();
}

std::byte* thread_scratch(int64_t bytes) {
  thread_local Scratch scratch;
  return scratch.at_least(static_cast<size_t>(bytes));
}

STABLE_TORCH_LIBRARY_IMPL(deformable_detr, CPU, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&forward));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&backward));
  m.impl("ms_deform_attn_fused", TORCH_BOX(&forward_fused));
  m.impl("ms_deform_attn_fused_backward", TORCH_BOX(&backward_fused));
}

STABLE_TORCH_LIBRARY_IMPL(deformable_detr, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&cpu_capability));
}

}  // namespace deformable_detr
