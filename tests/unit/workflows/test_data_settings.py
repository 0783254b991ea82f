"""Layouts of a data folder."""

from pathlib import Path

import pytest

from deformable_detr.config import ConfigError
from deformable_detr.workflows.places import data_settings

LAYOUTS = {
    "Pascal VOC": ("Annotations/1.xml", r"a folder of Pascal VOC \(convert the annotations"),
    "YOLO": ("data.yaml", r"a folder of YOLO \(convert the annotations to COCO JSON\)"),
    "labels": ("labels/train/1.txt", r"a folder of YOLO \("),
    "COCO": ("annotations/instances_train2017.json", "the layout of COCO 2017"),
}


@pytest.mark.parametrize(("file", "layout"), LAYOUTS.values(), ids=LAYOUTS)
def test_a_data_folder_of_another_layout_is_called_so(
    tmp_path: Path, file: str, layout: str
) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).touch()
    with pytest.raises(ConfigError, match=rf"got .*, {layout}.*, which lacks train"):
        data_settings(tmp_path)


def test_a_data_folder_that_does_not_exist_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="where there is no folder, which lacks"):
        data_settings(tmp_path / "none")
