"""`train --evaluate-only`: the metrics of `evaluate` for a run or a file, without training."""

import json
import logging
from pathlib import Path

import pytest
from helpers.coco_files import CocoFiles, write_coco_set
from helpers.command_line import CommandLine
from helpers.tiny_checkpoint import CONFIG, LABEL_SPACE, write_checkpoint

from deformable_detr.config.loading import to_yaml
from deformable_detr.files.output_folder import MANIFEST

CATEGORIES = dict(zip(LABEL_SPACE.category_ids, LABEL_SPACE.names, strict=True))


@pytest.fixture
def photos(tmp_path: Path) -> CocoFiles:
    return write_coco_set(
        tmp_path / "set", num_images=3, size=(48, 64), categories=CATEGORIES, empty=[2]
    )


@pytest.fixture
def options(tmp_path: Path, photos: CocoFiles) -> list[str]:
    """Arguments with a config whose training data do not exist."""
    config = tmp_path / "tiny.yaml"
    config.write_text(to_yaml(CONFIG))
    return [
        *("train", "--evaluate-only", "--config", str(config), "--device", "cpu"),
        "data.train.images=nowhere",
        "data.train.annotations=nowhere.json",
        f"data.val.images={photos.images}",
        f"data.val.annotations={photos.annotations}",
        "data.num_workers=0",
    ]


def evaluate(run: CommandLine, checkpoint: Path, photos: CocoFiles, out: Path) -> str:
    outcome = run(
        *("evaluate", "--checkpoint", checkpoint, "--images", photos.images, "--device", "cpu"),
        *("--annotations", photos.annotations, "--num-workers", "0", "--out", out),
    )
    assert outcome.code == 0, outcome.err
    return outcome.out


def test_a_file_gets_the_metrics_and_detections_of_the_evaluate_command(
    run: CommandLine, checkpoint: Path, photos: CocoFiles, options: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "run"

    outcome = run(*options, "--finetune-from", checkpoint, "--run-dir", folder)

    assert outcome.code == 0, outcome.err
    assert outcome.out == evaluate(run, checkpoint, photos, tmp_path / "results.json")
    assert "45 detections in 3 images" in outcome.out
    assert sorted(file.name for file in folder.iterdir()) == [MANIFEST, "results.json"]
    (folder / "results.json").write_text("mine")
    message = run.fails(*options, "--finetune-from", checkpoint, "--run-dir", folder)
    assert message.startswith(f"run_dir must not replace {folder / 'results.json'} (changed since")
    assert message.endswith("remove it, or choose another place")
    (folder / "results.json").unlink()
    run(*options, "--finetune-from", checkpoint, "--run-dir", folder)
    expected = json.loads((tmp_path / "results.json").read_text())
    assert json.loads((folder / "results.json").read_text()) == expected


def test_the_limit_of_detections_can_be_given_here_only(
    run: CommandLine, checkpoint: Path, options: list[str], tmp_path: Path
) -> None:
    arguments = [*options, "--run-dir", tmp_path / "run", "--max-detections", "12"]

    outcome = run(*arguments, "--finetune-from", checkpoint)

    assert "36 detections in 3 images" in outcome.out
    assert "AP75@12" in outcome.out
    arguments.remove("--evaluate-only")
    assert run.fails(*arguments).startswith("--max-detections must be given with --evaluate-only")


@pytest.mark.parametrize("names", [("last",), ("best", "last")])
def test_a_run_is_evaluated_at_its_best_or_else_its_last_checkpoint(
    run: CommandLine,
    options: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    names: tuple[str, ...],
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in names:
        write_checkpoint(folder / f"{name}.pth")

    with caplog.at_level(logging.INFO):
        outcome = run(*options, "--run-dir", folder)

    assert outcome.code == 0, outcome.err
    assert f"evaluating {folder / names[0]}.pth" in caplog.text
    assert f"the detections are in {folder / 'results.json'}" in caplog.text


def test_images_have_the_size_of_the_config_and_a_change_of_size_is_logged(
    run: CommandLine,
    checkpoint: Path,
    options: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    arguments = (*options, "--finetune-from", checkpoint, "--run-dir", tmp_path / "run")
    with caplog.at_level(logging.INFO):
        run(*arguments)
    assert "not to the checkpoint's" not in caplog.text
    as_trained = (tmp_path / "run" / "results.json").read_text()

    with caplog.at_level(logging.INFO):
        run(*arguments, "data.eval_size=64")

    assert "the config's size, 64, at most 96, not to the checkpoint's" in caplog.text
    assert (tmp_path / "run" / "results.json").read_text() != as_trained
    assert "the checkpoint's settings say otherwise" not in caplog.text
    with caplog.at_level(logging.INFO):
        run(*arguments, "data.clip_boxes=false")
    assert "boxes are not clipped to the image as the config says" in caplog.text


def test_a_validation_set_of_other_categories_is_refused(
    run: CommandLine, checkpoint: Path, photos: CocoFiles, options: list[str], tmp_path: Path
) -> None:
    content = photos.read()
    content["categories"][0]["name"] = "lion"
    photos.write(content)

    outcome = run(*options, "--finetune-from", checkpoint, "--run-dir", tmp_path / "run")

    assert outcome.code == 2
    message = outcome.err.splitlines()[-1]
    assert str(photos.annotations) in message
    assert "must have the categories of" in message
    assert "{0: lion, 7: dog, 90: tree}" in message
    assert "{0: cat, 7: dog, 90: tree}" in message
    assert not (tmp_path / "run").exists()


def test_validation_data_must_be_given(
    run: CommandLine, checkpoint: Path, options: list[str], tmp_path: Path
) -> None:
    message = run.fails(*options, "--finetune-from", checkpoint, "data.val.images=null")

    assert message.startswith("data.val.images: must be given")


def test_a_folder_without_a_checkpoint_is_named(
    run: CommandLine, options: list[str], tmp_path: Path
) -> None:
    message = run.fails(*options, "--run-dir", tmp_path / "none")

    assert message.startswith(f"run folder {tmp_path / 'none'} has neither best.pth nor last.pth")


@pytest.mark.parametrize("option", ["--resume", "--overwrite"])
def test_an_evaluation_changes_no_run(run: CommandLine, options: list[str], option: str) -> None:
    message = run.fails(*options, option)

    assert message.startswith("--evaluate-only must be given without --resume and --overwrite")
