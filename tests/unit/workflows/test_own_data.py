"""`train --data`: the same run from every format, and what is kept in the run folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.coco_files import CocoFiles, write_coco_set
from helpers.command_line import CommandLine
from helpers.dataset_formats import write_voc, write_yolo
from helpers.small_run import SMALL_RUN

import deformable_detr
from deformable_detr.engine.checkpoints.checkpoint import load_checkpoint
from deformable_detr.engine.metrics import read_records
from deformable_detr.workflows import overfitting

SETTINGS = (*SMALL_RUN, "train.max_steps=2", "train.epochs=1", "train.total_batch=2")


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, CocoFiles]:
    """Write two sets whose ids are not in the order of the file names."""
    found = {}
    for seed, split in enumerate(("train", "val")):
        categories = {3: "blue thing", 7: "red thing"}  # in the order of their names
        files = write_coco_set(
            tmp_path / "parts" / split, num_images=5, seed=seed, empty=(3,), categories=categories
        )
        record = files.read()
        for entry in (*record["images"], *record["annotations"]):
            key = "id" if "file_name" in entry else "image_id"
            entry[key] = 90 - 7 * entry[key]
        files.write(record)
        found[split] = files
    return found


def write_coco(folder: Path, **sets: CocoFiles) -> Path:
    folder.mkdir()
    for split, files in sets.items():
        (folder / split).symlink_to(files.images)
        (folder / f"{split}.json").write_text(files.annotations.read_text())
    return folder


def train(data: Path, run_dir: Path, **options: Any) -> Path:
    options = {"overrides": SETTINGS, "device": "cpu", **options}
    result = deformable_detr.train("deformable_detr_r50", data=data, run_dir=run_dir, **options)
    return result.run_dir


def test_three_formats_are_one_run(sets: dict[str, CocoFiles], tmp_path: Path) -> None:
    weights, records = [], []
    for write in (write_coco, write_yolo, write_voc):
        name = write.__name__
        folder = write(tmp_path / name, **sets)
        run = train(folder, tmp_path / f"run_{name}")
        weights.append(load_checkpoint(run / "last.pth").model)
        [step] = [one for one in read_records(run / "metrics.jsonl") if one["kind"] == "evaluation"]
        records.append((step["AP"], step["AP50"], step["AR100"]))
    assert records[0] == records[1] == records[2]
    for other in weights[1:]:
        assert all(torch.equal(value, other[key]) for key, value in weights[0].items())


def test_run_keeps_its_annotations_when_it_is_resumed(
    sets: dict[str, CocoFiles], tmp_path: Path
) -> None:
    data, run = write_yolo(tmp_path / "data", **sets), tmp_path / "run"
    train(data, run)
    kept = {file.name: file.read_text() for file in (run / "annotations").iterdir()}
    assert len(kept) == 3
    for labels in (data / "labels" / "train").iterdir():
        labels.write_text("0 .5 .5 .1 .1\n")

    train(data, run, resume=True, overrides=(*SETTINGS, "train.max_steps=3"))
    assert {file.name: file.read_text() for file in (run / "annotations").iterdir()} == kept

    (run / "annotations" / "notes_12345678.json").write_text("of the user")
    train(data, run, overwrite=True)
    assert (run / "annotations" / "notes_12345678.json").read_text() == "of the user"
    (run / "annotations" / "notes_12345678.json").unlink()
    changed = {file.name for file in (run / "annotations").iterdir()}
    assert len(changed) == 3
    assert len(changed & {*kept}) == 2  # the annotations for validation, and decisions.txt


def test_a_set_is_split_and_the_run_evaluates_what_it_validated_on(
    sets: dict[str, CocoFiles],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, folder = CommandLine(monkeypatch, capsys), tmp_path / "run"
    data = sets["train"].annotations.parent
    command = ("train", "--data", data, "--config", "deformable_detr_r50", "--run-dir", folder)
    trained = run(*command, "--device", "cpu", "--split-by", r"^\d+", *SETTINGS)
    assert trained.code == 0, trained.err
    [val] = (folder / "annotations").glob("val_*.json")
    number = len(json.loads(val.read_text())["images"])
    assert 0 < number < 5

    options = ("--device", "cpu", "--num-workers", "0")
    evaluated = run("evaluate", "--checkpoint", folder / "last.pth", *options)
    assert evaluated.code == 0, evaluated.err
    [validation] = [
        one["AP50"] for one in read_records(folder / "metrics.jsonl") if one["kind"] == "evaluation"
    ]
    assert f"{validation:.3f}" in evaluated.out


def test_overfit_takes_the_first_images_of_own_data(
    sets: dict[str, CocoFiles],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(overfitting, "STEPS", 2)
    monkeypatch.setattr(overfitting, "_EVALUATED_EVERY", 2)
    monkeypatch.setattr(overfitting, "_WARMUP_STEPS", 1)
    data = write_yolo(tmp_path / "photos", train=sets["train"])
    options = ("--device", "cpu", "model.backbone.weights=none")
    sizes = ("data.eval_size=32", "data.eval_max_size=64", "train.micro_batch=1")
    command = ("train", "--data", data, "--overfit", 2, *options, *sizes)
    run = CommandLine(monkeypatch, capsys)
    outcome = run(*map(str, command))
    assert outcome.code == 0, outcome.err
    subset = json.loads((tmp_path / "runs" / "photos_overfit_images.json").read_text())
    [kept] = (tmp_path / "runs" / "photos_overfit" / "annotations").glob("train_*.json")
    images = json.loads(kept.read_text())["images"]
    first = [one["file_name"] for one in images if one["file_name"] != "0003.png"]  # is empty
    assert [one["file_name"] for one in subset["images"]] == first[:2]
    [evaluated] = [
        one
        for one in read_records(tmp_path / "runs" / "photos_overfit" / "metrics.jsonl")
        if one["kind"] == "evaluation"
    ]
    assert evaluated["step"] == 2
    assert run(*map(str, (*command, "--overwrite"))).code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--config or --data must be given, got neither"),
        (("--config", "quickstart", "--split-by", "a"), "split_by must be given with data"),
        (("--data", "d", "--evaluate-only"), "--data must be given without --evaluate-only"),
        (("--data", "d", "--split-by", "a", "--overfit", "2"), "--split-by must be given without"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert message in CommandLine(monkeypatch, capsys).fails("train", *options)
