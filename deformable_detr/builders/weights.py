"""Builder of a detector with the weights of a file."""

from deformable_detr.builders.model import build_model
from deformable_detr.config import RunConfig
from deformable_detr.conversion.class_rows import number_of_rows
from deformable_detr.conversion.weights import Weights
from deformable_detr.engine.checkpoints.checkpoint import load_weights
from deformable_detr.finite import require_finite_weights
from deformable_detr.labels import LabelSpace
from deformable_detr.models.deformable_detr import DeformableDETR


def model_with_weights(weights: Weights, config: RunConfig, what: str) -> DeformableDETR:
    """Build a detector from a config and load weights into it.

    Args:
        weights: the weights, and the classes if known.
        config: config of the detector.
        what: name of the weights in errors.

    Raises:
        ValueError: weights and config do not match, or a weight is not finite.
    """
    require_finite_weights(weights.state_dict, what)
    space = weights.label_space
    num_classes = number_of_rows(weights.state_dict) if space is None else space.num_classes
    model = build_model(config, num_classes=num_classes, load_backbone_weights=False)
    load_weights(model, weights.state_dict, what)
    return model


def numbered_classes(weights: Weights) -> LabelSpace:
    """Make numbered classes, one per class row, for a file that does not name its classes."""
    rows = range(number_of_rows(weights.state_dict))
    return LabelSpace(tuple(rows), tuple(f"class {row}" for row in rows))
