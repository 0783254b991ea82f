"""Checks of arguments that users give; errors name the argument, its range and its value."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

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
_P = ParamSpec("_P")
_R = TypeVar("_R")
_NUMBERS: dict[Any, Any] = {int: Integral, float: Real}
_LISTS = (Sequence, Iterable)
_NAMES: dict[Any, str] = {
    NoneType: "None",
    Path: "a path",
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "a text",
    Callable: "a function",
    Mapping: "a mapping",
}


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


def checked(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a function that users call: an argument of another type than annotated is an error.

    It is one before the first line of the function runs. Paths are texts or `Path`, and not empty;
    flags are True or False; a text is no list of texts. Numbers of NumPy become those of Python.
    What an annotation does not say, such as a range, is left to the function.

    Raises:
        ValueError: an argument has none of its types; the message names it, with its value.
    """
    parameters = inspect.signature(function).parameters
    names = [name for name, one in parameters.items() if one.kind is one.POSITIONAL_OR_KEYWORD]

    @functools.cache
    def annotations() -> dict[str, Any]:  # at the first call: they may name what is defined later
        return get_type_hints(function)

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        given = [*zip(names, args, strict=False), *kwargs.items()]
        # A missing or an unknown name is the TypeError of the call below.
        values = [require_type(name, one, annotations().get(name, Any)) for name, one in given]
        count = min(len(names), len(args))
        named = dict(zip(kwargs, values[count:], strict=True))
        return function(*values[:count], *args[count:], **named)  # type: ignore[arg-type]

    return call


def require_type(name: str, value: Any, annotation: Any) -> Any:
    """Return the value, a number of NumPy as one of Python; raise if it has another type.

    Args:
        name: name of the argument in errors.
        value: what was given.
        annotation: a type as in a signature.

    Raises:
        ValueError: it has another type, or is an empty path.
    """
    if type(value) is annotation:
        return value
    kinds = _kinds(annotation)
    if fault := _fault(name, value, kinds):
        raise ValueError(fault)
    if int in kinds and isinstance(value, Integral):
        return value if isinstance(value, int) else int(value)
    if float in kinds and isinstance(value, Real) and not isinstance(value, int):
        try:
            return float(value)
        except OverflowError as error:  # of a fraction
            raise ValueError(f"{name} must be a number, got {in_brief(value)}") from error
    return value


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """Return the types of a union, without nesting; of another type, itself."""
    if get_origin(annotation) in (Union, UnionType):
        return tuple(kind for part in get_args(annotation) for kind in _kinds(part))
    return (annotation,)


def _fault(name: str, value: Any, kinds: Sequence[Any]) -> str:
    """Say what is wrong with a value that should have one of several types; "" if nothing is."""
    if isinstance(value, str) and not value and Path in kinds:
        return f"{name} must be a path, got an empty text"
    in_parts = []
    for kind in filter(partial(_is_one, value), kinds):
        if not (found := _fault_of_parts(name, value, kind)):
            return ""
        in_parts.append(found)
    allowed = " or ".join(dict.fromkeys(_described(kind, Path in kinds) for kind in kinds))
    return in_parts[0] if in_parts else f"{name} must be {allowed}, got {in_brief(value)}"


def _is_one(value: Any, kind: Any) -> bool:
    """Return whether a value has a type, whatever its entries have."""
    origin = get_origin(kind) or kind
    if origin is Any:
        return True
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in get_args(kind))
    if origin in _NUMBERS:
        return isinstance(value, _NUMBERS[origin]) and not isinstance(value, bool)
    if origin is tuple:
        return isinstance(value, tuple | list) and (
            ... in get_args(kind) or len(value) == len(get_args(kind))
        )
    if origin in _LISTS and isinstance(value, str | bytes | bytearray | Mapping):
        return False
    return isinstance(value, origin)


def _fault_of_parts(name: str, value: Any, kind: Any) -> str:
    """Say what is wrong with the entries of a list or a mapping."""
    origin, parts = get_origin(kind), get_args(kind)
    entries: list[tuple[str, Any, Any]] = []
    if origin is Mapping:
        entries += [(f"key of {name}", key, parts[0]) for key in value]
        entries += [(f"{name}[{in_brief(key)}]", one, parts[1]) for key, one in value.items()]
    elif origin is tuple and ... not in parts:
        entries += [(f"{name}[{i}]", *one) for i, one in enumerate(zip(value, parts, strict=True))]
    elif origin in (*_LISTS, tuple) and isinstance(value, Sequence):  # an iterator is read once
        entries += [(f"{name}[{i}]", one, parts[0]) for i, one in enumerate(value)]
    faults = (_fault(place, one, _kinds(part)) for place, one, part in entries)
    return next(filter(None, faults), "")


def _described(kind: Any, is_path: bool = False) -> str:
    """Describe a type for a message; a text beside a path is a path."""
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin is Literal:
        values = ", ".join(map(repr, parts))
        return f"one of {values}" if len(parts) > 1 else values
    if kind is str and is_path:
        return _described(Path)
    if origin in _LISTS or ... in parts:
        inner = _kinds(parts[0])
        each = dict.fromkeys(_described(one, Path in inner).split()[-1] for one in inner)
        return "a list of " + " or ".join(f"{one}s" for one in each)
    if origin is tuple:
        return f"({', '.join(map(_described, parts))})"
    article = "an" if origin.__name__[0] in "AEIOUn" else "a"  # as in ndarray
    return _NAMES.get(origin) or f"{article} {origin.__name__}"
