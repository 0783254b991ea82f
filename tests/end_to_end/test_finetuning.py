"""Fine-tuning of a detector of classes {a, b, c} to {c, a, new}, through the command line."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from helpers.coco_files import CocoFiles, write_coco_set
from helpers.command_line import CommandLine, Outcome
from helpers.small_run import SMALL_RUN, data_settings
from torch import Tensor

from deformable_detr.engine.checkpoints.checkpoint import load_checkpoint
from deformable_detr.engine.metrics import read_records

OLD = {1: "a", 2: "b", 7: "c"}
NEW = {0: "c", 3: "a", 5: "new"}
ROWS = {0: 2, 1: 0}  # of NEW in OLD
CONFIG = "deformable_detr_r50_two_stage"
HEADS = ("decoder.class_heads.0", "decoder.class_heads.1")
# A learning rate so small that the weights do not change in the first step.
STANDSTILL = "train.optimizer={lr: 1e-30, lr_backbone: 1e-30, lr_sampling: 1e-30, weight_decay: 0}"
LEARNING = "train.optimizer={lr: 1e-3, lr_backbone: 1e-4, lr_sampling: 1e-4}"


def train(run: CommandLine, folder: Path, files: CocoFiles, *arguments: str | Path) -> Outcome:
    outcome = run(
        *("train", "--config", CONFIG, "--device", "cpu", "--run-dir", folder),
        *SMALL_RUN,
        "model.decoder.num_layers=2",
        *data_settings(files, files),
        *arguments,
    )
    assert outcome.code == 0, outcome.err
    return outcome


def totals(folder: Path) -> list[float]:
    records = read_records(folder / "metrics.jsonl")
    return [record["total"] for record in records if record["kind"] == "train"]


def rows(weights: Mapping[str, Tensor], head: str, row: int) -> tuple[list[float], float]:
    return weights[f"{head}.weight"][row].tolist(), weights[f"{head}.bias"][row].item()


@pytest.mark.slow
def test_a_detector_is_fine_tuned_to_other_classes_and_evaluated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    run = CommandLine(monkeypatch, capsys)
    first, second = (
        write_coco_set(tmp_path / name, num_images=4, categories=categories, seed=seed)
        for name, categories, seed in (("first", OLD, 0), ("second", NEW, 1))
    )
    steps = "train.max_steps={}".format
    train(run, tmp_path / "old", first, LEARNING, steps(8), "train.ema_decay=0.5")
    source = tmp_path / "old" / "last.pth"
    finetune = ("--finetune-from", source)

    train(run, tmp_path / "still", second, *finetune, STANDSTILL, steps(1))
    average = load_checkpoint(source).ema
    started = load_checkpoint(tmp_path / "still" / "last.pth")
    assert average is not None
    for head in HEADS:
        for row, old_row in ROWS.items():
            assert rows(started.model, head, row) == rows(average, head, old_row)
        weight, bias = rows(started.model, head, 2)
        assert bias == pytest.approx(-4.59511985, abs=2.4e-7)
        assert weight not in [rows(average, head, row)[0] for row in range(3)]
    proposals = "queries.class_head"
    assert rows(started.model, proposals, 0) == rows(average, proposals, 0)
    assert started.label_space.names == ("c", "a", "new")

    train(run, tmp_path / "new", second, *finetune, LEARNING, steps(8))
    assert len(totals(tmp_path / "new")) == 8
    assert min(totals(tmp_path / "new")[4:]) < totals(tmp_path / "new")[0]
    assert totals(tmp_path / "still")[0] == totals(tmp_path / "new")[0]

    best, out = tmp_path / "new" / "best.pth", tmp_path / "results.json"
    only = train(run, tmp_path / "new", second, "--evaluate-only", "data.train.images=nowhere")
    other = run(
        *("evaluate", "--checkpoint", best, "--images", second.images, "--device", "cpu"),
        *("--annotations", second.annotations, "--num-workers", "0", "--out", out),
    )
    assert only.out == other.out
    assert "AR100" in only.out
    results = json.loads((tmp_path / "new" / "results.json").read_text())
    assert results == json.loads(out.read_text())
    assert {result["category_id"] for result in results} <= set(NEW)
