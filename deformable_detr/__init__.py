"""Deformable DETR: object detection with multi-scale deformable attention."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from deformable_detr.version import __version__

if TYPE_CHECKING:
    from deformable_detr.conversion.weights import export_weights, import_weights
    from deformable_detr.detector_api import Detector

__all__ = ["Detector", "__version__", "export_weights", "import_weights"]

_MODULES = {
    "Detector": "detector_api",
    "export_weights": "conversion.weights",
    "import_weights": "conversion.weights",
}


def __getattr__(name: str) -> Any:
    """Import a public name, and PyTorch where it needs it, when it is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
