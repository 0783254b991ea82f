"""`deformable-detr report`, and the report written at the end of training."""

import json
import logging
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from helpers.coco_files import CocoFiles, write_coco_set
from helpers.command_line import CommandLine
from helpers.pages import Element, Page, cells
from helpers.small_run import SMALL_RUN, data_settings

from deformable_detr.config.loading import load_config
from deformable_detr.engine.checkpoints.checkpoint import load_checkpoint
from deformable_detr.engine.metrics import read_records
from deformable_detr.evaluation.coco_eval import evaluate_results
from deformable_detr.evaluation.detection_table import DetectionTable
from deformable_detr.workflows import evaluation, run_report
from deformable_detr.workflows.training import train


def train_small(folder: Path, val: CocoFiles) -> None:
    settings = [*SMALL_RUN, *data_settings(val, val), "train.max_steps=2", "train.seed=7"]
    config = load_config("deformable_detr_r50", settings)
    train(config, run_dir=folder, device="cpu")


@pytest.fixture(scope="module")
def val(tmp_path_factory: pytest.TempPathFactory) -> CocoFiles:
    return write_coco_set(tmp_path_factory.mktemp("data"), num_images=4, empty=[3])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, val: CocoFiles) -> Path:
    """Folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    train_small(folder, val)
    return folder


@pytest.fixture
def folder(tmp_path: Path, trained: Path) -> Path:
    """Copy of the run that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "small"))


def page_of(folder: Path) -> Element:
    return Page((folder / "report.html").read_text(encoding="utf-8")).root


def facts(page: Element) -> dict[str, str]:
    section = page.by_id("origin")
    names = [element.text for element in section.all("dt")]
    return dict(zip(names, (element.text for element in section.all("dd")), strict=True))


def test_training_writes_a_report_of_its_best_checkpoint(trained: Path) -> None:
    best = load_checkpoint(trained / "best.pth")
    records = read_records(trained / "metrics.jsonl")
    page = page_of(trained)
    values = facts(page)
    assert page.all("h1")[0].text == "small"
    assert values["step"] == str(best.step)
    assert values["deformable_detr"] == best.versions["deformable_detr"]
    assert values["processes"] == "1"
    assert records[0]["kind"] == "start"
    assert values["threads"] == records[0]["environment"]["threads"] == str(torch.get_num_threads())
    assert "train.total_batch is 4, the recipe has 32" in page.by_id("settings").text
    assert "max_steps: 2" in page.all("pre")[0].text
    [statistics] = page.by_id("precision").all("table")
    evaluation = next(r for r in records if r["kind"] == "evaluation" and r["step"] == best.step)
    assert dict(row[:2] for row in cells(statistics)[1:])["AP"] == f"{evaluation['AP']:.3f}"


def test_the_stored_detections_are_those_of_the_best_checkpoint(
    trained: Path, val: CocoFiles, tmp_path: Path
) -> None:
    best = load_checkpoint(trained / "best.pth")
    table, step = DetectionTable.read(trained / "best_detections.npz")
    records = read_records(trained / "metrics.jsonl")
    evaluation = next(r for r in records if r["kind"] == "evaluation" and r["step"] == best.step)
    assert step == best.step
    assert len(table.seen) == 4
    (tmp_path / "results.json").write_text(
        json.dumps(
            [
                {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
                for image_id, category_id, box, score in zip(
                    table.image_ids.tolist(),
                    table.category_ids.tolist(),
                    table.boxes_xywh.tolist(),
                    table.scores.tolist(),
                    strict=True,
                )
            ]
        )
    )
    statistics = evaluate_results(tmp_path / "results.json", val.annotations).statistics
    assert statistics == {name: evaluation[name] for name in statistics}


def test_a_run_without_stored_detections_is_evaluated_and_gets_the_same_page(
    run: CommandLine, folder: Path
) -> None:
    before = page_of(folder).by_id("precision").text
    table, _ = DetectionTable.read(folder / "best_detections.npz")
    for name in ("best_detections.npz", "report.html"):
        (folder / name).unlink()
    outcome = run("report", folder, "--device", "cpu")
    assert outcome.code == 0, outcome.err
    assert outcome.out == f"the report is {folder / 'report.html'}\n"
    assert page_of(folder).by_id("precision").text == before
    again, _ = DetectionTable.read(folder / "best_detections.npz")
    np.testing.assert_allclose(again.boxes_xywh, table.boxes_xywh, atol=1e-3)
    np.testing.assert_allclose(again.scores, table.scores, atol=1e-6)


def test_stored_detections_are_reused_if_they_are_of_the_same_step(
    run: CommandLine, folder: Path
) -> None:
    table, step = DetectionTable.read(folder / "best_detections.npz")
    with mock.patch.object(evaluation, "measure", wraps=evaluation.measure) as measure:
        assert run("report", folder, "--device", "cpu").code == 0
        assert measure.call_count == 0
        table.write(folder / "best_detections.npz", step=step + 1)
        assert run("report", folder, "--device", "cpu").code == 0
        assert measure.call_count == 1
    assert DetectionTable.read(folder / "best_detections.npz")[1] == step


def test_the_path_of_a_moved_validation_set_can_be_overridden(
    run: CommandLine, folder: Path, val: CocoFiles, tmp_path: Path
) -> None:
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace(str(val.images), str(tmp_path / "gone")))
    assert "must be a folder" in run.fails("report", folder, "--device", "cpu")
    outcome = run("report", folder, "--device", "cpu", f"data.val.images={val.images}")
    assert outcome.code == 0, outcome.err


def test_a_folder_that_is_no_run_is_refused(run: CommandLine, tmp_path: Path) -> None:
    assert "has no config.yaml" in run.fails("report", tmp_path)


def test_damaged_detections_are_named(run: CommandLine, folder: Path) -> None:
    stored = folder / "best_detections.npz"
    whole = stored.read_bytes()
    for content in (whole[:-100], b"", b"text"):
        stored.write_bytes(content)
        error = run.fails("report", folder, "--device", "cpu")
        assert f"detections {stored} must be a file that training has written" in error


def test_a_failed_report_does_not_fail_the_run(
    tmp_path: Path, val: CocoFiles, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        mock.patch.object(run_report, "write_report", side_effect=ZeroDivisionError("a defect")),
        caplog.at_level(logging.INFO),
    ):
        train_small(tmp_path / "run", val)
    [warning] = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert "the report could not be written (ZeroDivisionError: a defect)" in warning
    assert f"deformable-detr report {tmp_path / 'run'}" in warning
    assert "finished" in caplog.text
    assert load_checkpoint(tmp_path / "run" / "last.pth").step == 2


def test_detections_that_cannot_be_stored_do_not_stop_training(
    tmp_path: Path, val: CocoFiles, caplog: pytest.LogCaptureFixture
) -> None:
    full = OSError(28, "No space left on device")
    with mock.patch.object(DetectionTable, "write", side_effect=full):
        train_small(tmp_path / "run", val)
    assert "best_detections.npz could not be written" in caplog.text
    page = page_of(tmp_path / "run")
    assert "The detections of this checkpoint on the validation set are not stored" in " ".join(
        page.text.split()
    )
