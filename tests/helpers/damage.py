"""Ways in which a detector's predictions become infinite or NaN in eval mode."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from deformable_detr.structures import ModelOutput, Predictions

Change = Callable[[Predictions], Predictions]


@torch.no_grad()
def fill(model: nn.Module, part: str, value: float = math.nan) -> None:
    """Overwrite the parameters and buffers whose name contains `part`."""
    chosen = [tensor for name, tensor in model.state_dict().items() if part in name]
    assert chosen
    for tensor in chosen:
        tensor.fill_(value)


def change_predictions(model: nn.Module, change: Change) -> None:
    """Change the last predictions of a model in eval mode."""

    def hook(module: nn.Module, inputs: object, output: ModelOutput) -> ModelOutput:
        return output if module.training else replace(output, last=change(output.last))

    model.register_forward_hook(hook)


def in_one_logit(value: float, predictions: Predictions) -> Predictions:
    logits = predictions.logits.clone()
    logits[-1, 0, 0] = value
    return replace(predictions, logits=logits)


def in_one_box(value: float, predictions: Predictions) -> Predictions:
    boxes = predictions.boxes.clone()
    boxes[-1, 0, 2] = value
    return replace(predictions, boxes=boxes)


def in_low_precision(dtype: torch.dtype, predictions: Predictions) -> Predictions:
    """Return predictions whose logits overflow in `dtype`."""
    limit = torch.finfo(dtype).max
    scaled: Tensor = predictions.logits.double() * 0 + 2.0 * limit
    return Predictions(scaled.to(dtype), predictions.boxes.to(dtype))


# Damage of a whole detector: how, and a pattern of the share and the cause in the error.
DAMAGES: dict[str, tuple[Callable[[nn.Module], None], str]] = {
    "weights of box heads": (
        partial(fill, part="decoder.box_heads"),
        r"5 of 5 queries with boxes that .* first: decoder\.box_heads\.0\.\S+ \((\d+) of \1 values",
    ),
    "weights of class heads": (
        partial(fill, part="decoder.class_heads"),
        r"5 of 5 queries with logits that .* first: decoder\.class_heads\.0\.\S+ \((\d+) of \1 val",
    ),
    "running statistics": (
        partial(fill, part="running_var"),
        r"5 of 5 queries with boxes or logits .*running_var .*which only eval mode uses",
    ),
    "one logit": (
        lambda model: change_predictions(model, partial(in_one_logit, math.nan)),
        r"1 of 5 queries with logits that .* of the model are finite, the largest is [.\d]+, but",
    ),
    "a logit of minus infinity": (
        lambda model: change_predictions(model, partial(in_one_logit, -math.inf)),
        r"1 of 5 queries with logits that .* all weights of the model are finite",
    ),
    "one box": (
        lambda model: change_predictions(model, partial(in_one_box, math.inf)),
        r"1 of 5 queries with boxes that .* all weights of the model are finite",
    ),
    "float16": (
        lambda model: change_predictions(model, partial(in_low_precision, torch.float16)),
        r"5 of 5 queries with logits that",
    ),
    "bfloat16": (
        lambda model: change_predictions(model, partial(in_low_precision, torch.bfloat16)),
        r"5 of 5 queries with logits that",
    ),
}
