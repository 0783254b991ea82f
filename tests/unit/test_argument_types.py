"""Arguments of a wrong type: an error that names the argument and the value, before any work."""

import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import deformable_detr
from deformable_detr import Detector, load_config, ops, workflows
from deformable_detr.arguments import checked, require_type
from deformable_detr.cli.predict import _names
from deformable_detr.structures import Detections

API_PAGE = Path(__file__).parents[2] / "docs" / "api.md"


class Unprintable:
    def __repr__(self) -> str:
        raise AttributeError("half built")


# A value of each sort, and the sorts that a type accepts.
VALUES: dict[str, Any] = {
    "none": None,
    "flag": True,
    "numpy flag": np.True_,
    "integer": 7,
    "numpy integer": np.int64(7),
    "number": 2.5,
    "numpy number": np.float32(2.5),
    "complex": 1j,
    "text": "\x1b[31m" + 500 * "x",
    "empty text": "",
    "bytes": b"x",
    "path": Path("missing"),
    "list": ["a"],
    "list of others": ["a", None],
    "pair": (1, "a"),
    "mapping": {"a": 1},
    "mapping of others": {1: 2},
    "set": {"a"},
    "array": np.zeros(2),
    "tensor": torch.zeros(2),
    "function": print,
    "class": Path,
    "object": object(),
    "unprintable": Unprintable(),
    "huge": 10**5000,
}
ACCEPTED: dict[Any, set[str]] = {
    NoneType: {"none"},
    bool: {"flag"},
    int: {"integer", "numpy integer", "huge"},
    float: {"integer", "numpy integer", "number", "numpy number", "huge"},
    str: {"text", "empty text"},
    Path: {"path", "text"},
    Callable: {"function", "class", "unhashable"},
    Sequence: {"list"},
    Iterable: {"list", "list of others", "pair", "set", "array", "tensor"},
    Mapping: {"mapping"},
    np.ndarray: {"array"},
    Tensor: {"tensor"},
    Any: set(VALUES),
}
# Functions of workflows that other workflows call with arguments they have checked.
INTERNAL = {"run_folder", "open"}


def kinds_of(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in kinds_of(part)]
    return [get_origin(annotation) or annotation]


def takes_a_path(function: Any) -> bool:
    return {str, Path} <= {
        kind for one in get_type_hints(function).values() for kind in kinds_of(one)
    }


def methods_of(owner: type) -> dict[str, Any]:
    """Collect the public methods of a class, without those that it inherits."""
    found = {name: getattr(owner, name) for name in vars(owner) if not name.startswith("_")}
    return {f"{owner.__name__}.{k}": one for k, one in found.items() if inspect.isroutine(one)}


def public_functions() -> dict[str, Callable[..., Any]]:
    """Collect what the page lists, what the package exports, and workflows that take a path."""
    found = [getattr(deformable_detr, name) for name in deformable_detr.__all__]
    listed = re.findall(r"^::: (\S+)\.(\w+)$", API_PAGE.read_text(), re.M)
    found += [getattr(import_module(module), name) for module, name in listed]
    for info in pkgutil.walk_packages(workflows.__path__, f"{workflows.__name__}."):
        own = [one for one in vars(import_module(info.name)).values() if inspect.isfunction(one)]
        found += [one for one in own if one.__module__ == info.name and takes_a_path(one)]
    functions: dict[str, Callable[..., Any]] = {}
    for one in found:
        if inspect.isfunction(one) and not one.__name__.startswith("_"):
            functions[one.__name__] = one
        elif inspect.isclass(one) and not issubclass(one, Exception):
            functions |= methods_of(one)
            if one in (Detector, deformable_detr.Target, Detections):  # others are results
                functions[one.__name__] = one
    return {name: one for name, one in functions.items() if name not in INTERNAL}


PUBLIC = public_functions()


def given(annotation: Any) -> Any:
    """Make a value of a type; files do not exist, so that an attempt to read them is an error."""
    kind = kinds_of(annotation)[0]
    if ... in get_args(annotation):
        return ((1, 1),)
    if get_origin(annotation) is Literal:
        return get_args(annotation)[0]
    plain: dict[Any, Any] = {str: "missing", Path: Path("missing"), int: 1, float: 0.5, bool: False}
    plain |= {Tensor: torch.zeros(1, 4), Sequence: [], Iterable: [], Mapping: {}, tuple: (1, 1)}
    return plain[kind] if kind in plain else Mock(spec=kind)


def parameters_of(function: Callable[..., Any]) -> dict[str, Any]:
    source = function.__init__ if inspect.isclass(function) else function
    hints = get_type_hints(source)
    return {
        name: hints[name]
        for name, one in inspect.signature(function).parameters.items()
        if name in hints and one.kind is not one.VAR_KEYWORD
    }


