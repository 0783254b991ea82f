"""Records reach every tracker, and no tracker can stop a run."""

import json
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
from helpers.tracker_packages import StandIns
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from deformable_detr.engine.metrics import append_record, read_records
from deformable_detr.engine.run import tracker_process, tracking
from deformable_detr.engine.run.folder import RunFolder
from deformable_detr.engine.run.tracking import TrackerProcess


class Failing:
    """Tracker that writes one record, then fails as on a full disk."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, kind: str, values: object) -> None:
        self.calls += 1
        if self.calls > 1:
            raise OSError(28, "No space left on device")


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIns:
    packages = StandIns(tmp_path / "packages")
    monkeypatch.syspath_prepend(packages.folder)
    monkeypatch.setenv("NOTES", str(packages.notes))
    return packages


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the curves in a folder, as TensorBoard itself reads them."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_a_failed_tracker_is_named_once_and_the_others_continue(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, failing = RunFolder(tmp_path), Failing()
    folder.tracking.open("TensorBoard", lambda: failing)
    with caplog.at_level(logging.WARNING):
        for step in range(1, 5):
            folder.record("train", {"step": step, "total": 1.0})
        folder.tracking.close()
    assert [record["step"] for record in read_records(folder.metrics)] == [1, 2, 3, 4]
    assert failing.calls == 2
    [warning] = caplog.messages
    assert "TensorBoard is disabled after an error" in warning
    assert "No space left on device" in warning


def test_a_full_disk_leaves_no_partial_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_record(path, {"kind": "memory", "step": 1})
    opened = Path.open

    class FullDisk:
        def __init__(self, file: object) -> None:
            self.file = file

        def __enter__(self) -> "FullDisk":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, text: str) -> None:
            self.file.write(text[:5])
            raise OSError(28, "No space left on device")

    def open_full(self: Path, *arguments: str, **options: str) -> FullDisk:
        return FullDisk(opened(self, *arguments, **options))

    with mock.patch.object(Path, "open", open_full), pytest.raises(OSError, match="No space"):
        append_record(path, {"kind": "memory", "step": 2})
    append_record(path, {"kind": "memory", "step": 3})
    assert [record["step"] for record in read_records(path)] == [1, 3]


def test_a_metrics_file_that_cannot_be_written_does_not_stop_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics.mkdir()
    folder.record("train", {"step": 1, "total": 1.0})
    folder.record("train", {"step": 2, "total": 1.0})
    assert len(caplog.messages) == 1
    assert f"{folder.metrics} is disabled after an error" in caplog.messages[0]


def tracked(
    tmp_path: Path, name: str, steps: range, *, first_step: int = 1, most_waiting: int = 1000
) -> RunFolder:
    """Send records of steps to a tracker, and close it."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir(exist_ok=True)
    folder.tracking.open(
        name,
        lambda: TrackerProcess(
            name,
            folder.path,
            run_file=folder.tracker_run(name),
            first_step=first_step,
            config={"train.seed": 42, "model.x": None, **{f"k{i}": i for i in range(100)}},
            most_waiting=most_waiting,
        ),
    )
    folder.record("start", {"step": 0, "environment": {"torch": "2"}})
    for step in steps:
        folder.record("train", {"step": step, "total": 0.5 * step})
    folder.record("evaluation", {"step": steps[-1], "AP": 0.25, "AP50": 0.5})
    folder.tracking.close()
    assert [r["step"] for r in read_records(folder.metrics)][-1] == steps[-1]
    return folder


def test_tensorboard_reads_every_number_and_steps_that_are_repeated_once(tmp_path: Path) -> None:
    tracked(tmp_path, "tensorboard", range(1, 4))
    folder = tracked(tmp_path, "tensorboard", range(3, 5), first_step=3)
    assert scalars(folder.tensorboard) == {
        "train/total": [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0)],
        "evaluation/AP": [(4, 0.25)],
        "evaluation/AP50": [(4, 0.5)],
    }


