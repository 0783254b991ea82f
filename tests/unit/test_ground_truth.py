import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deformable_detr.evaluation.coco_eval import run_coco, summarize
from deformable_detr.evaluation.detection_table import DetectionTable
from deformable_detr.ground_truth import GroundTruth, ap_ceiling, read_ground_truth


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

    truth = read_ground_truth(_write(tmp_path / "a.json", content))
    assert tuple(truth.file_names) == ("a/b.png", "")


def test_a_file_without_annotations_is_valid(tmp_path: Path) -> None:
    content = _annotations()
    del content["annotations"]

    truth = read_ground_truth(_write(tmp_path / "a.json", content))
    assert truth.to_coco()["annotations"] == []


SIZED = [{"id": 1, "file_name": "a.png", "height": 100, "width": 100}]
BOX = {"image_id": 1, "category_id": 7, "bbox": [10, 10, 30, 40]}
FLAT, OUTSIDE = BOX | {"bbox": [60, 60, 0, 10]}, BOX | {"bbox": [100, 5, 9, 9]}
CROWD = BOX | {"iscrowd": 1, "bbox": [0, 0, 0, 9]}


def _read(folder: Path, *objects: dict[str, Any], **options: Any) -> GroundTruth:
    content = _annotations(images=SIZED, annotations=list(objects))
    return read_ground_truth(_write(folder / "a.json", content), **options)


def test_boxes_without_area_inside_their_image_are_found_by_reason(tmp_path: Path) -> None:
    flat_and_outside = BOX | {"bbox": [200, 0, 5, 0]}
    negative = BOX | {"bbox": [50, 50, 5, -1]}
    touching = [BOX | {"bbox": box} for box in ([99, 99, 9, 9], [-8, -8, 9, 9])]
    hidden = [FLAT, OUTSIDE, flat_and_outside, negative, BOX | {"bbox": [5, -9, 9, 9]}]
    empty = _read(tmp_path, BOX, CROWD, *touching, *hidden).empty()
    assert empty["degenerate"].nonzero()[0].tolist() == [4, 6, 7]
    assert empty["outside"].nonzero()[0].tolist() == [5, 8]


def test_without_sizes_no_box_is_beyond_the_right_or_the_bottom(tmp_path: Path) -> None:
    content = _annotations(annotations=[OUTSIDE, BOX | {"bbox": [-9, 5, 9, 9]}])
    truth = read_ground_truth(_write(tmp_path / "a.json", content))
    assert truth.empty()["outside"].tolist() == [False, True]


@pytest.mark.parametrize(
    ("empty_boxes", "ap", "line"),
    [
        ("missed", 51 / 101, "missed by every detector in evaluation, where AP is 0.505 at most"),
        ("ignored", 1.0, "left out of training and of evaluation"),
    ],
)
def test_boxes_without_area_are_missed_or_ignored_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, empty_boxes: str, ap: float, line: str
) -> None:
    truth = _read(tmp_path, BOX, FLAT, empty_boxes=empty_boxes)
    assert _ap(truth, [BOX]) == pytest.approx(ap)
    assert len(caplog.messages) == 1
    assert "a.json: 1 of 2 annotations have no area inside" in caplog.text
    assert "(1 without width or height), such as annotations[1]" in caplog.text
    assert line in caplog.text


def test_the_ceiling_is_the_ap_of_a_detector_that_finds_the_other_objects(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    categories = [{"id": number, "name": str(number)} for number in range(6)]
    objects = [
        {"image_id": 1, "category_id": int(rng.integers(4)), "bbox": [9 * i, 0, 8, 8]}
        for i in range(60)
    ]
    objects += [{"image_id": 1, "category_id": 5, "bbox": [0, 50, 8, 8]}]  # 4 has no objects
    content = _annotations(images=[{"id": 1}], categories=categories, annotations=objects)
    truth = read_ground_truth(_write(tmp_path / "a.json", content))
    missed = rng.random(len(objects)) < 0.3
    missed[-1] = True  # the only one of its class
    found = [one for one, is_missed in zip(objects, missed, strict=True) if not is_missed]
    assert 0.3 < ap_ceiling(truth, missed) < 0.7
    assert ap_ceiling(truth, missed) == pytest.approx(_ap(truth, found), abs=1e-12)


def _ap(truth: GroundTruth, found: Sequence[Mapping[str, Any]]) -> float:
    table = DetectionTable.from_results(
        [{"score": 1.0, **one} for one in found], seen=truth.image_ids
    )
    return summarize(run_coco(truth.to_coco(), table), truth.to_coco()).statistics["AP"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (
            {"annotations": [BOX, OTHER := BOX | {"image_id": 2}, BOX, OTHER, CROWD, CROWD]},
            "2 of 6 annotations repeat another one (image, category and box), such as "
            "annotations[0] and annotations[2]: delete the copies; where a detector finds each "
            "object once, AP is 0.505 at most",
        ),
        (
            {
                "images": [
                    {"id": 1, "file_name": "x/a.png"},
                    {"id": 2, "file_name": "b.png"},
                    {"id": 9, "file_name": "./x//a.png"},
                ]
            },
            "1 image files have several ids, such as 'x/a.png' with 1, 9: each id is trained",
        ),
        (
            {"categories": [{"id": 7, "name": "tree"}, {"id": 9, "name": "tree"}]},
            "1 names belong to several categories, such as 'tree' to 7, 9",
        ),
        ({"annotations": [BOX | {"area": 0}]}, "1 of 1 annotations have area 0 but a box with"),
        ({"annotations": []}, "no object to find in 0 annotations (0 crowd regions): AP is not"),
        ({"annotations": [CROWD]}, "no object to find in 1 annotations (1 crowd regions): AP is"),
    ],
)
def test_legal_but_suspicious_content_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: dict[str, Any], line: str
) -> None:
    read_ground_truth(_write(tmp_path / "a.json", _annotations(**{"annotations": [BOX]} | content)))
    assert len(caplog.messages) == 1
    assert f"a.json: {line}" in caplog.text


def test_sound_content_is_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    near = BOX | {"bbox": [10, 10, 30, 40.001]}
    _read(tmp_path, BOX, near, CROWD, CROWD)
    assert caplog.messages == []


def test_objects_of_two_classes_with_one_box_are_not_copies(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    objects = [
        {"image_id": 1, "category_id": category_id, "bbox": [1, 2, 3, 4]} for category_id in (7, 8)
    ]
    categories = [{"id": 7, "name": "tree"}, {"id": 8, "name": "bush"}]
    content = _annotations(categories=categories, annotations=objects)
    read_ground_truth(_write(tmp_path / "a.json", content))
    assert caplog.messages == []
