"""Replay of a micro-batch, to find the first non-finite value.

Only failed steps are replayed, so other steps have no overhead.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deformable_detr.data.collate import Batch
from deformable_detr.engine.step import with_mimicking
from deformable_detr.losses.criterion import SetCriterion


@dataclass(frozen=True)
class Examination:
    """Result of running a micro-batch again.

    Attributes:
        loss: the total; NaN if it could not be computed.
        refusal: error message of the matcher if the loss could not be computed, else "".
        forward: place of the first non-finite value in the forward pass, or "".
        backward: the same for the backward pass.
        largest_input: largest magnitude among the inputs of the module that `forward` names.
        gradient_norms: 2-norm of each parameter's gradient by name; empty without a loss.
    """

    loss: float
    refusal: str
    forward: str
    backward: str
    largest_input: float
    gradient_norms: dict[str, float]

    @property
    def is_finite(self) -> bool:
        """True if the loss and the gradient's norm, as a float32, are finite."""
        total = math.sqrt(sum(norm**2 for norm in self.gradient_norms.values()))
        return math.isfinite(self.loss) and total <= torch.finfo(torch.float32).max


def examine(
    model: nn.Module,
    criterion: SetCriterion,
    batch: Batch,
    *,
    num_boxes: float,
    dropout_seed: int,
    low_precision: torch.dtype | None = None,
    loss_scale: float = 1.0,
) -> Examination:
    """Run a micro-batch as a training step does; the gradients of `model` are overwritten.

    Args:
        model: the detector itself, in training mode, with the weights before the step.
        criterion: loss function.
        batch: micro-batch, on the device of the model.
        num_boxes: divisor of the sums, as for the criterion.
        dropout_seed: dropout seed of this micro-batch in its step.
        low_precision: dtype of autocast, or None to run without it.
        loss_scale: factor on the loss before the backward pass.
    """
    model.zero_grad()
    torch.manual_seed(dropout_seed)
    device = batch.images.images.device
    with _watching(model) as watch:
        autocast = torch.autocast(
            device.type, dtype=low_precision, enabled=low_precision is not None
        )
        with autocast:
            output = model(batch.images, batch.targets)
        try:
            result = criterion(output, batch.targets, num_boxes)
        except ValueError as error:  # predictions that are not finite are not matched
            return Examination(math.nan, str(error), watch.forward, "", watch.largest_input, {})
        with autocast:
            total = with_mimicking(model, criterion, batch, output, result, num_boxes)["total"]
        (loss_scale * total).backward()
    norms = {
        name: parameter.grad.cpu().double().norm().item() / loss_scale
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return Examination(total.item(), "", watch.forward, watch.backward, watch.largest_input, norms)


class _Watch:
    """Record of the first non-finite value in the forward and in the backward pass."""

    def __init__(self, model: nn.Module) -> None:
        self.forward = ""
        self.backward = ""
        self.largest_input = 0.0
        self._names = {module: name for name, module in model.named_modules()}

    def _name(self, module: nn.Module) -> str:
        kind = type(module).__name__
        name = self._names[module]
        return f"{name} ({kind})" if name else f"the model ({kind})"

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not self.forward and not _are_finite((args, kwargs)):
            self.forward = f"the input of {self._name(module)}"

    def leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not self.forward and not _are_finite(output):
            self.forward = f"the output of {self._name(module)}"
            sizes = [t.abs().max().item() for t in _tensors((args, kwargs)) if t.numel()]
            self.largest_input = max(sizes, default=0.0)
        for tensor in _tensors(output):
            if tensor.requires_grad:
                what = f"the gradient of the output of {self._name(module)}"
                tensor.register_hook(partial(self.see_gradient, what))

    def see_gradient(self, what: str, gradient: Tensor) -> None:
        if not self.backward and not _are_finite(gradient):
            self.backward = what


@contextmanager
def _watching(model: nn.Module) -> Iterator[_Watch]:
    watch = _Watch(model)
    handles = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(watch.enter, with_kwargs=True))
        handles.append(module.register_forward_hook(watch.leave, with_kwargs=True))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            what = f"the gradient of {name}"
            handles.append(parameter.register_hook(partial(watch.see_gradient, what)))
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in the (nested) arguments or results of a module."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value):
        yield from _tensors(tuple(getattr(value, field.name) for field in fields(value)))


def _are_finite(value: Any) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in _tensors(value))