def test_wandb_gets_config_and_numbers_and_continues_its_run(
    tmp_path: Path, stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    folder = tracked(tmp_path, "wandb", range(1, 2))
    first, *_, last = stand_ins.calls()
    monkeypatch.setenv("WANDB_MODE", "online")
    tracked(tmp_path, "wandb", range(2, 3))
    (_, kept), *_, logged, evaluation, finished = stand_ins.calls()
    run_id = folder.tracker_run("wandb").read_text().strip()
    assert first[0] == "init"
    assert first[1]["id"] == kept["id"] == run_id
    assert (first[1]["mode"], kept["mode"]) == ("offline", "online")
    assert (first[1]["name"], first[1]["resume"]) == ("run", "allow")
    assert first[1]["dir"] == str(folder.path)
    assert first[1]["config"]["train.seed"] == 42
    assert logged == ["log", {"train/total": 1.0, "step": 2}]
    assert evaluation == ["log", {"evaluation/AP": 0.25, "evaluation/AP50": 0.5, "step": 2}]
    assert finished == last == ["finish", {}]


def test_mlflow_gets_config_and_numbers_and_continues_its_run(
    tmp_path: Path, stand_ins: StandIns
) -> None:
    folder = tracked(tmp_path, "mlflow", range(1, 2))
    start, one, two, train, evaluation, end = stand_ins.calls()
    assert start == ["start_run", {"run_name": "run"}]
    assert folder.tracker_run("mlflow").read_text() == "given-id\n"
    assert [len(one[1]["params"]), len(two[1]["params"])] == [100, 2]  # a request takes 100
    assert one[1]["params"]["model.x"] == "null"
    assert train == ["log_metrics", {"metrics": {"train/total": 0.5}, "step": 1}]
    assert evaluation == [
        "log_metrics",
        {"metrics": {"evaluation/AP": 0.25, "evaluation/AP50": 0.5}, "step": 1},
    ]
    assert end == ["end_run", {}]
    tracked(tmp_path, "mlflow", range(2, 3))
    assert stand_ins.calls()[:2] == [
        ["start_run", {"run_id": "given-id"}],
        ["log_metrics", {"metrics": {"train/total": 1.0}, "step": 2}],
    ]


@pytest.mark.parametrize(
    ("call", "fault", "reason"),
    [
        ("init", "raise", "OSError: no network"),
        ("log", "raise", "OSError: no network"),
        ("log", "exit", "SystemExit: 3"),
        ("log", "crash", f"its process ended with code {-signal.SIGKILL}"),
        ("init", "hang", "it did not end in time"),
        ("log", "behind", "it is 4 records behind"),
        ("finish", "hang", "it did not end in time"),
        ("finish", "thread", ""),
    ],
)
def test_a_tracker_that_fails_or_hangs_is_named_once_and_its_process_ends(
    call: str,
    fault: str,
    reason: str,
    tmp_path: Path,
    stand_ins: StandIns,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tracking, "CLOSE_S", 1.0 if fault in ("hang", "behind") else 20.0)
    monkeypatch.setenv("FAULT", f"{call} {fault}")
    steps = range(1, 3000) if fault == "behind" else range(1, 4)
    before = time.monotonic()
    folder = tracked(tmp_path, "wandb", steps, most_waiting=4 if fault == "behind" else 1000)
    assert time.monotonic() - before < 10
    assert len(read_records(folder.metrics)) == len(steps) + 2
    assert len(caplog.messages) == bool(reason)
    if reason:
        assert caplog.messages[0].startswith(f"wandb is disabled after an error ({reason}")
    [process] = [one for name, one in folder.tracking._trackers.items() if name == "wandb"]
    assert process._process.poll() is not None


def test_the_process_ends_by_itself_if_the_run_is_killed(
    tmp_path: Path, stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "log hang")
    setup = {"name": "wandb", "path": sys.path, "folder": str(tmp_path), "config": {}}
    setup |= {"run_file": str(tmp_path / "id"), "first_step": 1, "close_s": 0.1}
    lines = [json.dumps(setup), json.dumps(["train", {"step": 1, "total": 1.0}])]
    program = [sys.executable, "-I", tracker_process.__file__]
    ended = subprocess.run(program, input="\n".join(lines) + "\n", text=True, timeout=20)
    assert ended.returncode == 1


@pytest.mark.parametrize(
    ("name", "extra"), [("tensorboard", "tracking"), ("wandb", "wandb"), ("mlflow", "mlflow")]
)
def test_a_tracker_that_is_not_installed_is_a_warning_with_the_package_to_install(
    name: str,
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (tmp_path / name).mkdir()  # as W&B's folder of runs, which is no package
    with mock.patch.dict(sys.modules):
        for module in [one for one in sys.modules if one.split(".")[0] == name]:
            del sys.modules[module]
        tracked(tmp_path, name, range(1, 3))
    [warning] = caplog.messages
    assert f'pip install "deformable-detr[{extra}]"' in warning
