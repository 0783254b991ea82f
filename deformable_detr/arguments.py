"""Checks of arguments that users give; errors name the argument, its range and its value."""

from collections.abc import Mapping, Sequence, Set
from numbers import Integral, Real
from typing import Any

from deformable_detr.messages import in_brief

LARGEST_COUNT = 2**31 - 1  # of sizes in PyTorch and Pillow that do not overflow when multiplied
LARGEST_SEED = 2**64 - 1  # of PyTorch's generators
LARGEST_FLOAT = 3.4028234663852886e38  # of float32
MOST_WORKERS = 256
MOST_BATCH = 1024  # images per forward pass
MOST_NOISE = 1000  # noise images of a receptive field
MOST_VALUES = 4096  # of a config, which has about 150
MOST_LEVELS = 20
MOST_ENTRIES = 1 << 20  # values of all categories of a detector, or of another JSON file


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


def require_bounded(content: object, what: str, *, most: int = MOST_VALUES) -> None:
    """Raise unless nested lists and dictionaries are small, each written out where it occurs.

    Values that occur several times, as aliases in YAML and shared objects in a pickle, make a small
    file an endless one; one that contains itself has no end at all.

    Args:
        content: any value.
        what: name of the content in errors.
        most: maximum number of values and keys.

    Raises:
        ValueError: there are more, or they are nested more than `MOST_LEVELS` deep.
    """
    waiting: list[tuple[object, int]] = [(content, 0)]
    count = 0
    while waiting:
        value, level = waiting.pop()
        count += 1
        if not isinstance(value, Mapping | list | tuple | Set):
            continue
        if value and level == MOST_LEVELS:
            raise ValueError(f"{what} must be nested at most {MOST_LEVELS} deep, got more")
        size = len(value) * (2 if isinstance(value, Mapping) else 1)
        if count + len(waiting) + size > most:
            raise ValueError(f"{what} must hold at most {most} values, got more")
        waiting += [(part, level + 1) for part in value]
        if isinstance(value, Mapping):
            waiting += [(part, level + 1) for part in value.values()]


def require_names(name: str, value: Any) -> None:
    """Raise a ValueError unless the value is a list of texts; one text is none."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise ValueError(f"{name} must be a list of names, such as ['tree'], got {in_brief(value)}")
    for one in value:
        if not isinstance(one, str):
            raise ValueError(f"{name} must hold names, got {in_brief(one)}")
