"""Checks that numbers are finite: predictions, weights, drawn values and JSON."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_UNKNOWN_CAUSE = (
    "weights or running statistics of the model are damaged, or its precision overflows; take an "
    "earlier checkpoint, or compute in float32"
)


class NonFinitePredictionsError(ValueError):
    """Logits or boxes of a model are infinite or NaN.

    Attributes:
        image: the first image with such predictions, as in "image 7 (tiles/7.png)".
        problem: its number of queries that are concerned.
        cause: likely cause and remedy.
        position: position of the image in its batch, or among the images given.
    """

    def __init__(
        self, image: str, problem: str, cause: str = _UNKNOWN_CAUSE, position: int = 0
    ) -> None:
        super().__init__(image, problem, cause, position)  # what pickle passes on to a copy
        self.image, self.problem, self.cause, self.position = image, problem, cause, position

    def __str__(self) -> str:
        return f"predictions must be finite, got {self.problem} for {self.image}; {self.cause}"

    def renamed(self, image: str, position: int | None = None) -> "NonFinitePredictionsError":
        """Return the error with another description of the image, and another position if given."""
        position = self.position if position is None else position
        return NonFinitePredictionsError(image, self.problem, self.cause, position)

    def because(self, cause: str) -> "NonFinitePredictionsError":
        """Return the error with another cause."""
        return NonFinitePredictionsError(self.image, self.problem, cause, self.position)


def require_finite_predictions(
    logits: Tensor, boxes: Tensor, describe: Callable[[int], str] = "image {} of the batch".format
) -> None:
    """Raise if a prediction is not finite; logits of minus infinity count too.

    On a GPU this waits for the device, once.

    Args:
        logits: (N, Q, K), in the dtype that the model returned.
        boxes: (N, Q, 4).
        describe: returns the description of an image, by its position in the batch.

    Raises:
        NonFinitePredictionsError: it names the first such image and the share of its queries.
    """
    if torch.stack((logits.isfinite().all(), boxes.isfinite().all())).all():
        return
    bad = {"boxes": ~boxes.isfinite().all(-1), "logits": ~logits.isfinite().all(-1)}  # (N, Q)
    either = bad["boxes"] | bad["logits"]
    position = int(either.any(1).nonzero()[0])
    kinds = " or ".join(kind for kind, queries in bad.items() if queries[position].any())
    count, Q = int(either[position].sum()), either.shape[1]
    raise NonFinitePredictionsError(
        describe(position),
        f"{count} of {Q} queries with {kinds} that are not finite",
        position=position,
    )


def cause_in_weights(state_dict: Mapping[str, Tensor], owner: str = "the model") -> str:
    """Return the likely cause and the remedy of predictions that are not finite.

    Args:
        state_dict: parameters and buffers of the model.
        owner: what they belong to.
    """
    if found := describe_non_finite(state_dict):
        hidden = ", which only eval mode uses, so that training goes on" * ("running_" in found)
        return (
            f"likely cause: {owner} has {found}{hidden}; take an earlier checkpoint, such as "
            "previous.pth"
        )
    floating = [value for value in state_dict.values() if value.is_floating_point()]
    dtypes = {value.dtype for value in floating}
    if low := dtypes & {torch.float16, torch.bfloat16}:
        name = str(low.pop()).removeprefix("torch.")
        return f"likely cause: all weights are finite, {name} overflows; compute in float32"
    largest = max((float(value.abs().max()) for value in floating if value.numel()), default=0.0)
    return (
        f"likely cause: all weights of {owner} are finite, the largest is {largest:.3g}, but "
        "values grow beyond the range of their precision, as after training has diverged; take an "
        "earlier checkpoint, or lower train.optimizer.lr"
    )


def describe_non_finite(state_dict: Mapping[str, Tensor]) -> str:
    """Describe the tensors that are not finite, or return "" if there are none."""
    floating = {name: value for name, value in state_dict.items() if value.is_floating_point()}
    bad = [name for name, value in floating.items() if not value.isfinite().all()]
    if not bad:
        return ""
    first = floating[bad[0]]
    count = int((~first.isfinite()).sum())
    return (
        f"{len(bad)} of {len(floating)} tensors that are not finite, first: {bad[0]} "
        f"({count} of {first.numel()} values)"
    )


def require_finite_weights(
    state_dict: Mapping[str, Tensor], what: str, remedy: str = "take an earlier checkpoint"
) -> None:
    """Raise if a weight or a running statistic is not finite.

    Args:
        state_dict: parameters and buffers by name.
        what: description of their source, as in "checkpoint runs/a/last.pth".
        remedy: what to do instead.

    Raises:
        ValueError: it counts the tensors and names the first one.
    """
    if found := describe_non_finite(state_dict):
        raise ValueError(f"{what} must hold finite numbers, got {found}; {remedy}")


def require_finite_values(values: Tensor, what: str) -> None:
    """Raise if one of the values that are to be drawn is not finite.

    Args:
        values: values of any shape.
        what: description of the values, as in "boxes of image 3".

    Raises:
        ValueError: it gives the share of such values.
    """
    count = int((~values.isfinite()).sum())
    if count:
        raise ValueError(
            f"{what} must be finite to be drawn, got {count} of {values.numel()} numbers that are "
            "not; check the weights of the model, or compute in float32"
        )


def to_json(content: Any, what: str, *, indent: int | None = None) -> str:
    """Return JSON, which has no NaN and no infinity.

    Args:
        content: plain values.
        what: description of the content for the error, as in "results file r.json".
        indent: as for `json.dumps`.

    Raises:
        ValueError: a number is not finite; the message names its place.
    """
    try:
        return json.dumps(content, indent=indent, allow_nan=False)
    except ValueError:
        place, value = next(_non_finite_numbers(content, ()), (None, None))
        if place is None:
            raise
        where = ".".join(place) or "its only number"
        raise ValueError(f"{what} must hold finite numbers, got {value} at {where}") from None


def _non_finite_numbers(
    value: Any, place: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], float]]:
    if isinstance(value, float) and not math.isfinite(value):
        yield place, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _non_finite_numbers(part, (*place, str(key)))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, part in enumerate(value):
            yield from _non_finite_numbers(part, (*place, str(index)))
