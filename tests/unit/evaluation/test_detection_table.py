import json
import math
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from deformable_detr.evaluation.detection_table import DetectionTable
from deformable_detr.labels import LabelSpace
from deformable_detr.structures import Detections

SPARSE = LabelSpace((0, 7, 90), ("zero", "seven", "ninety"))


def _detections(scores: list[float], labels: list[int]) -> Detections:
    boxes = torch.tensor([[1.0, 2.0, 11.0, 22.0]]).repeat(len(scores), 1)
    return Detections(torch.tensor(scores), torch.tensor(labels, dtype=torch.int64), boxes)


def test_labels_become_category_ids_and_xyxy_becomes_xywh() -> None:
    table = DetectionTable.from_detections(5, _detections([0.75, 0.5], [2, 0]), SPARSE)

    assert table.to_results() == [
        {"image_id": 5, "category_id": 90, "bbox": [1.0, 2.0, 10.0, 20.0], "score": 0.75},
        {"image_id": 5, "category_id": 0, "bbox": [1.0, 2.0, 10.0, 20.0], "score": 0.5},
    ]


def test_results_survive_a_file_without_loss() -> None:
    scores = torch.rand(9, generator=torch.Generator().manual_seed(0)) * 1e-6  # ties, if rounded
    boxes = torch.rand(9, 4, generator=torch.Generator().manual_seed(1)) * 1000
    found = Detections(scores, torch.zeros(9, dtype=torch.int64), boxes)
    table = DetectionTable.from_detections(3, found, SPARSE)

    again = DetectionTable.from_results(json.loads(json.dumps(table.to_results())), seen=[3])

    assert again.of_image(3, SPARSE).scores.equal(scores)
    for field in fields(table):
        assert getattr(again, field.name).tolist() == getattr(table, field.name).tolist()


def test_image_without_detections_is_still_seen() -> None:
    table = DetectionTable.from_detections(5, _detections([], []), SPARSE)

    assert len(table) == 0
    assert table.seen.tolist() == [5]
    assert table.boxes_xywh.shape == (0, 4)


def test_merging_drops_images_an_earlier_table_has_seen() -> None:
    first = DetectionTable.concatenate(
        [
            DetectionTable.from_detections(1, _detections([0.9], [0]), SPARSE),
            DetectionTable.from_detections(2, _detections([], []), SPARSE),
        ]
    )
    second = DetectionTable.concatenate(
        [
            DetectionTable.from_detections(2, _detections([0.8], [0]), SPARSE),
            DetectionTable.from_detections(3, _detections([0.7, 0.6], [0, 1]), SPARSE),
        ]
    )

    merged = DetectionTable.merge([first, second])

    assert merged.seen.tolist() == [1, 2, 3]
    assert merged.image_ids.tolist() == [1, 3, 3]
    assert merged.category_ids.tolist() == [0, 0, 7]


def test_no_tables_concatenate_to_an_empty_table() -> None:
    table = DetectionTable.concatenate([])

    assert table.to_results() == []
    assert table.boxes_xywh.shape == (0, 4)


def test_file_holds_the_exact_table_and_its_step(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    table = DetectionTable(
        np.array([1, 2, 9]),
        np.array([1, 1, 9, 9]),
        np.array([90, 0, 0, 7]),
        random.uniform(0, 500, (4, 4)),
        random.uniform(0, 1, 4),
    )
    path = tmp_path / "detections.npz"
    table.write(path, step=30)
    table.write(path, step=40)
    found, step = DetectionTable.read(path)
    assert step == 40
    for field in fields(table):
        expected, got = getattr(table, field.name), getattr(found, field.name)
        assert (got.dtype, got.tolist()) == (expected.dtype, expected.tolist())
    assert [file.name for file in tmp_path.iterdir()] == ["detections.npz"]


def test_the_detections_of_one_image_are_read_back() -> None:
    space = LabelSpace((3, 7), ("cat", "dog"))
    boxes = torch.tensor([[1.5, 2.25, 30.1, 40.7], [-3.0, 0.1, 8.3, 9.9]])
    found = Detections(torch.tensor([0.9, 0.4]), torch.tensor([1, 0]), boxes)
    other = Detections(torch.tensor([0.7]), torch.tensor([0]), boxes[:1] + 5)
    table = DetectionTable.concatenate(
        [DetectionTable.from_detections(i, d, space) for i, d in ((8, other), (5, found))]
    )
    read = table.of_image(5, space)
    assert read.boxes_xyxy.equal(boxes)
    assert read.labels.tolist() == [1, 0]
    assert read.scores.equal(found.scores)
    assert len(table.of_image(9, space)) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["score", "box"])
def test_numbers_that_are_not_finite_are_refused_with_image_and_share(
    tmp_path: Path, place: str, value: float
) -> None:
    """COCO would count a box of NaN as a match of any object."""
    found = _detections([0.9, 0.8, 0.7], [0, 1, 2])
    (found.scores if place == "score" else found.boxes_xyxy[:, 3])[1] = value
    words = "got 1 of 3 detections of image 5 with scores or boxes that are not; check the weights"
    with pytest.raises(ValueError, match=words):
        DetectionTable.from_detections(5, found, SPARSE)
    table = DetectionTable.from_detections(5, _detections([0.9], [0]), SPARSE)
    (table.scores if place == "score" else table.boxes_xywh[:, 3])[0] = value
    table.write(tmp_path / "table.npz", step=1)  # as earlier versions wrote it
    with pytest.raises(ValueError, match=r"table\.npz must .* 1 of 1 detections .*; delete it"):
        DetectionTable.read(tmp_path / "table.npz")


def test_arrays_much_larger_than_their_file_are_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "table.npz", seen=np.zeros(4_000_000))
    with pytest.raises(ValueError, match=r"table\.npz must be a file that training has written"):
        DetectionTable.read(tmp_path / "table.npz")
    with pytest.raises(ValueError, match=r"\d+ bytes for 32000\d+"):
        DetectionTable.read(tmp_path / "table.npz")
