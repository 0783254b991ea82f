"""Runs whose weights, moving average or running statistics are damaged end with one error."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.coco_files import CocoFiles, write_coco_set
from helpers.command_line import CommandLine
from helpers.damage import fill
from helpers.small_run import SMALL_RUN, data_settings

from deformable_detr.engine.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from deformable_detr.engine.metrics import read_records
from deformable_detr.evaluation.detection_table import DetectionTable
from deformable_detr.workflows import overfitting, training


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> CocoFiles:
    return write_coco_set(tmp_path_factory.mktemp("data"), num_images=4)


def options(files: CocoFiles, folder: Path) -> list[str]:
    chosen = ["--config", "deformable_detr_r50", "--device", "cpu", "--run-dir", str(folder)]
    return [*chosen, *settings(files)]


def settings(files: CocoFiles) -> list[str]:
    own = ("train.ema_decay=0.9", "model.backbone.norm=batch_norm")
    return [*SMALL_RUN, *data_settings(files, files), *own]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, files: CocoFiles) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "small"
    training.train(
        "deformable_detr_r50",
        overrides=[*settings(files), "train.max_steps=1"],
        run_dir=folder,
        device="cpu",
    )
    return folder


@pytest.fixture
def folder(tmp_path: Path, trained: Path) -> Path:
    """Copy of the run that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "small"))


def damage_average(path: Path) -> None:
    checkpoint = load_checkpoint(path)
    assert checkpoint.ema is not None
    average = {
        name: torch.full_like(value, torch.nan) if "box_heads" in name else value
        for name, value in checkpoint.ema.items()
    }
    save_checkpoint(path, replace(checkpoint, ema=average))


def test_a_run_with_a_damaged_average_is_resumed_only_without_it(
    run: CommandLine, folder: Path, files: CocoFiles
) -> None:
    damage_average(folder / "last.pth")
    best, metrics = ((folder / name).read_bytes() for name in ("best.pth", "metrics.jsonl"))
    command = ["train", *options(files, folder), "--resume", "train.max_steps=2"]
    error = run.fails(*command)
    assert re.match(
        rf"the moving average of checkpoint {folder / 'last.pth'} must hold finite numbers, got "
        r"6 of \d+ tensors .*box_heads\.0\.\S+ .*; go on without it, train\.ema_decay=0, or from",
        error,
    )
    assert (folder / "best.pth").read_bytes() == best
    assert (folder / "metrics.jsonl").read_bytes() == metrics
    outcome = run(*command, "train.ema_decay=0")
    assert outcome.code == 0, outcome.err
    assert load_checkpoint(folder / "last.pth").ema is None


def test_a_damaged_best_checkpoint_is_not_evaluated_reported_or_fine_tuned(
    tmp_path: Path, run: CommandLine, folder: Path, files: CocoFiles
) -> None:
    damage_average(folder / "best.pth")
    page = (folder / "report.html").read_bytes()
    (folder / "best_detections.npz").unlink()
    words = r"checkpoint .*best\.pth must hold finite numbers, got 6 of"
    assert re.match(words, run.fails("report", folder, "--device", "cpu"))
    error = run.fails("train", *options(files, folder), "--evaluate-only")
    assert re.match(words, error)
    new = ["train", *options(files, tmp_path / "new"), "--finetune-from", folder / "best.pth"]
    assert re.match(r"\S*best\.pth must hold finite numbers, got 6 of", run.fails(*new))
    assert (folder / "report.html").read_bytes() == page
    assert not (folder / "results.json").exists()
    assert not (folder / "best_detections.npz").exists()


def test_stored_detections_that_are_not_finite_are_not_reported(
    run: CommandLine, folder: Path
) -> None:
    table, step = DetectionTable.read(folder / "best_detections.npz")
    table.boxes_xywh[0] = torch.nan
    table.write(folder / "best_detections.npz", step=step)
    error = run.fails("report", folder, "--device", "cpu")
    assert re.search(
        r"got 1 of \d+ detections of image 1 with scores or boxes .*; delete it", error
    )


@pytest.mark.parametrize("check", [[], ["--overfit", "2"]], ids=["train", "overfit"])
def test_damaged_running_statistics_end_the_run_at_its_evaluation(
    tmp_path: Path,
    run: CommandLine,
    files: CocoFiles,
    monkeypatch: pytest.MonkeyPatch,
    check: list[str],
) -> None:
    """Training with batch statistics stays finite."""
    build = training.build_run_model

    def build_damaged(*arguments: Any, **named: Any) -> Any:
        model, report = build(*arguments, **named)
        fill(model, "layer3.1.bn2.running_var")
        return model, report

    monkeypatch.setattr(training, "build_run_model", build_damaged)
    monkeypatch.setattr(overfitting, "STEPS", 2)
    monkeypatch.setattr(overfitting, "_WARMUP_STEPS", 1)
    folder = tmp_path / "run"
    error = run("train", *options(files, folder), *check, "train.max_steps=1").err
    photo = files.images / "0001.png"
    assert re.search(
        rf"error: predictions must be finite, got 5 of 5 queries with boxes or logits that are not "
        rf"finite for image 1 \({re.escape(str(photo))}\); likely cause: .* has 1 of \d+ tensors "
        r"that are not finite, first: \S*layer3\.1\.bn2\.running_var \(256 of 256 values\), which",
        error,
    )
    assert "Traceback" not in error
    assert "finished" not in error
    kinds = [record["kind"] for record in read_records(folder / "metrics.jsonl")]
    assert "train" in kinds
    assert "evaluation" not in kinds
    assert not (folder / "best.pth").exists()
    assert (folder / "last.pth").exists()
    assert json.loads((folder / "state.json").read_text())["state"] == "failed"
