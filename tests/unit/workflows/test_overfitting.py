import logging
from pathlib import Path

import pytest
from helpers.coco_files import CocoFiles, write_coco_set
from helpers.command_line import CommandLine
from helpers.small_run import SMALL_RUN, data_settings

import deformable_detr
from deformable_detr.config import RunConfig
from deformable_detr.config.loading import load_config
from deformable_detr.engine.metrics import append_record
from deformable_detr.workflows import overfitting
from deformable_detr.workflows.overfitting import judge_overfit, overfit_config
from deformable_detr.workflows.training import TrainingResult


@pytest.fixture
def files(tmp_path: Path) -> CocoFiles:
    return write_coco_set(tmp_path / "data", num_images=8, empty=[1, 3])


def config_of(files: CocoFiles, *settings: str) -> RunConfig:
    data = data_settings(files, files)
    return load_config("deformable_detr_r50", [*SMALL_RUN, *data, *settings])


def test_training_and_validation_use_only_the_first_images_with_objects(
    tmp_path: Path, files: CocoFiles
) -> None:
    subset = tmp_path / "subset.json"
    config, content = overfit_config(config_of(files), 3, subset=subset)
    assert [image["id"] for image in content["images"]] == [2, 4, 5]
    expected = [one for one in files.read()["annotations"] if one["image_id"] in (2, 4, 5)]
    assert content["annotations"] == expected
    assert config.data.train == config.data.val
    assert config.data.train.annotations == subset


def test_nothing_is_random_and_every_step_sees_every_image(
    tmp_path: Path, files: CocoFiles
) -> None:
    settings = ("train.micro_batch=2", "train.ema_decay=0.99", "data.eval_size=64")
    config, _ = overfit_config(config_of(files, *settings), 4, subset=tmp_path / "subset.json")
    assert (config.data.augmentation.kind, config.data.augmentation.size) == ("none", 64)
    assert (config.model.encoder.dropout, config.model.decoder.dropout) == (0.0, 0.0)
    assert (config.train.total_batch, config.train.micro_batch) == (4, 2)
    assert config.train.ema_decay == 0.0
    assert config.train.epochs * config.data.repeats == overfitting.STEPS


def test_images_with_more_objects_than_queries_are_left_out(
    tmp_path: Path, files: CocoFiles
) -> None:
    config = config_of(files, "model.queries.num_queries=1")
    with pytest.raises(ValueError, match=r"at most the \d images of .* with 1 to 1 objects, as"):
        overfit_config(config, 6, subset=tmp_path / "subset.json")


def test_annotations_that_break_a_rule_are_refused(tmp_path: Path, files: CocoFiles) -> None:
    content = files.read()
    del content["annotations"][1]["bbox"]
    files.write(content)
    with pytest.raises(ValueError, match=r"annotations\[1\] .*: bbox must be .* got nothing"):
        overfit_config(config_of(files), 3, subset=tmp_path / "subset.json")


def test_the_command_trains_on_the_images_and_logs_its_verdict(
    tmp_path: Path,
    files: CocoFiles,
    run: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(overfitting, "STEPS", 4)
    monkeypatch.setattr(overfitting, "_WARMUP_STEPS", 1)
    folder = tmp_path / "run"
    options = ["--config", "deformable_detr_r50", "--device", "cpu", "--run-dir", folder]
    settings = [*SMALL_RUN, *data_settings(files, files)]
    with caplog.at_level(logging.INFO):
        outcome = run("train", *options, "--overfit", "2", *settings)
    assert outcome.code == 0
    assert (tmp_path / "run_images.json").is_file()
    assert "2 images" in caplog.text
    assert "overfit check FAILED: AP50 0." in caplog.text
    assert "the median object is " in caplog.text


@pytest.mark.parametrize(
    ("ap50", "eval_size", "words"),
    [
        (
            0.95,
            64,
            "overfit check passed: AP50 0.950 (0.9 reached after 50 steps), loss 9 -> 2 in 300 "
            "steps; model, labels and",
        ),
        (0.85, 64, "overfit check FAILED: AP50 0.850, loss 9 -> 2 in 300 steps; the median object"),
        (0.0, 8, "px as the model sees it, too small to be found; raise data.eval_size"),
    ],
)
def test_the_verdict_depends_on_the_last_evaluation_and_the_object_sizes(
    tmp_path: Path,
    files: CocoFiles,
    caplog: pytest.LogCaptureFixture,
    ap50: float,
    eval_size: int,
    words: str,
) -> None:
    for record in (
        {"kind": "train", "step": 1, "total": 9.0},
        {"kind": "evaluation", "step": 1, "AP": 0.0, "AP50": 0.0},
        {"kind": "evaluation", "step": 50, "AP": 0.0, "AP50": ap50},
        {"kind": "train", "step": 75, "total": 2.0},
        {"kind": "evaluation", "step": 75, "AP": 0.0, "AP50": ap50},
    ):
        append_record(tmp_path / "metrics.jsonl", record)
    with caplog.at_level(logging.INFO):
        training = TrainingResult(tmp_path, tmp_path / "last.pth", {})
        config = config_of(files, f"data.eval_size={eval_size}")
        result = judge_overfit(config, files.read(), training)
    assert words in caplog.text
    assert (result.passed, result.ap50, result.losses) == (ap50 > 0.9, ap50, (9.0, 2.0))
    assert result.passing_step == (50 if result.passed else None)
    assert bool(result.advice) != result.passed


def test_overfit_excludes_resume(run: CommandLine, files: CocoFiles) -> None:
    error = run.fails(
        "train",
        "--config",
        "quickstart",
        "--overfit",
        "2",
        "--resume",
        *data_settings(files, files),
    )
    assert error == "--overfit must be given without --resume and --evaluate-only"


def test_the_last_line_of_a_stopped_check_does_not_name_resume(
    run: CommandLine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise deformable_detr.PreemptedError("asked to stop by Ctrl-C (SIGINT)")

    monkeypatch.setattr(deformable_detr, "overfit", stop)
    caplog.set_level(logging.INFO, logger="deformable_detr")
    assert run("train", "--config", "quickstart", "--overfit", "2").code == 75
    assert caplog.messages[-1].endswith("(SIGINT); --overwrite starts the check again")
