"""Deformable DETR: object detection with multi-scale deformable attention."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from deformable_detr.version import __version__

if TYPE_CHECKING:
    from deformable_detr.builders import build_criterion, build_model
    from deformable_detr.config.loading import load_config
    from deformable_detr.conversion.weights import export_weights, import_weights
    from deformable_detr.detector import Detector
    from deformable_detr.engine.metrics import official_losses
    from deformable_detr.engine.run.stopping import PreemptedError
    from deformable_detr.structures import Target
    from deformable_detr.workflows.doctor.data_check import check_data
    from deformable_detr.workflows.evaluation import evaluate
    from deformable_detr.workflows.explanation import explain
    from deformable_detr.workflows.overfitting import overfit
    from deformable_detr.workflows.prediction import predict
    from deformable_detr.workflows.run_report import report
    from deformable_detr.workflows.training import train

__all__ = [
    "Detector",
    "PreemptedError",
    "Target",
    "__version__",
    "build_criterion",
    "build_model",
    "check_data",
    "evaluate",
    "explain",
    "export_weights",
    "import_weights",
    "load_config",
    "official_losses",
    "overfit",
    "predict",
    "report",
    "train",
]

_MODULES = {
    "Detector": "detector",
    "PreemptedError": "engine.run.stopping",
    "Target": "structures",
    "build_criterion": "builders",
    "build_model": "builders",
    "check_data": "workflows.doctor.data_check",
    "evaluate": "workflows.evaluation",
    "explain": "workflows.explanation",
    "export_weights": "conversion.weights",
    "import_weights": "conversion.weights",
    "load_config": "config.loading",
    "official_losses": "engine.metrics",
    "overfit": "workflows.overfitting",
    "predict": "workflows.prediction",
    "report": "workflows.run_report",
    "train": "workflows.training",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first access, so that importing the package is fast."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names, for completion."""
    return sorted({*globals(), *__all__})
