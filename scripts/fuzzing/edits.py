"""Seeded edits of sound files: of their values, and of their bytes."""

import copy
import json
import math
from typing import Any, TypeVar

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

T = TypeVar("T")
EXAMPLES = 4  # drawn per input; hypothesis begins with the simplest, and the last is taken

HOSTILE = (
    None,
    True,
    -1,
    0,
    2**63,
    10**400,
    1e308,
    5e-324,
    math.nan,
    math.inf,
    "",
    "1",
    "a" * 100_000,
    "\x1b[2J\x07",
    "\u202egnp.exe",
    "\ud800",
    "a\nb",
    "a\0b",
    "../../x",
    "/etc/passwd",
    "http://localhost/x",
    [],
    {},
    [[[[]]]],
)
_SCALARS = st.one_of(
    st.sampled_from(HOSTILE), st.integers(), st.floats(), st.text(max_size=20), st.booleans()
)
VALUES = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
_PLACE = st.floats(0, 1, exclude_max=True)
_OPERATIONS = st.sampled_from(["replace", "replace", "delete", "repeat", "rename", "wrap"])
RECORD_EDITS = st.lists(st.tuples(_PLACE, _OPERATIONS, VALUES), min_size=1, max_size=3)
BYTE_EDITS = st.lists(
    st.tuples(_PLACE, st.sampled_from(["flip", "cut", "zero", "insert", "repeat"]), _PLACE),
    min_size=1,
    max_size=3,
)


def drawn(strategy: st.SearchStrategy[T], seed: int) -> T:
    """Return a value of the strategy that depends on the seed only."""
    values: list[T] = []

    @hypothesis.seed(seed)
    @settings(
        max_examples=EXAMPLES,
        database=None,
        phases=[Phase.generate],
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def keep(value: T) -> None:
        values.append(value)

    keep()
    return values[-1]


def edited(record: Any, edits: list[tuple[float, str, Any]]) -> Any:
    """Return a copy of a record of dictionaries and lists, with edits at places in [0, 1)."""
    root = [copy.deepcopy(record)]
    for place, operation, value in edits:
        nodes = list(_nodes(root))
        container, key = nodes[int(place * len(nodes))]
        if operation == "delete" and container is not root:
            del container[key]
        elif operation == "repeat" and isinstance(container, list) and container is not root:
            container.insert(key, copy.deepcopy(container[key]))
        elif operation == "rename" and isinstance(container, dict):
            container[str(value)[:30]] = container.pop(key)
        elif operation == "wrap":
            container[key] = [container[key]]
        else:
            container[key] = value
    return root[0]


def _nodes(container: Any) -> Any:
    for key in list(container if isinstance(container, dict) else range(len(container))):
        yield container, key
        if isinstance(container[key], dict | list):
            yield from _nodes(container[key])


def damaged(data: bytes, edits: list[tuple[float, str, float]]) -> bytes:
    """Return bytes with edits at places in [0, 1), each of a few bytes or, cut, to the end."""
    content = bytearray(data)
    for place, operation, size in edits:
        start = int(place * len(content))
        length = 1 + int(size * 64)
        match operation:
            case "flip":
                content[start : start + length] = bytes(
                    byte ^ (1 << int(size * 8)) for byte in content[start : start + length]
                )
            case "cut":
                del content[start:]
            case "zero":
                content[start : start + length] = bytes(len(content[start : start + length]))
            case "insert":
                content[start:start] = b"\xff" * length
            case _:
                content[start:start] = content[start : start + length]
    return bytes(content)


def as_json(record: Any) -> bytes:
    """Encode a record, with NaN and lone surrogates as Python writes them."""
    return json.dumps(record).encode("ascii")
