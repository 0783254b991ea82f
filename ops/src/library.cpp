// The operators' schemas, and the empty Python module whose import loads the library.
#include <Python.h>
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(deformable_detr, m) {
  m.def(
      "ms_deform_attn(Tensor value, SymInt[] level_shapes, Tensor sampling_locations, "
      "Tensor attention_weights) -> Tensor");
  m.def(
      "ms_deform_attn_backward(Tensor grad_output, Tensor value, SymInt[] level_shapes, "
      "Tensor sampling_locations, Tensor attention_weights, bool deterministic) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "ms_deform_attn_fused(Tensor value, SymInt[] level_shapes, Tensor reference_points, "
      "Tensor sampling_offsets, Tensor attention_logits) -> Tensor");
  // Without needs_reference_grad, the second result is empty.
  m.def(
      "ms_deform_attn_fused_backward(Tensor grad_output, Tensor value, SymInt[] level_shapes, "
      "Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits, "
      "bool needs_reference_grad, bool deterministic) -> (Tensor, Tensor, Tensor, Tensor)");
  // geometry: (height, width) of kernel, stride, padding and dilation, eight numbers.
  m.def(
      "deform_kernel_conv2d(Tensor x, Tensor weight, Tensor rotation, int[] geometry, "
      "bool clip_to_scope) -> Tensor");
  m.def(
      "deform_kernel_conv2d_backward(Tensor grad_output, Tensor x, Tensor weight, Tensor rotation, "
      "int[] geometry, bool clip_to_scope) -> (Tensor, Tensor, Tensor)");
  m.def("cpu_capability(int index) -> str");
}

// Targets of the CUDA kernels, "sm_90 compute_120" for example; defined by setup.py.
#ifndef DEFORMABLE_DETR_CUDA_ARCHITECTURES
#define DEFORMABLE_DETR_CUDA_ARCHITECTURES ""
#endif

PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  PyObject* const module = PyModule_Create(&definition);
  if (module != nullptr && PyModule_AddStringConstant(module, "CUDA_ARCHITECTURES",
                                                      DEFORMABLE_DETR_CUDA_ARCHITECTURES) < 0) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
