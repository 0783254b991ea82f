import errno
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.tiny_training import tiny_batch, tiny_criterion, tiny_state

from deformable_detr.engine.checkpoints.checkpoint import Checkpoint, load_checkpoint
from deformable_detr.engine.checkpoints.writer import CheckpointWriter, snapshot
from deformable_detr.engine.state import TrainState
from deformable_detr.engine.train import train_step


class SlowDisk:
    """Disk that does not complete any file before `go` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.threads, self._fsync = threading.Event(), [], os.fsync
        monkeypatch.setattr("os.fsync", self)

    def __call__(self, descriptor: int) -> None:
        self.threads.append(threading.current_thread())
        assert self.go.wait(10)
        self._fsync(descriptor)


def step(state: TrainState) -> None:
    train_step(state, [tiny_batch([1, 2], [2, 1])], tiny_criterion(), seed=0, max_grad_norm=0.1)


def assert_same(first: Checkpoint, second: Checkpoint) -> None:
    for name, value in first.model.items():
        assert second.model[name].equal(value), name
    for number, moments in first.optimizer["state"].items():
        for name, value in moments.items():
            assert second.optimizer["state"][number][name].equal(value), name
    assert (first.step, first.config) == (second.step, second.config)


def test_training_continues_while_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, state = SlowDisk(monkeypatch), tiny_state(ema_decay=0.9)
    step(state)
    before = snapshot(state.to_checkpoint())
    with CheckpointWriter() as writer:
        writer.write(tmp_path / "last.pth", state.to_checkpoint())
        step(state)
        writer.check()
        assert not (tmp_path / "last.pth").exists()
        disk.go.set()
    written = load_checkpoint(tmp_path / "last.pth")
    assert_same(before, written)
    assert before.ema is not None
    assert written.ema is not None
    assert all(written.ema[name].equal(value) for name, value in before.ema.items())
    assert not written.model["box_head.weight"].equal(state.model.box_head.weight)
    assert disk.threads[0] is not threading.main_thread()


def test_a_second_file_waits_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, state = SlowDisk(monkeypatch), tiny_state()
    with CheckpointWriter() as writer:
        writer.write(tmp_path / "last.pth", state.to_checkpoint())
        threading.Timer(0.2, disk.go.set).start()
        writer.write(tmp_path / "best.pth", state.to_checkpoint())
        assert (tmp_path / "last.pth").exists()
    assert (tmp_path / "best.pth").exists()


def test_the_same_checkpoint_is_not_written_twice(tmp_path: Path) -> None:
    checkpoint, last, previous = tiny_state().to_checkpoint(), tmp_path / "a", tmp_path / "b"
    with CheckpointWriter() as writer:
        for number in (1, 1, 2):
            writer.write(last, replace(checkpoint, step=number), previous=previous)
    assert (load_checkpoint(last).step, load_checkpoint(previous).step) == (2, 1)
    with CheckpointWriter() as writer:
        writer.write(last, replace(checkpoint, step=2, evaluated=2), previous=previous)
    assert (load_checkpoint(last).evaluated, load_checkpoint(previous).evaluated) == (2, None)


@pytest.mark.parametrize("moment", ["check", "write", "end"])
def test_an_error_of_the_thread_is_raised_in_the_training_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def fill_disk(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fill_disk)
    with pytest.raises(RuntimeError, match=r"last\.pth could not be written .*No space.*; free"):
        write_until(moment, tmp_path)


def write_until(moment: str, folder: Path) -> None:
    checkpoint = tiny_state().to_checkpoint()
    with CheckpointWriter() as writer:
        writer.write(folder / "last.pth", checkpoint)
        if moment == "write":
            writer.write(folder / "best.pth", checkpoint)
            pytest.fail("the second file must not be begun")
        deadline = time.monotonic() + 10
        while moment == "check":
            writer.check()
            assert time.monotonic() < deadline


def test_a_snapshot_shares_no_memory_except_between_tied_weights() -> None:
    weight = torch.ones(3)
    checkpoint = replace(
        tiny_state().to_checkpoint(),
        model={"a": weight, "b": weight, "part": weight[:2], "none": torch.empty(0)},
    )
    copy = snapshot(checkpoint)
    weight.zero_()
    assert copy.model["a"].tolist() == [1, 1, 1]
    assert copy.model["b"] is copy.model["a"]
    assert copy.model["part"].tolist() == [1, 1]
    assert copy.model["none"].shape == (0,)
