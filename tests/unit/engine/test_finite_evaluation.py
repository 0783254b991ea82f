"""A run whose evaluation gives infinite or NaN predictions ends with an error."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.coco_files import write_coco_set
from helpers.damage import change_predictions, fill, in_low_precision, in_one_box, in_one_logit
from helpers.recipe import paper_groups
from helpers.tiny_training import (
    CONSTANT,
    LABEL_SPACE,
    tiny_batch,
    tiny_criterion,
    tiny_detector,
    tiny_loop,
)
from torch import nn

from deformable_detr.data.collate import Batch
from deformable_detr.engine.checkpoints.checkpoint import load_checkpoint
from deformable_detr.engine.ema import ExponentialMovingAverage
from deformable_detr.engine.evaluate import Validation, validation_loss
from deformable_detr.engine.metrics import read_records
from deformable_detr.engine.optimizer import adamw
from deformable_detr.engine.run.folder import RunFolder
from deformable_detr.engine.run.stopping import StopRequest
from deformable_detr.engine.state import TrainState
from deformable_detr.engine.train import fit
from deformable_detr.finite import NonFinitePredictionsError
from deformable_detr.ground_truth import read_ground_truth
from deformable_detr.structures import ModelOutput

CPU = torch.device("cpu")
CATEGORIES = dict(zip(LABEL_SPACE.category_ids, LABEL_SPACE.names, strict=True))
STEPS_PER_EPOCH, EPOCHS = 4, 2


def average_of(state: TrainState) -> nn.Module:
    assert state.ema is not None
    return state.ema.model


# What is damaged, and the share and the cause that the error gives.
DAMAGES: dict[str, tuple[Callable[[TrainState], None], str]] = {
    "running statistics": (
        lambda state: fill(state.model, "running_var"),
        r"6 of 6 queries with boxes or logits .* likely cause: the model has 1 of \d+ tensors .*"
        r"backbone\.1\.running_var \(16 of 16 values\), which only eval mode uses",
    ),
    "box head of the moving average": (
        lambda state: fill(average_of(state), "box_head"),
        r"6 of 6 queries with boxes .*: the moving average of the weights has 2 of \d+ tensors .*"
        r"box_head\.weight .*go on with the trained weights, .*: train\.ema_decay=0",
    ),
    "class head of the moving average": (
        lambda state: fill(average_of(state), "class_head.bias", math.inf),
        r"6 of 6 queries with logits .*class_head\.bias \(18 of 18 values\)",
    ),
    "running statistics of the model, and so of the moving average": (
        lambda state: fill(state.model, "running_var"),
        r"6 of 6 .* the moving average .*running_var \(16 of 16 values\)(?!.*ema_decay)",
    ),
    "a logit": (
        lambda state: change_predictions(state.model, partial(in_one_logit, -math.inf)),
        r"1 of 6 queries with logits that .* all weights of the model are finite",
    ),
    "a box": (
        lambda state: change_predictions(state.model, partial(in_one_box, math.nan)),
        r"1 of 6 queries with boxes that .* all weights of the model are finite",
    ),
    "float16": (
        lambda state: change_predictions(state.model, partial(in_low_precision, torch.float16)),
        r"6 of 6 queries with logits that",
    ),
    "bfloat16": (
        lambda state: change_predictions(state.model, partial(in_low_precision, torch.bfloat16)),
        r"6 of 6 queries with logits that",
    ),
}


def normed_state(damage: str = "", *, with_average: bool | None = None) -> TrainState:
    """Return the state of a detector with a batch norm, whose statistics only eval mode uses."""
    model = tiny_detector()
    model.backbone = nn.Sequential(model.backbone, nn.BatchNorm1d(16))
    if with_average is None:
        with_average = "average" in damage
    return TrainState(
        model,
        adamw(paper_groups(model, lr=1e-3)),
        CONSTANT,
        label_space=LABEL_SPACE,
        config={},
        ema=ExponentialMovingAverage(model, decay=0.9) if with_average else None,
    )


class DamagingLoader:
    """Batches of one object per image, before the last of which `harm` is called."""

    def __init__(self, harm: Callable[[], None]) -> None:
        self._harm = harm
        self._epochs = 0

    def __iter__(self) -> Iterator[Batch]:
        self._epochs += 1
        for step in range(STEPS_PER_EPOCH):
            if self._epochs == EPOCHS and step == STEPS_PER_EPOCH - 1:
                self._harm()
            yield tiny_batch([2 * step + 1, 2 * step + 2], [1, 1])


@pytest.fixture
def validation(tmp_path: Path) -> Validation:
    files = write_coco_set(tmp_path / "val", num_images=3, categories=CATEGORIES)
    loader = [tiny_batch([1, 2], [2, 1]), tiny_batch([3], [0])]
    return Validation(loader, read_ground_truth(files.annotations), describe="photo {}".format)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_ends_with_the_error_and_keeps_its_best_checkpoint(
    tmp_path: Path, validation: Validation, damage: str
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.claim()
    state = normed_state(damage)
    harm, words = DAMAGES[damage]
    best = []

    def harm_after_first_evaluation() -> None:
        best.append(folder.best.read_bytes())
        harm(state)

    loader = DamagingLoader(harm_after_first_evaluation)
    with pytest.raises(NonFinitePredictionsError, match=words) as caught:
        fit(state, tiny_loop(folder, validation, loader=loader, epochs=EPOCHS))
    assert f"for photo {2 if '1 of 6' in words else 1}; " in str(caught.value)
    assert all(value.isfinite().all() for value in state.model.parameters())
    assert best == [folder.best.read_bytes()]
    _require_one_evaluation(folder)

    resumed = normed_state(damage)
    last = load_checkpoint(folder.last)
    assert (last.step, last.evaluated) == (EPOCHS * STEPS_PER_EPOCH, STEPS_PER_EPOCH)
    if "average" in damage or damage == "running statistics":
        with pytest.raises(ValueError, match=r"last must hold finite numbers, got \d of \d+ tens"):
            resumed.restore(last, "last")
    else:
        resumed.restore(last, "last")
        harm(resumed)
        with pytest.raises(NonFinitePredictionsError, match=words):
            fit(resumed, tiny_loop(folder, validation, epochs=EPOCHS))
    assert best == [folder.best.read_bytes()]
    _require_one_evaluation(folder)


def _require_one_evaluation(folder: RunFolder) -> None:
    steps = [one["step"] for one in read_records(folder.metrics) if one["kind"] == "evaluation"]
    assert steps == [STEPS_PER_EPOCH]


def test_a_run_goes_on_without_a_damaged_moving_average(
    tmp_path: Path, validation: Validation
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.claim()
    state = normed_state(with_average=True)
    fit(state, tiny_loop(folder, validation, epochs=1))
    fill(average_of(state), "box_head")
    checkpoint = state.to_checkpoint()
    with pytest.raises(ValueError, match=r"moving average of last must .*: go on|train\.ema_decay"):
        normed_state(with_average=True).restore(checkpoint, "last")
    resumed = normed_state(with_average=False)
    resumed.restore(checkpoint, "last")
    fit(resumed, tiny_loop(folder, validation, epochs=EPOCHS))
    assert resumed.evaluated == EPOCHS * STEPS_PER_EPOCH


@pytest.mark.parametrize("layer", ["decoder layer 0", "the last decoder layer"])
def test_the_validation_loss_names_image_and_layer(layer: str) -> None:
    model = tiny_detector()

    def hook(module: nn.Module, inputs: object, output: ModelOutput) -> ModelOutput:
        if layer == "the last decoder layer":
            return replace(output, last=in_one_box(math.inf, output.last))
        return replace(output, auxiliary=(in_one_logit(math.nan, output.auxiliary[0]),))

    model.register_forward_hook(hook)
    words = rf"1 of 6 queries with \w+ that are not finite for photo 2 in {layer}; likely cause"
    with pytest.raises(NonFinitePredictionsError, match=words):
        validation_loss(
            model,
            [tiny_batch([1, 2], [1, 0])],  # no cost shows the second image to the matcher
            tiny_criterion(),
            device=CPU,
            describe="photo {}".format,
        )


def test_a_loss_that_overflows_is_refused() -> None:
    model = tiny_detector()
    change_predictions(model, lambda last: replace(last, logits=last.logits * 0 + 3e38))
    with pytest.raises(ValueError, match="the validation loss must be finite, got loss_class inf"):
        validation_loss(model, [tiny_batch([1], [0])], tiny_criterion(), device=CPU)


def test_after_an_error_no_further_batch_is_read(validation: Validation) -> None:
    read = []

    class Batches:
        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Iterator[Batch]:
            for image_id in (1, 2, 3):
                read.append(image_id)
                yield tiny_batch([image_id], [1])

    state = normed_state()
    fill(state.model, "box_head")
    unfinished = replace(validation, loader=Batches())
    with pytest.raises(NonFinitePredictionsError, match="photo 1; "):
        unfinished.measure(state, tiny_criterion(), StopRequest())
    assert read == [1]
