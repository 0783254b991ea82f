"""Records reach every tracker, and no tracker can stop a run."""

import logging
import threading
from pathlib import Path
from unittest import mock

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from deformable_detr.engine.metrics import append_record, read_records
from deformable_detr.engine.run import tracking
from deformable_detr.engine.run.folder import RunFolder
from deformable_detr.engine.run.tracking import TensorBoard, require_tensorboard


class Failing:
    """Tracker that writes one record, then fails as on a full disk; closing it fails, too."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, kind: str, values: object) -> None:
        self.calls += 1
        if self.calls > 1:
            raise OSError(28, "No space left on device")

    def close(self) -> None:
        raise AssertionError("a disabled tracker must not be closed")


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


def test_a_tracker_that_cannot_be_opened_does_not_stop_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder(tmp_path)
    folder.tensorboard.write_text("a file where a folder should be")
    folder.tracking.open("TensorBoard", lambda: TensorBoard(folder.tensorboard, first_step=1))
    folder.record("train", {"step": 1, "total": 1.0})
    assert read_records(folder.metrics) == [{"kind": "train", "step": 1, "total": 1.0}]
    [warning] = caplog.messages
    assert warning.startswith("TensorBoard is disabled after an error (FileExistsError")


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


def test_tensorboard_reads_every_number_of_a_record(tmp_path: Path) -> None:
    tracker = TensorBoard(tmp_path, first_step=1)
    tracker("train", {"step": 10, "total": 2.5, "note": "text"})
    tracker("evaluation", {"step": 10, "AP": 0.25})
    tracker.close()
    assert scalars(tmp_path) == {"train/total": [(10, 2.5)], "evaluation/AP": [(10, 0.25)]}


def test_steps_that_a_resumed_run_repeats_are_shown_once(tmp_path: Path) -> None:
    first = TensorBoard(tmp_path, first_step=1)
    for step in (1, 2, 3):
        first("train", {"step": step, "total": 1.0})
    first.close()
    second = TensorBoard(tmp_path, first_step=3)
    second("train", {"step": 3, "total": 2.0})
    second.close()
    assert scalars(tmp_path) == {"train/total": [(1, 1.0), (2, 1.0), (3, 2.0)]}


def test_tensorboard_on_a_full_disk_is_disabled_after_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here, the disk that is always full")
    # Its writing thread ends with the error, which the tracker sees at the next record.
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    others = set(threading.enumerate())
    folder = RunFolder(tmp_path)
    tracker = TensorBoard(folder.tensorboard, first_step=1)
    [events] = folder.tensorboard.iterdir()
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    full.replace(events)  # the writer reopens its file for each flush
    folder.tracking.open("TensorBoard", lambda: tracker)
    for step in range(1, 40):
        folder.record("train", {"step": step, "total": 1.0})
    folder.tracking.close()
    folder.record("train", {"step": 40, "total": 1.0})
    for thread in set(threading.enumerate()) - others:
        thread.join(timeout=10)
    assert [record["step"] for record in read_records(folder.metrics)] == [*range(1, 41)]
    [warning] = caplog.messages
    assert "TensorBoard is disabled after an error" in warning


def test_the_error_for_a_missing_tensorboard_names_the_package_to_install() -> None:
    with (
        mock.patch.object(tracking.importlib.util, "find_spec", return_value=None),
        pytest.raises(RuntimeError, match=r'pip install "deformable-detr\[tracking\]"'),
    ):
        require_tensorboard()
