import logging
import math
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.coco_files import write_coco_set
from helpers.tiny_training import (
    LABEL_SPACE,
    TinyLoader,
    tiny_batch,
    tiny_loop,
    tiny_sampler,
    tiny_state,
    weights,
)

from deformable_detr.data.collate import Batch
from deformable_detr.engine.checkpoints.checkpoint import Checkpoint, load_checkpoint
from deformable_detr.engine.checkpoints.writer import CheckpointWriter
from deformable_detr.engine.evaluate import Validation
from deformable_detr.engine.failures.bundle import FailureBundle
from deformable_detr.engine.metrics import read_records
from deformable_detr.engine.run import displays
from deformable_detr.engine.run.early_stopping import EarlyStopping
from deformable_detr.engine.run.folder import RunFolder
from deformable_detr.engine.run.stopping import PreemptedError, StopRequest
from deformable_detr.engine.state import TrainState
from deformable_detr.engine.step import NonFiniteError
from deformable_detr.engine.train import fit, total_steps
from deformable_detr.ground_truth import read_ground_truth

CATEGORIES = dict(zip(LABEL_SPACE.category_ids, LABEL_SPACE.names, strict=True))


@pytest.fixture
def validation(tmp_path: Path) -> Validation:
    files = write_coco_set(tmp_path / "val", num_images=3, categories=CATEGORIES)
    loader = [tiny_batch([1, 2], [2, 1]), tiny_batch([3], [0])]
    return Validation(loader, read_ground_truth(files.annotations), every_epochs=100)


