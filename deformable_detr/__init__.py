"""Deformable DETR: object detection with multi-scale deformable attention."""

from deformable_detr.version import __version__

__all__ = ["__version__"]
