"""Checks of what users give to an operator; not part of compiled and exported graphs."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from deformable_detr.arguments import checked, require_type
from deformable_detr.messages import in_brief

_P = ParamSpec("_P")
_R = TypeVar("_R")


def checked_operator(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate an operator as `checked` does, at no cost to calls that succeed.

    Operators run many times in each step: types are looked at after an error only. A graph is
    traced without the check.
    """
    with_check = checked(function)

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        try:
            return function(*args, **kwargs)
        except (AttributeError, IndexError, TypeError, ValueError):
            pass
        return with_check(*args, **kwargs)

    return call


def as_device(device: torch.device | str) -> torch.device:
    """Return a device by its name.

    Raises:
        ValueError: there is no such name.
    """
    if isinstance(device, torch.device):
        return device
    require_type("device", device, str)
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"device must be a name such as cpu or cuda:1, got {in_brief(device)}"
        ) from error
