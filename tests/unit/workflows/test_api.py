"""Python API: from data to a detector, without side effects on the process."""

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.coco_files import write_coco_set
from helpers.small_run import SMALL_RUN
from rich.console import Console

import deformable_detr
from deformable_detr.config import ConfigError
from deformable_detr.engine.checkpoints.checkpoint import load_checkpoint
from deformable_detr.engine.metrics import read_records
from deformable_detr.engine.run.progress import TrainingProgress
from deformable_detr.engine.run.stopping import SIGNALS, PreemptedError
from deformable_detr.workflows.training import TrainingResult

SETTINGS = [*SMALL_RUN, "train.max_steps=2", "train.checkpoint_every=1"]
DETERMINISTIC = "train.deterministic=true"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a data folder with train.json, train, val.json and val."""
    folder = tmp_path_factory.mktemp("data")
    for seed, split in enumerate(("train", "val")):
        files = write_coco_set(folder / "parts" / split, num_images=4, seed=seed)
        files.images.rename(folder / split)
        files.annotations.rename(folder / f"{split}.json")
    return folder


def train(data: Path, run_dir: Path, **options: Any) -> TrainingResult:
    options = {"overrides": SETTINGS, "device": "cpu", **options}
    config = None if options.get("resume") else "deformable_detr_r50"
    return deformable_detr.train(config, data=data, run_dir=run_dir, **options)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    return train(data, tmp_path_factory.mktemp("runs") / "first")


def surroundings() -> list[Any]:
    """Return global state that a function must not change."""
    logger = logging.getLogger("deformable_detr")
    return [
        [signal.getsignal(number) for number in (*SIGNALS, signal.SIGINT)],
        [thread.name for thread in threading.enumerate()],
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
        dict(os.environ),
        [logger.level, list(logger.handlers), list(logging.root.handlers), logging.root.level],
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),
    ]


def test_a_detector_is_trained_evaluated_and_used(
    data: Path, trained: TrainingResult, tmp_path: Path
) -> None:
    detector = trained.detector("cpu")
    images, annotations = data / "val", data / "val.json"
    result = deformable_detr.evaluate(
        detector, images=images, annotations=annotations, num_workers=0, out=tmp_path / "all.json"
    )
    assert result.metrics == trained.metrics
    assert list(result.per_class) == ["red thing", "blue thing"]
    assert len(json.loads((tmp_path / "all.json").read_text())) == result.num_detections == 40

    found = deformable_detr.predict(images, checkpoint=detector, threshold=0.0, out=tmp_path / "p")
    assert found.num_objects == len(json.loads((tmp_path / "p" / "detections.json").read_text()))
    photo = next(iter(found.detections))
    assert found.pictures[photo].is_file()
    torch.testing.assert_close(
        found.detections[photo].scores, detector.predict(photo, threshold=0.0).scores
    )
    pictures = deformable_detr.explain(photo, checkpoint=detector, queries=1).pictures
    assert list(pictures) == ["query_1"]
    assert deformable_detr.report(trained.run_dir, device="cpu") == trained.run_dir / "report.html"


@pytest.mark.parametrize("in_thread", [False, True])
def test_a_second_run_in_the_process_is_identical_and_has_no_side_effects(
    data: Path,
    trained: TrainingResult,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    in_thread: bool,
) -> None:
    results = []

    def run() -> None:
        with torch.no_grad():  # the caller's mode must not affect training
            results.append(train(data, tmp_path / "run", overrides=[*SETTINGS, DETERMINISTIC]))

    before = surroundings()
    if in_thread:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    else:
        run()
    assert surroundings() == before
    assert capfd.readouterr() == ("", "")
    weights = load_checkpoint(results[0].checkpoint).model
    for name, value in load_checkpoint(trained.checkpoint).model.items():
        assert weights[name].equal(value), name


def test_ctrl_c_saves_the_run_as_a_signal_does(
    data: Path, trained: TrainingResult, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(kind: str, values: Mapping[str, Any]) -> None:
        if kind == "train":
            os.kill(os.getpid(), signal.SIGINT)

    before = surroundings()
    with pytest.raises(PreemptedError, match=r"asked to stop by Ctrl-C \(SIGINT\)"):
        train(data, tmp_path / "run", callback=interrupt)
    assert surroundings() == before
    assert "Ctrl-C again ends at once" in capfd.readouterr().err
    state = json.loads((tmp_path / "run" / "state.json").read_text())
    assert (state["state"], state["step"]) == ("preempted", 1)
    resumed = train(data, tmp_path / "run", resume=True)
    weights = load_checkpoint(resumed.run_dir / "last.pth").model
    for name, value in load_checkpoint(trained.run_dir / "last.pth").model.items():
        assert weights[name].equal(value), name


def test_a_callback_gets_every_record_and_its_error_ends_the_run(
    data: Path, trained: TrainingResult, tmp_path: Path
) -> None:
    records: list[dict[str, Any]] = []

    def stop_after_first_step(kind: str, values: Mapping[str, Any]) -> None:
        records.append({"kind": kind, **values})
        if kind == "train":
            raise KeyboardInterrupt

    before = surroundings()
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "run", callback=stop_after_first_step)
    assert surroundings() == before
    assert records == read_records(tmp_path / "run" / "metrics.jsonl")
    resumed = train(data, tmp_path / "run", resume="auto", callback=lambda *_: None)
    weights = load_checkpoint(resumed.checkpoint).model
    for name, value in load_checkpoint(trained.checkpoint).model.items():
        assert weights[name].equal(value), name


def test_a_run_continues_with_its_own_config(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "run", overrides=[*SETTINGS, "train.max_steps=1"])
    resumed = deformable_detr.train(
        run_dir=tmp_path / "run", resume=True, overrides={"train.max_steps": 2}, device="cpu"
    )
    checkpoint = load_checkpoint(resumed.run_dir / "last.pth")
    assert (checkpoint.step, checkpoint.config["model"]["embed_dim"]) == (2, 64)


def test_progress_of_an_evaluation_is_reported(data: Path, trained: TrainingResult) -> None:
    seen = []
    deformable_detr.evaluate(
        trained.checkpoint,
        images=data / "val",
        annotations=data / "val.json",
        device="cpu",
        num_workers=0,
        callback=lambda kind, values: seen.append((kind, values["done"], values["total"])),
    )
    assert seen == [("progress", 1, 2), ("progress", 2, 2)]


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(ConfigError, match=r"which has neither images nor annotations"):
        deformable_detr.train(data=tmp_path, run_dir=tmp_path / "run")


def test_a_loaded_config_needs_a_run_dir() -> None:
    config = deformable_detr.load_config("quickstart")
    with pytest.raises(ValueError, match="run_dir must be given where config is a RunConfig"):
        deformable_detr.train(config)


def test_progress_in_a_notebook_is_one_updated_line(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    handle = SimpleNamespace(update=shown.append)
    ipython = ModuleType("IPython.display")
    ipython.HTML = str  # type: ignore[attr-defined]
    ipython.display = lambda html, display_id: shown.append(html) or handle  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", ipython)
    console = Console(force_jupyter=True)
    with TrainingProgress(first_step=0, last_step=20, console=console) as progress:
        progress.advance(10)
        progress.report(10, {"total": 3.14159})
        progress.say("step 10: AP <0.5")
    assert '<progress value="10" max="20">' in shown[-1]
    assert "training 10/20 total 3.142" in shown[-1]
    assert "step 10: AP &lt;0.5" in shown[-1]
