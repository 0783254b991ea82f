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
    tiny_criterion,
    tiny_sampler,
    tiny_state,
)
from torch import Tensor

from deformable_detr.data.collate import Batch
from deformable_detr.engine.checkpoint import Checkpoint, load_checkpoint
from deformable_detr.engine.checkpoint_writer import CheckpointWriter
from deformable_detr.engine.failure_bundle import FailureBundle
from deformable_detr.engine.finite import NonFiniteError
from deformable_detr.engine.metrics import read_records
from deformable_detr.engine.run_folder import RunFolder
from deformable_detr.engine.schedule import StepSchedule
from deformable_detr.engine.state import TrainState
from deformable_detr.engine.stopping import PreemptedError, StopRequest
from deformable_detr.engine.train import fit, total_steps, train_step
from deformable_detr.engine.validation import Validation
from deformable_detr.labels import LabelSpace

CATEGORIES = dict(zip(LABEL_SPACE.category_ids, LABEL_SPACE.names, strict=True))
OTHER_CLASSES = LabelSpace((1, 2, 8), ("a", "b", "d"))


@pytest.fixture
def validation(tmp_path: Path) -> Validation:
    files = write_coco_set(tmp_path / "val", num_images=3, categories=CATEGORIES)
    loader = [tiny_batch([1, 2], [2, 1]), tiny_batch([3], [0])]
    return Validation(loader, files.annotations, every_epochs=100)


def weights(state: TrainState) -> list[Tensor]:
    return [value.clone() for value in state.model.state_dict().values()]


def gradients(state: TrainState) -> Tensor:
    grads = [parameter.grad for parameter in state.model.parameters()]
    return torch.cat([grad.flatten() for grad in grads if grad is not None])


class _SignalAt:
    """The tiny batches; asks the run to stop while those of step `step` are read."""

    def __init__(self, step: int) -> None:
        self._step = step
        self.sampler = tiny_sampler()

    def __iter__(self) -> Iterator[Batch]:
        for number, batch in enumerate(TinyLoader(self.sampler), start=1):
            if number == self._step:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch


def run(
    state: TrainState, folder: Path, validation: Validation, max_steps: int, **options: Any
) -> None:
    sampler = tiny_sampler()
    fit(
        state,
        tiny_criterion(),
        options.pop("loader", None) or TinyLoader(sampler),
        sampler,
        folder=RunFolder(folder),
        validation=validation,
        seed=11,
        max_steps=max_steps,
        log_every_steps=2,
        **options,
    )


@pytest.mark.parametrize("size", [1, 2])
def test_accumulated_micro_batches_give_the_gradient_of_the_whole_batch(size: int) -> None:
    together, apart = tiny_state(dtype=torch.float64), tiny_state(dtype=torch.float64)
    image_ids, counts = [1, 2, 3, 4], [3, 0, 1, 2]
    whole = tiny_batch(image_ids, counts, dtype=torch.float64)
    pieces = [
        tiny_batch(image_ids[i : i + size], counts[i : i + size], dtype=torch.float64)
        for i in range(0, 4, size)
    ]
    values = train_step(together, [whole], tiny_criterion(), seed=0, max_grad_norm=0)
    parts = train_step(apart, pieces, tiny_criterion(), seed=0, max_grad_norm=0)
    difference = (gradients(together) - gradients(apart)).norm() / gradients(together).norm()
    assert difference < 1e-12
    for name, value in values.items():
        if name != "class_error":  # a mean of percentages of unequal parts
            torch.testing.assert_close(parts[name], value, rtol=1e-12, atol=0)


def test_the_gradient_is_clipped_and_its_norm_before_that_is_reported() -> None:
    state = tiny_state()
    batch = tiny_batch([1, 2], [2, 1])
    values = train_step(state, [batch], tiny_criterion(), seed=0, max_grad_norm=0.1)
    assert values["grad_norm"] > 1
    assert gradients(state).norm().item() == pytest.approx(0.1, rel=1e-4)


