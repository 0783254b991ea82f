import json
from pathlib import Path
from typing import Any

import pytest

from deformable_detr.ground_truth import read_ground_truth


def _annotations(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = {
        "images": [{"id": 1}, {"id": 2}],
        "categories": [{"id": 7, "name": "tree"}],
        "annotations": [{"id": 0, "image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4]}],
    }
    return content | changes


def _write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_missing_fields_get_defaults_and_ids_start_at_one(tmp_path: Path) -> None:
    truth = read_ground_truth(_write(tmp_path / "a.json", _annotations())).to_coco()

    assert truth["annotations"] == [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 7,
            "bbox": [1, 2, 3, 4],
            "area": 12,
            "iscrowd": 0,
        }
    ]


def test_file_names_are_kept_where_the_file_has_them(tmp_path: Path) -> None:
    content = _annotations(images=[{"id": 2, "file_name": "a/b.png"}, {"id": 1}])

    assert read_ground_truth(_write(tmp_path / "a.json", content)).file_names == ("a/b.png", "")


def test_a_file_without_annotations_is_valid(tmp_path: Path) -> None:
    content = _annotations()
    del content["annotations"]

    truth = read_ground_truth(_write(tmp_path / "a.json", content))
    assert truth.to_coco()["annotations"] == []


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(_annotations()), encoding="utf-8-sig")

    plain = read_ground_truth(_write(tmp_path / "b.json", _annotations()))
    assert read_ground_truth(path).to_coco() == plain.to_coco()


BOX = {"image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "annotation file .*a.json must be JSON, got Expecting"),
        ([], "annotation file .*a.json must hold an object, got a list"),
        ({"images": []}, "categories of .*a.json must be a list, got nothing"),
        (_annotations(images=[{}]), "images of .*: entry 0 must have an integer id, got None"),
        (_annotations(images=["x"]), "images of .*: entry 0 must be an object, got a str"),
        (
            _annotations(annotations=[BOX | {"image_id": 9}]),
            "annotations of .* must use the image_id of the annotation file, got unknown 9",
        ),
        (
            _annotations(annotations=[BOX | {"category_id": 3}]),
            "annotations of .* must use the category_id of the annotation file, got unknown 3",
        ),
        (
            _annotations(annotations=[BOX, BOX | {"bbox": [1, 2, 3]}]),
            r"entry 1 must have a bbox of four finite numbers .*, got \[1, 2, 3\]",
        ),
        (
            _annotations(annotations=[BOX | {"area": None}]),
            "entry 0 must have a finite area, got None",
        ),
    ],
)
def test_broken_annotations_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_ground_truth(_write(tmp_path / "a.json", content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"annotation file .*none.json must exist"):
        read_ground_truth(tmp_path / "none.json")
