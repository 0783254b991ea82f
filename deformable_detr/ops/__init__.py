"""Operators: multi-scale deformable attention.

This is the Python half; the C++ and CUDA sources it will load live in `ops/src` at the top of
the checkout.
"""

from deformable_detr.ops.dispatch import Backend, available_backends, ms_deform_attn

__all__ = ["Backend", "available_backends", "ms_deform_attn"]
