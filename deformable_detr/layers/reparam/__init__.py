"""Re-parameterized blocks, Asymmetric Convolution and Diverse Branch Blocks, and their fusion."""

from deformable_detr.layers.reparam.fuse import fuse_model

__all__ = ["fuse_model"]
