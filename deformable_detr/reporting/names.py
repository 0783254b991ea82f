"""Foreign texts on a page: nothing that changes the direction or the size of what is beside it."""

from typing import Any

from deformable_detr.messages import printable
from deformable_detr.visualize.fonts import JOINERS, legible, needs_shaping

_ISOLATE, _END_ISOLATE = "\u2068", "\u2069"  # as the element bdi, also in attributes and titles
_KEPT = frozenset({"\n", _ISOLATE, _END_ISOLATE, *JOINERS})


def class_name(name: str) -> str:
    """Return a class name as a page shows it: one short line, its direction kept to itself."""
    text = legible(name) or "(no name)"
    return f"{_ISOLATE}{text}{_END_ISOLATE}" if needs_shaping(text) else text


def without_controls(value: Any) -> Any:
    """Escape control characters of a text; other values, and markup, are returned as they are."""
    if type(value) is not str or value.isprintable():
        return value
    return "".join(one if one in _KEPT else printable(one) for one in value)