def test_without_clipping_the_norm_is_still_the_two_norm() -> None:
    state = tiny_state()
    batch = tiny_batch([1, 2], [2, 1])
    values = train_step(state, [batch], tiny_criterion(), seed=0, max_grad_norm=0)
    assert gradients(state).norm().item() == pytest.approx(values["grad_norm"].item(), rel=1e-6)


def test_a_step_uses_the_learning_rate_of_its_schedule() -> None:
    state = tiny_state(schedule=StepSchedule(drop_steps=2, drop_factor=0.0), lr=0.1)
    batch = tiny_batch([1, 2], [2, 1])
    seen = []
    for _ in range(3):
        before = weights(state)
        train_step(state, [batch], tiny_criterion(), seed=0)
        seen.append(any(not a.equal(b) for a, b in zip(before, weights(state), strict=True)))
    assert seen == [True, True, False]


def test_dropout_depends_on_seed_and_step_and_not_on_what_was_drawn_before() -> None:
    def loss(seed: int, step: int, drawn_before: int) -> float:
        state = tiny_state(dropout=0.5)
        state.step = step
        torch.randn(drawn_before)
        values = train_step(state, [tiny_batch([1, 2], [2, 1])], tiny_criterion(), seed=seed)
        return values["total"].item()

    assert loss(1, 5, 0) == loss(1, 5, 100)
    assert loss(1, 5, 0) != loss(2, 5, 0)
    assert loss(1, 5, 0) != loss(1, 6, 0)


def test_dropout_differs_between_the_micro_batches_of_a_step() -> None:
    state = tiny_state(dropout=0.5)
    drawn = []
    state.model.dropout.register_forward_hook(
        lambda module, inputs, output: drawn.append(output == 0)
    )
    batch = tiny_batch([1, 2], [2, 1])
    train_step(state, [batch, batch], tiny_criterion(), seed=0)
    assert not drawn[0].equal(drawn[1])


def test_a_step_without_any_object_has_a_finite_loss_and_trains_the_classes() -> None:
    state = tiny_state()
    values = train_step(state, [tiny_batch([1, 2], [0, 0])], tiny_criterion(), seed=0)
    assert values["total"].isfinite()
    assert state.model.class_head.weight.grad.abs().sum() > 0


def test_a_loss_that_is_not_finite_names_its_terms_and_changes_nothing() -> None:
    state = tiny_state()
    before = weights(state)
    batch = tiny_batch([1, 2], [0, 0])
    batch.images.images[0, 0, 0, 0] = math.nan
    with pytest.raises(
        NonFiniteError,
        match=r"the loss of step 0 must be finite, got process 0: loss_class nan.*total nan",
    ):
        train_step(state, [batch], tiny_criterion(), seed=0)
    assert state.step == 0
    assert all(a.equal(b) for a, b in zip(before, weights(state), strict=True))


def test_predictions_that_cannot_be_matched_stop_the_run_with_the_matchers_words() -> None:
    batch = tiny_batch([1, 2], [1, 1])
    batch.images.images[1] = math.inf
    with pytest.raises(NonFiniteError, match="process 0: predictions must be finite"):
        train_step(tiny_state(), [batch], tiny_criterion(), seed=0)


def test_a_gradient_that_is_not_finite_stops_the_run_and_changes_nothing() -> None:
    state = tiny_state()
    before = weights(state)
    batch = tiny_batch([1, 2], [1, 1])
    state.model.box_head.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NonFiniteError, match="gradient of step 0 must be finite, got nan"):
        train_step(state, [batch], tiny_criterion(), seed=0)
    assert state.step == 0
    assert all(a.equal(b) for a, b in zip(before, weights(state), strict=True))