def required(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    return {
        name: given(annotation)
        for name, annotation in parameters_of(function).items()
        if parameters[name].default is inspect.Parameter.empty
    }


def sorts_refused(annotation: Any) -> list[str]:
    kinds = kinds_of(annotation)
    accepted = set().union(*(ACCEPTED.get(kind, set()) for kind in kinds))
    return [
        sort for sort in VALUES if sort not in accepted or (sort == "empty text" and Path in kinds)
    ]


CASES = [
    (function, name)
    for function, one in PUBLIC.items()
    for name, annotation in parameters_of(one).items()
]


@pytest.mark.parametrize(("function", "name"), CASES)
def test_an_argument_of_a_wrong_type_is_named(
    function: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call, arguments = PUBLIC[function], required(PUBLIC[function])
    self_ = ()
    if next(iter(inspect.signature(call).parameters), "") == "self":
        owner = getattr(import_module(call.__module__), call.__qualname__.partition(".")[0])
        self_ = (Mock(spec=owner),)
    for sort in sorts_refused(parameters_of(call)[name]):
        value = VALUES[sort]
        with pytest.raises(ValueError, match=rf"\b{name}\b.* must .*, got ") as caught:
            call(*self_, **(arguments | {name: value}))
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400
    assert not list(tmp_path.iterdir())


def test_the_walk_finds_the_functions_of_commands() -> None:
    assert {"train", "evaluate", "evaluate_run", "score_results", "predict", "explain"} <= {*PUBLIC}
    assert {"convert", "report", "overfit", "check_data", "check_checkpoint"} <= {*PUBLIC}
    assert {"replay_bundle", "load_config", "Detector.predict", "ms_deform_attn"} <= {*PUBLIC}
    assert ops.resolve_backend is PUBLIC["resolve_backend"]


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        ("a", str | Path),
        (Path("a"), str | Path | None),
        (None, str | Path | None),
        ("", str),
        (3, float),
        ([], Sequence[str]),
        (("a",), Sequence[str] | None),
        (["a", Path("b")], str | Path | Sequence[str | Path]),
        ({"a": [1]}, Sequence[str] | Mapping[str, Any]),
        ([1, 2], tuple[int, int]),
        ("auto", bool | Literal["auto"]),
        (iter("a"), Iterable[str]),
        (print, Callable[[str], None] | None),
        (Image.new("L", (1, 1)), str | Image.Image),
    ],
)
def test_a_value_of_a_right_type_is_kept(value: Any, annotation: Any) -> None:
    assert require_type("it", value, annotation) is value


@pytest.mark.parametrize(
    ("value", "annotation", "message"),
    [
        ("a", Sequence[str], "it must be a list of texts, got 'a'"),
        (["a", 2], str | Sequence[str], r"it\[1\] must be a text, got 2"),
        ([3], str | Path | Sequence[str | Path], r"it\[0\] must be a path, got 3"),
        ({1: 2}, Mapping[str, int], "key of it must be a text, got 1"),
        ({"a": "b"}, Mapping[str, int], r"it\['a'\] must be an integer, got 'b'"),
        ((1, 2, 3), tuple[int, int] | None, r"it must be \(an integer, an integer\) or None"),
        ((1, 2.0), tuple[int, int], r"it\[1\] must be an integer, got 2.0"),
        (1, bool, "it must be True or False, got 1"),
        (True, Literal[1, "a"], "it must be one of 1, 'a', got True"),
        ({"a": 1}, Iterable[Path] | str, "it must be a list of paths or a text, got"),
        ([(1, 2), (3,)], tuple[tuple[int, int], ...], r"it\[1\] must be \(an integer, an"),
    ],
)
def test_an_error_names_the_entry_and_what_is_accepted(
    value: Any, annotation: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        require_type("it", value, annotation)


def test_numbers_of_numpy_become_those_of_python() -> None:
    @checked
    def types(count: int | None, share: float = 0.5, *, seed: int = 0) -> list[type]:
        return [type(count), type(share), type(seed)]

    assert types(np.int64(3), np.float32(1), seed=np.uint8(1)) == [int, float, int]
    assert types(None, seed=1) == [NoneType, float, int]
    with pytest.raises(TypeError, match="unexpected keyword argument 'sed'"):
        types(1, sed=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("value", [b"x", {"a"}, object(), [b"x"], 1j])
def test_a_setting_that_is_no_yaml_is_named(value: Any) -> None:
    with pytest.raises(ValueError, match=r"train\.epochs must be a YAML value, got"):
        load_config("quickstart", {"train.epochs": value})


def test_a_setting_may_be_a_number_of_numpy() -> None:
    assert load_config("quickstart", {"train.epochs": np.int64(3)}).train.epochs == 3


def test_a_class_with_a_comma_can_be_given() -> None:
    assert _names(r"cat, Ficus\, large ,dog") == ["cat", "Ficus, large", "dog"]
