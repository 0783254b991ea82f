from pathlib import Path

import pytest
from helpers.command_line import CommandLine

from deformable_detr.config import ConfigError
from deformable_detr.workflows.places import data_settings, require_file_place, require_folder_place


def test_paths_that_exist_or_can_be_created_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("[]")
    for folder in (tmp_path, tmp_path / "a" / "b"):
        require_folder_place("out", folder)
        folder.mkdir(parents=True, exist_ok=True)
        assert folder.is_dir()
    for file in (tmp_path / "old.json", tmp_path / "a" / "new.json"):
        require_file_place("out", file)
        assert file.write_text("{}") == 2


@pytest.mark.parametrize("inside", ["", "a", "a/b"])
def test_a_folder_below_a_file_is_refused(tmp_path: Path, inside: str) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(ValueError, match=rf"^out must be a folder, .* where {file} is a file"):
        require_folder_place("out", file / inside)


def test_a_folder_is_refused_as_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^out must be a file, got the folder {tmp_path}"):
        require_file_place("out", tmp_path)


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("evaluate --checkpoint no.pth --images . --annotations a --out {}/x", "out"),
        (
            "evaluate --checkpoint no.pth --images . --annotations a --pictures {}",
            "pictures",
        ),
        ("predict --checkpoint no.pth --out {} .", "out"),
        ("convert no.pth {}/x.pth", "OUT"),
    ],
)
def test_commands_check_output_paths_before_the_checkpoint(
    run: CommandLine, tmp_path: Path, command: str, option: str
) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    outcome = run(*command.format(file).split())  # no.pth, missing too, would be the next error
    assert outcome.code == 2
    assert (
        f"error: {option} must be a folder, or a path where one can be created, got " in outcome.err
    )


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
