"""Weights of a file -> the detector that has them."""

from deformable_detr.builders.model import build_model
from deformable_detr.config import RunConfig
from deformable_detr.conversion.class_rows import number_of_rows
from deformable_detr.conversion.weights import Weights
from deformable_detr.engine.checkpoints.checkpoint import load_weights
from deformable_detr.labels import LabelSpace
from deformable_detr.models.deformable_detr import DeformableDETR


def model_with_weights(weights: Weights, config: RunConfig, what: str) -> DeformableDETR:
    """A detector that has the weights, built as the config says.

    Raises:
        ValueError: they do not fit each other; `what` names the weights.
    """
    space = weights.label_space
    num_classes = number_of_rows(weights.state_dict) if space is None else space.num_classes
    model = build_model(config, num_classes=num_classes, load_backbone_weights=False)
    load_weights(model, weights.state_dict, what)
    return model


def numbered_classes(weights: Weights) -> LabelSpace:
    """Stands in where a file does not say what its classes are: their rows, from 0 on."""
    rows = range(number_of_rows(weights.state_dict))
    return LabelSpace(tuple(rows), tuple(f"class {row}" for row in rows))
