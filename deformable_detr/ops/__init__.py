"""Operators: multi-scale deformable attention, deformable convolution.

This is the Python half; the C++ and CUDA sources that it loads live in `ops/src` at the top of
the checkout. `python -m deformable_detr.ops` prints which back-ends there are, and why not.
"""

from deformable_detr.ops.deform_conv.dispatch import deform_conv2d, offsets_from_block_layout
from deformable_detr.ops.deform_conv.reference import deform_conv2d_core_pytorch
from deformable_detr.ops.ms_deformable_attention.dispatch import (
    Backend,
    available_backends,
    ms_deform_attn,
    ms_deform_attn_fused,
    resolve_backend,
)

__all__ = [
    "Backend",
    "available_backends",
    "deform_conv2d",
    "deform_conv2d_core_pytorch",
    "ms_deform_attn",
    "ms_deform_attn_fused",
    "offsets_from_block_layout",
    "resolve_backend",
]
