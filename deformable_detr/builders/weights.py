"""Builder of a detector with the weights of a file."""

from dataclasses import replace

from deformable_detr.builders.model import build_model
from deformable_detr.builders.model_size import require_held_by
from deformable_detr.config import RunConfig
from deformable_detr.conversion.class_rows import number_of_rows, select_rows, spread_rows
from deformable_detr.conversion.stored import COUNTER
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
    require_held_by(weights.state_dict, config.model, what)
    require_finite_weights(weights.state_dict, what)
    space = weights.label_space
    num_classes = number_of_rows(weights.state_dict) if space is None else space.num_classes
    try:
        model = build_model(config, num_classes=num_classes, load_backbone_weights=False)
    except ValueError as error:
        raise ValueError(f"{what} has no usable config: {error}") from error
    state = weights.state_dict
    if weights.source != "native":  # no other format has the counters of batch norms
        state = {**{n: t for n, t in model.state_dict().items() if n.endswith(COUNTER)}, **state}
    load_weights(model, state, what)
    return model


def with_labels_of(weights: Weights, config: RunConfig) -> Weights:
    """Return the weights with a class row for each label that the config asks for.

    With `match_official` labels are category ids, and each id up to the largest has a row; those
    without a category start as for an unseen class. Otherwise, each category has a row.
    """
    space = weights.label_space
    if space is None:
        return weights
    labels = space.category_labels
    ranked_by_class = getattr(config.model.queries, "ranking", None) == "class"
    if not config.match_official:
        if not space.unused:
            return weights
        state = select_rows(weights.state_dict, labels, ranked_by_class=ranked_by_class)
        return replace(weights, state_dict=state, label_space=space.contiguous())
    raw = space.with_raw_labels()
    if raw == space:
        return weights
    ids = [space.category_ids[label] for label in labels]
    state = select_rows(weights.state_dict, labels, ranked_by_class=ranked_by_class)
    state = spread_rows(state, ids, raw.num_classes, ranked_by_class=ranked_by_class)
    return replace(weights, state_dict=state, label_space=raw)


def numbered_classes(weights: Weights) -> LabelSpace:
    """Make numbered classes, one per class row, for a file that does not name its classes."""
    rows = range(number_of_rows(weights.state_dict))
    return LabelSpace(tuple(rows), tuple(f"class {row}" for row in rows))
