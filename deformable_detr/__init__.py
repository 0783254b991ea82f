"""Deformable DETR: object detection with multi-scale deformable attention."""

from typing import TYPE_CHECKING, Any

from deformable_detr.version import __version__

if TYPE_CHECKING:
    from deformable_detr.detector_api import Detector

__all__ = ["Detector", "__version__"]


def __getattr__(name: str) -> Any:
    """Import `Detector`, and PyTorch with it, when it is first asked for."""
    if name == "Detector":
        from deformable_detr.detector_api import Detector

        return Detector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
