"""Checks of the training set before the first step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.coco_files import CocoFiles, write_coco_set
from helpers.small_run import SMALL_RUN, data_settings

from deformable_detr.config import ConfigError
from deformable_detr.config.loading import load_config
from deformable_detr.workflows.training_parts import TrainingData


def open_data(folder: Path, edit: Callable[[dict[str, Any]], Any], *settings: str) -> TrainingData:
    """Open a training set after an edit of its content, and an unchanged validation set."""
    train, val = (
        write_coco_set(folder / name, num_images=2, size=(48, 64)) for name in ("train", "val")
    )
    _edit(train, edit)
    data = data_settings(train, val)
    return TrainingData.open(load_config("deformable_detr_r50", [*SMALL_RUN, *data, *settings]))


def _edit(files: CocoFiles, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = files.read()
    edit(content)
    files.write(content)


def _all(content: dict[str, Any], **changes: Any) -> None:
    for one in content["annotations"]:
        one.update(changes)


def _one_of_each(content: dict[str, Any]) -> None:
    one = content["annotations"][0]
    kinds = [{"iscrowd": 1}, {"bbox": [5, 5, 0, 9]}, {"bbox": [64, 5, 9, 9]}]
    content["annotations"] = [{**one, "id": number} | kind for number, kind in enumerate(kinds)]


@pytest.mark.parametrize(
    ("edit", "left_out"),
    [
        (lambda content: content.update(annotations=[]), "0 crowd, 0 degenerate, 0 outside"),
        (lambda content: _all(content, iscrowd=1), r"[2-9] crowd, 0 degenerate, 0 outside"),
        (lambda content: _all(content, bbox=[5, 5, 0, 9]), r"0 crowd, [2-9] degenerate, 0 outside"),
        (_one_of_each, "1 crowd, 1 degenerate, 1 outside"),
    ],
)
def test_a_training_set_without_objects_is_refused_with_the_reasons(
    tmp_path: Path, edit: Callable[[dict[str, Any]], Any], left_out: str
) -> None:
    message = rf"object to learn, got none in .*train.*json; annotations left out: {left_out}$"
    with pytest.raises(ValueError, match=message):
        open_data(tmp_path, edit)


def test_class_weights_must_be_as_many_as_classes(tmp_path: Path) -> None:
    message = r"loss.class_weights: must have a weight for each of the 2 classes, .*, got 3"
    with pytest.raises(ConfigError, match=message):
        open_data(tmp_path, lambda _: None, "loss.class_weights=[1, 2, 3]")
    open_data(tmp_path / "two", lambda _: None, "loss.class_weights=[1, 2]")


def test_images_with_more_objects_than_queries_are_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def crowded(content: dict[str, Any]) -> None:
        one = content["annotations"][0]
        content["annotations"] = [
            {**one, "id": number, "bbox": [number, 0, 9, 9], "image_id": 1} for number in range(7)
        ]

    crops = "data.augmentation={kind: zoom_crop, size: 48}"  # these do not show all objects
    for settings in (["7"], ["6", crops], ["6"]):
        assert caplog.messages == []
        open_data(tmp_path, crowded, f"model.queries.num_queries={settings[0]}", *settings[1:])
    assert caplog.messages == [
        "1 of 2 training images have more objects, up to 7, than the model has queries, 6: "
        "a step that shows them all does not learn the rest; raise model.queries.num_queries"
    ]


def test_the_setting_reaches_the_validation_set(tmp_path: Path) -> None:
    def flat(content: dict[str, Any]) -> None:
        content["annotations"][0]["bbox"] = [5, 5, 0, 9]

    total = len(open_data(tmp_path, flat).train.annotations.images)
    ignored = open_data(tmp_path, flat, "data.empty_boxes=ignored").train
    assert len(ignored.annotations.images) == total - 1
    assert sum(ignored.num_objects) == total - 1
