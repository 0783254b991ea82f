"""Checks of arguments that users give; errors name the argument, its range and its value."""

from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from deformable_detr.messages import in_brief

LARGEST_COUNT = 2**31 - 1  # of sizes in PyTorch and Pillow that do not overflow when multiplied
LARGEST_SEED = 2**64 - 1  # of PyTorch's generators
LARGEST_FLOAT = 3.4028234663852886e38  # of float32
MOST_WORKERS = 1024


def require_integer(name: str, value: Any, *, at_least: int, at_most: int = LARGEST_COUNT) -> None:
    """Raise a ValueError unless the value is an integer in at_least..at_most."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f"{name} must be an integer, got {in_brief(value)}")
    number = int(value)
    if number < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {in_brief(number)}")
    if number > at_most:
        raise ValueError(f"{name} must be at most {at_most}, got {in_brief(number)}")


def require_fraction(name: str, value: Any) -> None:
    """Raise a ValueError unless the value is a number in [0, 1]; NaN is not."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {in_brief(value)}")


def require_path(name: str, value: Any) -> None:
    """Raise a ValueError unless the value is a path: a `Path`, or a text that is not empty."""
    if not isinstance(value, str | Path) or value == "":
        raise ValueError(f"{name} must be a path, got {in_brief(value)}")


def require_names(name: str, value: Any) -> None:
    """Raise a ValueError unless the value is a list of texts; one text is none."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise ValueError(f"{name} must be a list of names, such as ['tree'], got {in_brief(value)}")
    for one in value:
        if not isinstance(one, str):
            raise ValueError(f"{name} must hold names, got {in_brief(one)}")
