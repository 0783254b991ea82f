"""`train.micro_batch: auto`: measured once, without a trace, and kept by a resumed run."""

import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from helpers.coco_files import write_coco_set
from helpers.small_run import SMALL_RUN, data_settings

from deformable_detr import distributed
from deformable_detr.config.loading import load_run_config
from deformable_detr.engine import micro_batch
from deformable_detr.engine.checkpoints.checkpoint import load_checkpoint
from deformable_detr.workflows.training import train

GIGABYTE = 10**9
SETTINGS = (
    *SMALL_RUN,
    "model.backbone.norm=batch_norm",  # statistics must not see the measurement
    "model.backbone.freeze_up_to_stride=0",
    "train.eval_every_epochs=100",
)


def available(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    monkeypatch.setattr(micro_batch, "memory_bytes", lambda: (num_bytes, num_bytes))


def test_it_is_measured_without_a_trace_and_kept_on_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    sets = [write_coco_set(tmp_path / name, size=(48, 64)) for name in ("train", "val")]
    data = data_settings(*sets)

    def weights(name: str, *settings: str, resume: bool = False) -> dict[str, torch.Tensor]:
        run = tmp_path / name
        overrides = [*SETTINGS, *data, *settings]
        train("deformable_detr_r50", overrides=overrides, run_dir=run, resume=resume, device="cpu")
        return load_checkpoint(run / "last.pth").model

    whole = weights("whole", "train.micro_batch=4", "train.max_steps=2")
    available(monkeypatch, 100 * GIGABYTE)
    weights("stopped", "train.micro_batch=auto", "train.max_steps=1")
    assert "micro-batch of 4 images: the largest that fits into memory" in caplog.messages
    assert load_run_config(tmp_path / "stopped" / "config.yaml").train.micro_batch == 4

    available(monkeypatch, 1)
    resumed = weights("stopped", "train.micro_batch=auto", "train.max_steps=2", resume=True)
    assert load_checkpoint(tmp_path / "stopped" / "last.pth").config["train"]["micro_batch"] == 4
    assert all(value.equal(resumed[name]) for name, value in whole.items())

    weights("small", "train.micro_batch=auto", "train.max_steps=1")
    assert load_run_config(tmp_path / "small" / "config.yaml").train.micro_batch == 1


def test_a_number_that_does_not_fit_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sets = [write_coco_set(tmp_path / name, size=(48, 64)) for name in ("train", "val")]
    settings = [*SETTINGS, *data_settings(*sets), "train.micro_batch=4", "train.max_steps=1"]

    def warnings(name: str) -> list[str]:
        caplog.clear()
        train("deformable_detr_r50", overrides=settings, run_dir=tmp_path / name, device="cpu")
        return [text for text in caplog.messages if text.startswith("train.micro_batch=4")]

    available(monkeypatch, 10_000_000)
    [text] = warnings("small")
    assert re.search(r"need about \d+\.\d GB, and 0\.0 GB are available", text)
    measured = Mock(side_effect=AssertionError("a small micro-batch is not measured"))
    available(monkeypatch, 100 * GIGABYTE)
    with monkeypatch.context() as patch:
        patch.setattr(micro_batch, "warm_up", measured)
        assert not warnings("large")
    steps = [load_checkpoint(tmp_path / name / "last.pth").model for name in ("small", "large")]
    assert all(value.equal(steps[1][name]) for name, value in steps[0].items())


@pytest.mark.parametrize(("peaks", "needed"), [((300, 900), 4 * 200), ((300, 600), None)])
def test_the_need_follows_from_the_pixels(
    peaks: tuple[int, int], needed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    available(monkeypatch, 700)
    found = iter(peaks)
    monkeypatch.setattr(micro_batch, "_peak_bytes", lambda _: next(found))
    state: Any = SimpleNamespace(device=torch.device("cpu"))
    criterion: Any = None
    short = micro_batch.shortage(state, criterion, 4, (256, 256))
    assert short == (None if needed is None else (needed, 700))


def largest(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    run: Any,
    candidates: list[int],
) -> int:
    monkeypatch.setattr(micro_batch, "warm_up", run)
    state: Any = SimpleNamespace(device=torch.device(device))
    criterion: Any = None
    return micro_batch.largest_micro_batch(state, criterion, candidates, lambda count: (8, 8))


def test_a_gpu_tries_the_largest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    fits = 0

    def run(*_: object, num_images: int, size: object) -> None:
        tried.append(num_images)
        if num_images > fits:
            raise RuntimeError("must fit into memory") from torch.OutOfMemoryError()

    for limit, expected in ((8, [8]), (3, [8, 4, 2]), (0, [8, 4, 2, 1])):
        tried.clear()
        fits = limit
        assert largest(monkeypatch, "cuda", run, [1, 2, 4, 8]) == max(expected[-1], 1)
        assert tried == expected
    with pytest.raises(RuntimeError, match="another error"):
        largest(monkeypatch, "cuda", _raise, [1, 2])


def _raise(*_: object, **__: object) -> None:
    raise RuntimeError("another error")


@pytest.mark.parametrize(
    ("gigabytes", "expected"), [(None, 1), (2.6, 1), (2.9, 2), (5.8, 4), (9, 4), (13, 8)]
)
def test_a_cpu_extrapolates_from_one_and_two_images(
    gigabytes: float | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = iter([1 * GIGABYTE, 2 * GIGABYTE])  # 70 % of what is available may be used
    monkeypatch.setattr(micro_batch, "_peak_bytes", lambda call: next(peaks))
    memory = None if gigabytes is None else (10**12, int(gigabytes * GIGABYTE) + GIGABYTE // 10)
    monkeypatch.setattr(micro_batch, "memory_bytes", lambda: memory)
    assert largest(monkeypatch, "cpu", _raise, [1, 2, 4, 8]) == expected


def test_processes_agree_on_the_smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "all_gather_objects", lambda mine: [mine, 2])
    assert largest(monkeypatch, "cuda", lambda *_, **__: None, [1, 2, 4]) == 2