def test_evaluations_of_a_run_show_their_progress(
    tmp_path: Path,
    validation: Validation,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(displays._LogLines, "EVERY_S", 0)
    validation = replace(validation, with_loss=True)
    RunFolder(tmp_path / "run").claim()
    with caplog.at_level(logging.INFO):
        run(tiny_state(), tmp_path / "run", validation, max_steps=1)
    shown = [message.split(",")[0] for message in caplog.messages if " of 2," in message]
    names = ("evaluating", "validation loss")
    assert shown == [f"{name}: {done} of 2" for name in names for done in (1, 2)]


class _SignalAt:
    """Loader of tiny batches that sends SIGTERM while the batches of step `step` are read."""

    def __init__(self, step: int) -> None:
        self._step, self._read = step, 0
        self.sampler = tiny_sampler()

    def __iter__(self) -> Iterator[Batch]:
        for batch in TinyLoader(self.sampler):
            self._read += 1
            if self._read == self._step:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch


def run(
    state: TrainState, folder: Path, validation: Validation, max_steps: int, **options: Any
) -> None:
    settings = {"seed": 11, "max_steps": max_steps, "log_every_steps": 2, **options}
    fit(state, tiny_loop(folder, validation, **settings))


def test_a_failed_step_saves_a_bundle_of_the_failing_micro_batch(
    tmp_path: Path, validation: Validation
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.claim()
    bad = tiny_batch([43, 44], [1, 1])
    bad.images.images[1, 0, 0, :3] = math.nan
    good = [tiny_batch([n, n + 1], [1, 1]) for n in (39, 41)]
    state = tiny_state(dropout=0.5)
    sampler = tiny_sampler(total_batch=4)
    loop = tiny_loop(folder, validation, loader=[*good, bad, good[0]], sampler=sampler)
    with pytest.raises(
        NonFiniteError,
        match=r"rank 0: predictions must be finite.*; likely cause on rank 0: image 44 has "
        r"3 non-finite values of 192.*doctor bundle .*failure_step_1_rank_0\.pth",
    ):
        fit(state, loop)
    bundle = FailureBundle.load(folder.failure(1, 0))
    assert (bundle.step, bundle.image_ids) == (1, [43, 44])
    torch.testing.assert_close(
        bundle.batch.images.images, bad.images.images, rtol=0, atol=0, equal_nan=True
    )
    assert bundle.batch.targets[0].boxes.equal(bad.targets[0].boxes)
    assert bundle.examination["forward"] == "the input of the model (TinyDetector)"
    for name, value in state.model.state_dict().items():
        assert bundle.model[name].equal(value), name


@pytest.mark.parametrize("stop_after", [3, 4])
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, validation: Validation, stop_after: int
) -> None:
    whole = tiny_state(dropout=0.2, ema_decay=0.9)
    folder = RunFolder(tmp_path / "whole")
    folder.claim()
    run(whole, folder.path, validation, max_steps=6)

    first = tiny_state(dropout=0.2, ema_decay=0.9)
    folder = RunFolder(tmp_path / "parts")
    folder.claim()
    run(first, folder.path, validation, max_steps=stop_after)
    second = tiny_state(dropout=0.2, ema_decay=0.9)
    checkpoint = load_checkpoint(folder.last)
    assert (checkpoint.step, checkpoint.epoch) == (stop_after, stop_after // 4)
    second.restore(checkpoint, "checkpoint last.pth")
    run(second, folder.path, validation, max_steps=6)

    expected = load_checkpoint(tmp_path / "whole" / "last.pth")
    resumed = load_checkpoint(folder.last)
    assert resumed.step == 6
    for name, value in expected.model.items():
        assert resumed.model[name].equal(value), name
        assert resumed.ema is not None
        assert expected.ema is not None
        assert resumed.ema[name].equal(expected.ema[name]), name
    for number, moments in expected.optimizer["state"].items():
        for name, value in moments.items():
            assert resumed.optimizer["state"][number][name].equal(value)


def test_a_run_stops_early_at_the_same_step_if_it_is_resumed(
    tmp_path: Path, validation: Validation, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = Validation.measure
    rising = {4: 0.1, 8: 0.3, 12: 0.3, 16: 0.305, 20: 0.5, 24: 0.1}  # by step; 4 are an epoch

    def measure(self: Validation, state: TrainState, *parts: Any) -> Any:
        record, detections = measured(self, state, *parts)
        return {**record, "AP": rising[state.step]}, detections

    monkeypatch.setattr(Validation, "measure", measure)
    validation = replace(validation, every_epochs=1)
    rule = EarlyStopping(patience=2, min_delta=0.01)
    for name, stops in (("whole", ()), ("parts", (6, 5, 2))):  # at steps 6, 11 and 13
        folder = RunFolder(tmp_path / name)
        folder.claim()
        for stop in (*stops, None):
            state = tiny_state(dropout=0.2)
            if folder.last.exists():
                state.restore(load_checkpoint(folder.last), "last.pth")
            options: dict[str, Any] = {"early_stopping": rule}
            if stop is None:
                run(state, folder.path, validation, 24, **options)
                continue
            loader = _SignalAt(stop)
            options |= {"loader": loader, "sampler": loader.sampler}
            with StopRequest() as request, pytest.raises(PreemptedError):
                run(state, folder.path, validation, 24, stop=request, **options)
    whole, parts = (load_checkpoint(tmp_path / name / "last.pth") for name in ("whole", "parts"))
    assert whole.step == parts.step == 16
    assert (whole.reference_ap, whole.evaluations_without_rise) == (0.3, 2)
    assert (parts.reference_ap, parts.evaluations_without_rise) == (0.3, 2)
    assert all(parts.model[name].equal(value) for name, value in whole.model.items())
    assert load_checkpoint(folder.best).best_ap == 0.305
    [stopped] = [one for one in read_records(folder.metrics) if one["kind"] == "early_stop"]
    assert "AP has not risen by more than 0.01 above 0.3000 in 2 evaluations" in stopped["reason"]

    run(state, folder.path, validation, 24, early_stopping=rule)
    assert state.step == 16
    run(state, folder.path, validation, 24, early_stopping=replace(rule, patience=3))
    assert (state.step, state.reference_ap, state.evaluations_without_rise) == (24, 0.5, 1)


def test_a_missed_evaluation_is_made_up_for_on_resume(
    tmp_path: Path, validation: Validation
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.claim()
    state = tiny_state()
    state.step = 6
    run(state, folder.path, validation, max_steps=6)
    assert [record["kind"] for record in read_records(folder.metrics)] == ["evaluation"]
    assert (load_checkpoint(folder.last).evaluated, load_checkpoint(folder.best).step) == (6, 6)


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (3, [(3, 0), (4, 1), (6, 1), (8, 2), (8, 2)]),  # epochs end at 4 and 8
        (2, [(2, 0), (4, 1), (6, 1), (8, 2), (8, 2)]),  # the evaluation at 8 is saved too
    ],
)
def test_checkpoints_are_written_within_an_epoch_too(
    tmp_path: Path,
    validation: Validation,
    monkeypatch: pytest.MonkeyPatch,
    every: int,
    expected: list[tuple[int, int]],
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.claim()
    saved = []

    def write(self: object, path: Path, checkpoint: Checkpoint, **_: object) -> None:
        saved.append((path.name, (checkpoint.step, checkpoint.epoch)))

    monkeypatch.setattr(CheckpointWriter, "write", write)
    run(tiny_state(), folder.path, validation, max_steps=8, checkpoint_every_steps=every)
    assert [moment for name, moment in saved if name == "last.pth"] == expected
    assert ("best.pth", (8, 2)) in saved


@pytest.mark.parametrize("stop_at", [3, 4])
def test_a_run_stopped_by_a_signal_ends_after_the_step_and_can_be_resumed_exactly(
    tmp_path: Path, validation: Validation, stop_at: int
) -> None:
    parts, whole = RunFolder(tmp_path / "parts"), RunFolder(tmp_path / "whole")
    for folder in (parts, whole):
        folder.claim()
    expected = tiny_state(dropout=0.2)
    run(expected, whole.path, validation, max_steps=6)

    state = tiny_state(dropout=0.2)
    with StopRequest() as stop, pytest.raises(PreemptedError, match="by SIGTERM"):
        run(state, parts.path, validation, max_steps=6, stop=stop, loader=_SignalAt(stop_at))
    saved = load_checkpoint(parts.last)
    assert (saved.step, saved.epoch) == (stop_at, stop_at // 4)
    resumed = tiny_state(dropout=0.2)
    resumed.restore(saved, "checkpoint")
    run(resumed, parts.path, validation, max_steps=6)
    assert all(a.equal(b) for a, b in zip(weights(resumed), weights(expected), strict=True))


def test_an_evaluation_interrupted_by_a_signal_is_repeated(
    tmp_path: Path, validation: Validation
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.claim()
    state = tiny_state()

    class SignalWhileEvaluating(list[Batch]):
        def __iter__(self) -> Iterator[Batch]:
            os.kill(os.getpid(), signal.SIGUSR1)
            return super().__iter__()

    interrupted = replace(validation, loader=SignalWhileEvaluating(validation.loader))
    with StopRequest() as stop, pytest.raises(PreemptedError, match="by SIGUSR1"):
        run(state, folder.path, interrupted, max_steps=2, stop=stop)
    saved = load_checkpoint(folder.last)
    assert (saved.step, saved.evaluated) == (2, None)
    state.restore(saved, "checkpoint")
    run(state, folder.path, validation, max_steps=2)
    assert [(r["kind"], r["step"]) for r in read_records(folder.metrics)] == [
        ("train", 2),
        ("memory", 2),
        ("evaluation", 2),
    ]


def test_a_run_writes_metrics_checkpoints_and_curves(
    tmp_path: Path, validation: Validation
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.claim()
    validation = replace(validation, every_epochs=1, with_loss=True)
    run(tiny_state(), folder.path, validation, max_steps=6)
    records = read_records(folder.metrics)
    training = [record for record in records if record["kind"] == "train"]
    assert [record["step"] for record in training] == [2, 4, 6]
    assert len({tuple(record) for record in training}) == 1
    assert {"lr", "epoch", "total", "decoder_0/loss_giou", "class_error", "grad_norm"} <= set(
        training[0]
    )
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    assert [record["step"] for record in evaluations] == [4, 6]
    assert {"AP", "AP50", "AR100", "validation/total"} <= set(evaluations[0])
    assert folder.curves.read_bytes().startswith(b"\x89PNG")
    best = load_checkpoint(folder.best)
    assert best.best_ap == max(record["AP"] for record in evaluations)
    assert load_checkpoint(folder.last).best_ap == best.best_ap


def test_ap_that_stays_zero_is_warned_about_once_with_a_cause(
    tmp_path: Path, validation: Validation, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.claim()
    run(tiny_state(), folder.path, replace(validation, every_epochs=1), max_steps=24)
    records = read_records(folder.metrics)
    assert max(one["AP50"] for one in records if one["kind"] == "evaluation") < 0.001
    losses = [one["total"] for one in records if one["kind"] == "train"]
    assert losses[-1] < 0.8 * losses[0]
    warnings = [one.message for one in caplog.records if one.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith("the loss falls, but AP50 stays 0: ")


def test_a_loader_that_ends_too_soon_raises(tmp_path: Path, validation: Validation) -> None:
    with pytest.raises(ValueError, match=r"micro-batches of 4 steps per epoch .* got 1 steps"):
        fit(tiny_state(), tiny_loop(tmp_path, validation, loader=[tiny_batch([1, 2], [1, 1])]))


def test_a_finished_run_has_nothing_left_to_do(
    tmp_path: Path, validation: Validation, caplog: pytest.LogCaptureFixture
) -> None:
    state = tiny_state()
    state.step = state.evaluated = 6
    before = weights(state)
    with caplog.at_level(logging.INFO):
        run(state, tmp_path, validation, max_steps=6)
    assert "nothing is left to train: step 6 of 6" in caplog.text
    assert all(a.equal(b) for a, b in zip(before, weights(state), strict=True))


def test_evaluation_and_checkpoint_use_the_average_if_there_is_one(
    tmp_path: Path, validation: Validation
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.claim()
    state = tiny_state(ema_decay=0.99)
    seen = []
    assert state.ema is not None
    state.ema.model.register_forward_hook(lambda *_: seen.append("ema"))
    run(state, folder.path, validation, max_steps=1)
    assert seen == ["ema", "ema"]
    saved = load_checkpoint(folder.last)
    assert saved.ema is not None
    assert not saved.ema["box_head.weight"].equal(saved.model["box_head.weight"])


def test_training_ends_at_the_first_limit() -> None:
    assert total_steps(7, epochs=2, max_steps=None) == 14
    assert total_steps(7, epochs=2, max_steps=10) == 10
    assert total_steps(7, epochs=1, max_steps=10) == 7


def test_a_run_without_a_step_raises() -> None:
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        total_steps(7, epochs=0, max_steps=None)
    with pytest.raises(ValueError, match="max_steps must be at least 1, got 0"):
        total_steps(7, epochs=3, max_steps=0)
