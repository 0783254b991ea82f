import json
import logging
from pathlib import Path

import pytest
from helpers.coco_files import write_coco_set
from helpers.small_run import SMALL_RUN, data_settings
from helpers.tracker_packages import StandIns
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner, Result

from deformable_detr.cli.main import app
from deformable_detr.config.loading import load_config
from deformable_detr.engine.checkpoints.checkpoint import load_checkpoint
from deformable_detr.engine.metrics import read_records
from deformable_detr.engine.run import tracking


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    train = write_coco_set(tmp_path / "train", num_images=8, empty=[2])
    return data_settings(train, write_coco_set(tmp_path / "val", num_images=2, seed=1))


def run(folder: Path, *arguments: str) -> Result:
    options = ["train", "--config", "deformable_detr_r50", "--device", "cpu"]
    return CliRunner().invoke(app, [*options, "--run-dir", str(folder), *SMALL_RUN, *arguments])


def is_recipe(line: str) -> bool:
    return line.startswith("recipe ")


def test_a_run_is_trained_protected_against_a_restart_and_resumed(
    tmp_path: Path,
    data: list[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packages = StandIns(tmp_path / "packages")
    monkeypatch.syspath_prepend(packages.folder)
    monkeypatch.setenv("NOTES", str(packages.notes))
    monkeypatch.setenv("FAULT", "end_run hang")  # of MLflow; the run ends as if it did not
    monkeypatch.setattr(tracking, "CLOSE_S", 3.0)
    folder = tmp_path / "run"
    settings = [*data, "train.epochs=2", "train.trackers=[tensorboard,wandb,mlflow]"]
    with caplog.at_level(logging.INFO):
        result = run(folder, *settings, "train.max_steps=1")
    assert result.exception is None
    header = caplog.text
    assert "total batch 4 = 2 images x 1 process x 2" in header
    assert "8 images" in header
    assert "recipe   deformable_detr_r50_single_scale with " in header
    assert "match_official" not in header
    lines = caplog.messages[: caplog.messages.index(next(filter(is_recipe, caplog.messages))) + 1]
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 78
    assert f"finished; see {folder}/report.html" in caplog.messages
    assert f"next: deformable-detr predict --checkpoint {folder}/best.pth " in caplog.text
    assert "train.total_batch is 4, the recipe has 32" in (folder / "report.html").read_text()
    assert load_config(folder / "config.yaml").train.max_steps == 1
    assert load_checkpoint(folder / "best.pth").step == 1

    refused = run(folder, *settings)
    assert isinstance(refused.exception, ValueError)
    assert "--resume or --overwrite" in str(refused.exception)

    caplog.clear()
    with caplog.at_level(logging.INFO):
        result = run(folder, "--resume", *settings, "train.max_steps=3")
    assert result.exception is None
    assert "resuming after step 1, epoch 0" in caplog.text
    assert "earlier version" not in caplog.text
    assert "the config has changed: train.max_steps: 1 -> 3" in caplog.text
    checkpoint = load_checkpoint(folder / "last.pth")
    assert (checkpoint.step, checkpoint.epoch) == (3, 1)
    steps = [r["step"] for r in read_records(folder / "metrics.jsonl") if r["kind"] == "train"]
    assert steps == [1, 2, 3]
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/total")] == [1, 2, 3]
    calls = packages.calls()
    logged = [values["step"] for name, values in calls if name == "log" and "train/total" in values]
    assert logged == [1, 2, 3]
    first, second = (values["id"] for name, values in calls if name == "init")
    assert first == second
    assert ["start_run", {"run_id": "given-id"}] in calls
    assert "mlflow is disabled after an error (it did not end in time" in caplog.text


def test_a_run_whose_ap_does_not_rise_is_finished_early(
    tmp_path: Path, data: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    settings = [*data, "train.epochs=5", "train.early_stopping={patience: 1, min_delta: 0.9}"]
    assert run(folder, *settings).exception is None
    state = json.loads((folder / "state.json").read_text())
    assert (state["state"], state["step"]) == ("finished", 4)  # two epochs of two steps
    assert "stopped early at step 4: AP has not risen" in (folder / "report.html").read_text()
    with caplog.at_level(logging.INFO):
        assert run(folder, "--resume", *settings).exception is None
    assert "nothing is left to train: the run has stopped early at step 4" in caplog.text


def test_resume_auto_starts_a_run_and_continues_it(
    tmp_path: Path, data: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    for max_steps in (1, 2):
        result = run(folder, "--resume", "auto", *data, f"train.max_steps={max_steps}")
        assert result.exception is None
        state = json.loads((folder / "state.json").read_text())
        assert (state["state"], state["step"]) == ("finished", max_steps)
    steps = [r["step"] for r in read_records(folder / "metrics.jsonl") if r["kind"] == "train"]
    assert steps == [1, 2]
    (folder / "last.pth").write_bytes(b"")
    result = run(folder, "--resume", *data)
    assert "--resume auto continues from" in str(result.exception)
    assert run(folder, "--resume", "auto", *data, "train.max_steps=2").exception is None
    assert "continuing from" in caplog.text


def test_data_of_other_classes_is_refused_before_anything_is_written(
    tmp_path: Path, data: list[str]
) -> None:
    other = write_coco_set(tmp_path / "other", num_images=2, categories={3: "a", 9: "b"})
    result = run(tmp_path / "run", *data, f"data.val.annotations={other.annotations}")
    assert isinstance(result.exception, ValueError)
    assert "must have the categories of" in str(result.exception)
    assert not (tmp_path / "run").exists()


def test_resuming_with_data_of_other_classes_is_refused(tmp_path: Path, data: list[str]) -> None:
    folder = tmp_path / "run"
    assert run(folder, *data, "train.max_steps=1").exception is None
    other = write_coco_set(tmp_path / "other", num_images=4, categories={3: "a", 9: "b"})
    result = run(folder, "--resume", *data_settings(other, other))
    assert isinstance(result.exception, ValueError)
    assert "the training set must have the categories of checkpoint" in str(result.exception)


def test_missing_data_names_the_setting(tmp_path: Path) -> None:
    result = run(tmp_path / "run")
    assert isinstance(result.exception, ValueError)
    assert str(result.exception).startswith("data.train.images: must be given")
