"""Arguments of a wrong type: an error that names the argument and the value."""

from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_checkpoint import write_random_checkpoint
from PIL import Image

from deformable_detr import Detector, explain, predict
from deformable_detr.cli.predict import _names

VALUES: list[Any] = [7, b"x", 2.5, ["a"], object(), True]
ARGUMENTS = {
    "photos": [None, 7, b"x", [None], [7], [b"x"], ""],
    "checkpoint": [None, *VALUES, ""],
    "out": [*VALUES, ""],
    "annotations": [*VALUES, ""],
    "classes": ["tree", b"tree", 7, [1], [None], {"tree": 1}, []],
    "threshold": ["0.5", None, b"x", [0.5], True],
    "batch_size": [2.0, "2", None, True, [2]],
    "max_detections": [True, 2.0, "2", [2]],
    "device": [3, None, b"cpu", ["cpu"], ""],
}
EXPLAINED: dict[str, list[Any]] = {
    "photo": [None, 7, b"x", ["a"], ""],
    "checkpoint": [None, *VALUES],
    "out": [7, b"x", ["a"]],
    "queries": ["3", 2.0, None, True],
    "noise": ["3", 2.0, None, True],
    "cell": [3, "ab", (1,), (1, 2, 3), ("a", 1)],
    "deform": ["layer", 3, [3], None],
    "erf": [3, b"x", ["a"]],
    "device": [3, None],
}
NAMED = {"photos": "photos|image or folder", "photo": "image"}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("arguments")
    Image.new("RGB", (40, 30)).save(folder / "a.png")
    return {"photo": folder / "a.png", "checkpoint": write_random_checkpoint(folder / "a.pth")}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_predict_names_an_argument_of_a_wrong_type(given: dict[str, Path], name: str) -> None:
    for value in ARGUMENTS[name]:
        arguments: dict[str, Any] = {"checkpoint": given["checkpoint"], "photos": given["photo"]}
        with pytest.raises(ValueError, match=NAMED.get(name, name)):
            predict(**(arguments | {name: value}))


@pytest.mark.parametrize("name", EXPLAINED)
def test_explain_names_an_argument_of_a_wrong_type(given: dict[str, Path], name: str) -> None:
    for value in EXPLAINED[name]:
        with pytest.raises(ValueError, match=NAMED.get(name, name)):
            explain(**({**given, "queries": 0} | {name: value}))


def test_one_text_is_no_list_of_classes(given: dict[str, Path]) -> None:
    detector = Detector.from_checkpoint(given["checkpoint"], device="cpu")
    with pytest.raises(ValueError, match=r"list of names, such as \['tree'\], got 'tree'"):
        detector.predict(given["photo"], classes="tree")


def test_a_class_with_a_comma_can_be_given() -> None:
    assert _names(r"cat, Ficus\, large ,dog") == ["cat", "Ficus, large", "dog"]
