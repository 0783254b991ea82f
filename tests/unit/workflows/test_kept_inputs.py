"""`train --overwrite` deletes the files of the run in the folder, but no input of the new run."""

import os
from pathlib import Path

import pytest
from helpers.coco_files import write_coco_set
from helpers.command_line import CommandLine
from helpers.small_run import SMALL_RUN, data_settings

from deformable_detr.engine.run.folder import RunFolder
from deformable_detr.workflows.places import require_kept_inputs

WORDS = "--overwrite must not delete an input of the run, got "


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["config", "annotations", "image", "link", "finetune_from"])
def test_inputs_in_the_run_folder_are_kept(tmp_path: Path, run: CommandLine, kind: str) -> None:
    folder = tmp_path / "run"
    files = write_coco_set(folder, num_images=2)
    for name in ("metrics.jsonl", "last.pth", "notes"):
        (folder / name).touch()
    config, options = tmp_path / "c.yaml", []
    config.write_text("{}")
    settings = [*SMALL_RUN, *data_settings(files, files)]
    if kind == "config":
        config = config.rename(folder / "config.yaml")
    elif kind == "annotations":
        name = files.annotations.rename(folder / "results.json")
        settings += [f"data.{one}.annotations={name}" for one in ("train", "val")]
    elif kind == "image":  # the images are those in the run folder
        content = files.read()
        for image, name in zip(content["images"], ("curves.png", "b.png"), strict=True):
            (files.images / image["file_name"]).rename(folder / name)
            image["file_name"] = name
        files.write(content)
        settings += [f"data.{one}.images={folder}" for one in ("train", "val")]
    elif kind == "link":
        os.link(config, folder / "report.html")
    else:
        options = ["--finetune-from", str(folder / "last.pth")]
    before = snapshot(tmp_path)
    message = run.fails(
        "train", "--config", config, "--run-dir", folder, "--overwrite", *options, *settings
    )
    expected = "--finetune-from must be outside the run folder" if options else WORDS
    assert message.startswith(expected)
    assert snapshot(tmp_path) == before


def test_other_inputs_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "last.pth").touch()
    (tmp_path / "train.json").touch()
    inputs = [tmp_path / name for name in ("train.json", "none", "train.json/below")]
    require_kept_inputs(RunFolder(tmp_path), inputs, images=[tmp_path / "0001.png"])
