// Launches: grids, and checks that raise.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>

#include "samples.cuh"

// These three are in torch's CUDA library, which a CPU build of torch lacks. As weak symbols they
// let the same binary load there too, where they are never called.
#ifndef _WIN32
#pragma weak aoti_torch_get_current_cuda_stream
#pragma weak torch_c10_cuda_check_msg
#pragma weak torch_c10_cuda_free_error_msg
#endif

namespace deformable_detr {

namespace {

// CUDA's limits of a grid: the first size, and each of the others.
constexpr int64_t kMaxGridX = (int64_t{1} << 31) - 1;
constexpr int64_t kMaxGridYZ = 65535;

// Makes the tensor's device current, which PyTorch's guard restores, and returns its current
// stream.
inline cudaStream_t prepare_launches(const torch::stable::Tensor& tensor) {
  const int32_t device = tensor.get_device_index();
  // The CUDA runtime may be linked into this library: then it has a current device of its own.
  STD_CUDA_CHECK(cudaSetDevice(device));
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

inline unsigned int blocks_for(int64_t count, int64_t per_block) {
  const int64_t blocks = (count + per_block - 1) / per_block;
  STD_TORCH_CHECK(blocks <= kMaxGridX, "CUDA cannot launch a grid of ", blocks, " blocks");
  return static_cast<unsigned int>(blocks);
}

// Launches a kernel with one group per query: one grid, or several if there are more images than a
// grid allows.
template <typename Form, typename T>
void launch_for_queries(void (*kernel)(Call<T>), Call<T> call, cudaStream_t stream) {
  STD_TORCH_CHECK(call.dims.M <= kMaxGridYZ, "value must have at most ", kMaxGridYZ,
                  " heads on CUDA, got ", call.dims.M);
  for (int64_t first = 0; first < call.dims.N; first += kMaxGridYZ) {
    const dim3 grid(blocks_for(call.dims.Q, Form::kQueries), static_cast<unsigned int>(call.dims.M),
                    static_cast<unsigned int>(std::min(call.dims.N - first, kMaxGridYZ)));
    call.first_image = static_cast<int32_t>(first);
    kernel<<<grid, Form::kThreads, 0, stream>>>(call);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
}

}  // namespace

}  // namespace deformable_detr