def test_a_step_that_fails_leaves_a_bundle_of_its_failing_micro_batch(
    tmp_path: Path, validation: Validation
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.claim()
    bad = tiny_batch([43, 44], [1, 1])
    bad.images.images[1, 0, 0, :3] = math.nan
    good = [tiny_batch([n, n + 1], [1, 1]) for n in (39, 41)]
    state = tiny_state(dropout=0.5)
    with pytest.raises(
        NonFiniteError,
        match=r"process 0: predictions must be finite.*; likely cause in process 0: image 44 holds "
        r"3 of 192 numbers.*doctor bundle .*failure_step_1_rank_0\.pth",
    ):
        fit(
            state,
            tiny_criterion(),
            [*good, bad, good[0]],
            tiny_sampler(total_batch=4),
            folder=folder,
            validation=validation,
            seed=0,
        )
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
def test_a_run_that_stopped_and_resumed_equals_one_that_did_not(
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


def test_a_run_that_ended_before_its_evaluation_makes_up_for_it(
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
def test_a_run_that_is_asked_to_stop_ends_after_the_step_and_equals_one_that_is_not(
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


def test_a_run_that_is_asked_to_stop_during_an_evaluation_does_that_again(
    tmp_path: Path, validation: Validation
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.claim()
    state = tiny_state()

    def signal_while_evaluating() -> Iterator[Batch]:
        os.kill(os.getpid(), signal.SIGUSR1)
        yield from validation.loader

    interrupted = replace(validation, loader=signal_while_evaluating())
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


def test_a_run_leaves_metrics_checkpoints_and_curves(
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


def test_a_run_whose_ap_stays_zero_is_told_so_once_with_a_reason(
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


def test_a_loader_that_ends_too_soon_is_refused(tmp_path: Path, validation: Validation) -> None:
    with pytest.raises(ValueError, match=r"micro-batches of 4 steps an epoch .* got 1 steps"):
        fit(
            tiny_state(),
            tiny_criterion(),
            [tiny_batch([1, 2], [1, 1])],
            tiny_sampler(),
            folder=RunFolder(tmp_path),
            validation=validation,
            seed=0,
        )


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


def test_evaluation_and_checkpoint_use_the_average_where_there_is_one(
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


def test_a_checkpoint_of_other_classes_is_refused() -> None:
    saved = tiny_state().to_checkpoint()
    other = replace(saved, label_space=OTHER_CLASSES)
    with pytest.raises(
        ValueError,
        match=r"the training set must have the categories of checkpoint x\.pth, "
        r"got \{1: a, 2: b, 7: c\} where checkpoint x\.pth has \{1: a, 2: b, 8: d\}; "
        r"only the training set has \{7: c\}; only checkpoint x\.pth has \{8: d\}$",
    ):
        tiny_state().restore(other, "checkpoint x.pth")


def test_weights_alone_are_not_resumed() -> None:
    converted = replace(tiny_state().to_checkpoint(), optimizer={}, label_space=OTHER_CLASSES)
    state = tiny_state()
    before = weights(state)
    with pytest.raises(
        ValueError,
        match=r"checkpoint x\.pth must hold the state of an optimiser to be resumed, got weights "
        r"alone; start a new run from them with --finetune-from",
    ):
        state.restore(converted, "checkpoint x.pth")
    assert all(a.equal(b) for a, b in zip(before, weights(state), strict=True))


def test_a_resumed_run_remembers_what_it_was_fine_tuned_from() -> None:
    saved = tiny_state()
    saved.origin = "fine-tuned from a.pth"
    resumed = tiny_state()
    resumed.restore(saved.to_checkpoint(), "checkpoint x.pth")
    assert resumed.to_checkpoint().origin == "fine-tuned from a.pth"


def test_a_run_that_turns_the_average_on_starts_it_at_the_weights() -> None:
    saved = tiny_state()
    with torch.no_grad():
        saved.model.box_head.bias.fill_(7.0)
    resumed = tiny_state(ema_decay=0.9)
    resumed.restore(saved.to_checkpoint(), "checkpoint x.pth")
    assert resumed.ema is not None
    assert resumed.ema.model.box_head.bias.eq(7.0).all()


def test_training_ends_at_the_first_limit() -> None:
    assert total_steps(7, epochs=2, max_steps=None) == 14
    assert total_steps(7, epochs=2, max_steps=10) == 10
    assert total_steps(7, epochs=1, max_steps=10) == 7


def test_a_run_without_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        total_steps(7, epochs=0, max_steps=None)
    with pytest.raises(ValueError, match="max_steps must be at least 1, got 0"):
        total_steps(7, epochs=3, max_steps=0)
