"""Operators: multi-scale deformable attention, deformable convolution.

This package is the Python part; its C++ and CUDA sources are in `ops/src` at the root of the
repository. `deformable-detr doctor env` prints which back-ends are available and, for the others,
the reason.
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
