"""Work of the distributed tests, run in each process, and in a single one as the reference."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from helpers.models import DINO_PARTS, small_detector
from helpers.recipe import criterion_for, paper_criterion, paper_groups
from helpers.tiny_training import (
    CONSTANT,
    LABEL_SPACE,
    NOTHING_ANNOTATED,
    NUM_CLASSES,
    TinyLoader,
    tiny_batch,
    tiny_criterion,
    tiny_detector,
    tiny_loop,
    tiny_sampler,
    tiny_state,
)
from torch import Tensor, nn

from deformable_detr import distributed
from deformable_detr.data.coco import CocoDataset
from deformable_detr.data.collate import Batch
from deformable_detr.detector import Detector
from deformable_detr.engine.checkpoints.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_weights,
    weights_for_inference,
)
from deformable_detr.engine.ema import ExponentialMovingAverage
from deformable_detr.engine.evaluate import Validation, validation_loss
from deformable_detr.engine.metrics import RunningMean
from deformable_detr.engine.optimizer import adamw
from deformable_detr.engine.run.folder import RunFolder
from deformable_detr.engine.run.stopping import StopRequest
from deformable_detr.engine.state import TrainState
from deformable_detr.engine.step import NonFiniteError
from deformable_detr.engine.train import fit, train_step
from deformable_detr.evaluation.detection_table import DetectionTable
from deformable_detr.finite import NonFinitePredictionsError
from deformable_detr.ground_truth import read_ground_truth
from deformable_detr.workflows.measuring import measure

DTYPES = {"float32": torch.float32, "float64": torch.float64}
VARIANTS = ("multi_scale", "two_stage", "mimicking", "checkpointing", "dino")
DENOISING = "model.denoising={num_queries: 4}"
MIMICKING = "model.mimicking={max_regions: 32, crop_size_px: 32}"
COUNTS = (3, 0, 1, 2)  # objects in the four images of a step
COUNTS_OF_EMPTY_RANK = (3, 1, 0, 0)  # the second of two processes gets the last two
FEW_OBJECTS = {
    f"{dtype}, objects {counts}": (dtype, counts)
    for dtype in DTYPES
    for counts in ((0, 0, 0, 0), (1, 0, 0, 0), (1, 0, 0, 2))
}
IMAGE_SIZE = 64
NO_DROPOUT = ("model.encoder.dropout=0.0", "model.decoder.dropout=0.0")
# Every level has more than one cell: a GroupNorm of one value would amplify rounding errors.
SMALLER = (
    "model.backbone.out_strides=[8, 16]",
    "model.neck.num_levels=3",
    "model.encoder.num_layers=1",
    "model.decoder.num_layers=2",
)
FIVE_VARIANTS = ("single_scale", "single_scale_dc5", "multi_scale", "refine", "two_stage")
EMPTY_RANK_STEPS = 50
SMALLEST = (  # a frozen backbone, which would be nearly all of the work and sees no targets
    "model.backbone.freeze_up_to_stride=32",
    "model.encoder.num_layers=1",
    "model.decoder.num_layers=2",
)
TOTAL_BATCH = 4
MAX_STEPS = 6


def step_gradients(
    variant: str, dtype: str, counts: Sequence[int], *, micro_batch: int = 4
) -> Tensor:
    """Return all gradients, concatenated, of one step on four images, divided among the ranks."""
    model, _ = _step_of(variant, dtype, counts, micro_batch=micro_batch)
    return _gradients(model)


def denoising_losses() -> dict[str, float]:
    """Return the means of all losses and metrics of one step with denoising."""
    means = RunningMean()
    means.update(_step_of("dino", "float64", COUNTS, micro_batch=4)[1])
    return means.read()


def _step_of(
    variant: str, dtype: str, counts: Sequence[int], *, micro_batch: int
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Take a step; return the model with its gradients, and the losses and metrics."""
    overrides = [*NO_DROPOUT, *SMALLER]
    if variant == "mimicking":
        variant, overrides = "multi_scale", [*overrides, MIMICKING]
    if variant == "two_stage with mimicking":
        variant, overrides = "two_stage", [*overrides, MIMICKING]
    if variant == "checkpointing":  # with two-stage queries, and with DDP's no_sync
        variant, overrides = "two_stage", [*overrides, "train.gradient_checkpointing=true"]
        micro_batch = 1
    if variant == "dino":  # one micro-batch per process: noise is drawn for its objects together
        variant, overrides = "two_stage", [*overrides, *DINO_PARTS, DENOISING]
        micro_batch = 2
    model = small_detector(variant, *overrides, num_classes=NUM_CLASSES)
    model = model.to(DTYPES[dtype])
    _perturb(model)
    state = TrainState(
        model, adamw(paper_groups(model)), CONSTANT, label_space=LABEL_SPACE, config={}
    )
    how: dict[str, Any] = {"dtype": DTYPES[dtype], "size": IMAGE_SIZE}
    share = len(counts) // distributed.world_size()
    own = slice(distributed.rank() * share, (distributed.rank() + 1) * share)
    images = list(enumerate(counts, start=1))[own]
    batches = [
        tiny_batch(*zip(*images[begin : begin + micro_batch], strict=True), **how)
        for begin in range(0, share, micro_batch)
    ]
    state.model.train()
    values = train_step(state, batches, criterion_for(model), seed=0, max_grad_norm=0)
    return model, values


def all_step_gradients() -> Mapping[str, Tensor]:
    """Return `step_gradients` of every case, by name."""
    return {
        f"{variant} {dtype} {case}": step_gradients(variant, dtype, counts)
        for variant in VARIANTS
        for dtype in DTYPES
        for case, counts in (("mixed", COUNTS), ("empty rank", COUNTS_OF_EMPTY_RANK))
    }


def gradients_for_few_objects(
    folder: Path | None = None, *, micro_batch: int = 4
) -> dict[str, Tensor]:
    """Return `step_gradients` of a two-stage model with mimicking, of each of `FEW_OBJECTS`."""
    return {
        name: step_gradients("two_stage with mimicking", dtype, counts, micro_batch=micro_batch)
        for name, (dtype, counts) in FEW_OBJECTS.items()
    }


def steps_beside_an_empty_rank(variant: str) -> dict[str, Any]:
    """Take steps in which rank 1 has no objects; return weights and gradients of the last one."""
    state = variant_state(variant)
    for step in range(EMPTY_RANK_STEPS):
        before = {name: value.clone() for name, value in state.model.state_dict().items()}
        batch = empty_rank_batch(step, distributed.rank())
        train_step(state, [batch], tiny_criterion(), seed=0, max_grad_norm=0)
    return {"before": before, "gradients": _gradients(state.model)}


def step_with_batch_norm(rank: int) -> dict[str, Tensor]:
    """Take a step with the images of a rank; return all weights, statistics and averages."""
    overrides = ("model.backbone.norm=batch_norm", *NO_DROPOUT, *SMALLER)
    model = small_detector("multi_scale", *overrides, num_classes=NUM_CLASSES).train()
    ema = ExponentialMovingAverage(model, decay=0.5)
    optimizer = adamw(paper_groups(model))
    state = TrainState(model, optimizer, CONSTANT, label_space=LABEL_SPACE, config={}, ema=ema)
    batch = tiny_batch([2 * rank, 2 * rank + 1], [1, 1], size=IMAGE_SIZE)
    train_step(state, [batch], tiny_criterion(), seed=0, max_grad_norm=0.1)
    averages = {f"ema.{name}": value for name, value in ema.model.state_dict().items()}
    return {**model.state_dict(), **averages}


def variant_state(variant: str) -> TrainState:
    """Return the state of a detector as small as possible, without dropout, in float64."""
    model = small_detector(variant, *NO_DROPOUT, *SMALLEST, num_classes=NUM_CLASSES).double()
    _perturb(model)
    model.train()
    optimizer = adamw(paper_groups(model, lr=1e-3))
    return TrainState(model, optimizer, CONSTANT, label_space=LABEL_SPACE, config={})


def empty_rank_batch(step: int, rank: int) -> Batch:
    """Return one image of a step: with objects on rank 0, without on rank 1."""
    count = (1 + step % 3) * (rank == 0)
    return tiny_batch([2 * step + rank], [count], dtype=torch.float64, size=32)


def work_in_process(folder: Path) -> dict[str, Any]:
    """Run everything that needs two processes in a single start of them, as it takes seconds."""
    whole, parts = RunFolder(folder / "whole"), RunFolder(folder / "parts")
    result: dict[str, Any] = {"whole": train_tiny(whole, max_steps=MAX_STEPS)}
    train_tiny(parts, max_steps=3)
    result["resumed"] = train_tiny(parts, max_steps=MAX_STEPS, resume=True)
    result["gradients"] = all_step_gradients()
    result["denoising losses"] = denoising_losses()
    result["few objects"] = gradients_for_few_objects()
    result["empty"] = {variant: steps_beside_an_empty_rank(variant) for variant in FIVE_VARIANTS}
    result["batch norm"] = step_with_batch_norm(distributed.rank())
    result["detections"] = detections_of_any_sizes(folder)
    result["failed"] = failing_run(RunFolder(folder / "failed"))
    result["not finite in evaluation"] = failing_evaluation(folder / "val" / "annotations.json")
    return result | _talk()


def train_tiny(folder: RunFolder, *, max_steps: int, resume: bool = False) -> Mapping[str, Tensor]:
    """Train with dropout, averaging and total batches of four; return the weights."""
    state = tiny_state(dropout=0.2, ema_decay=0.9, dtype=torch.float64)
    folder.claim(resume=resume)
    if resume:
        state.restore(load_checkpoint(folder.last), "checkpoint")
    sampler = tiny_sampler(num_samples=17, total_batch=TOTAL_BATCH, micro_batch=2)
    validation = Validation(
        [tiny_batch([1 + distributed.rank()], [1], dtype=torch.float64)],
        read_ground_truth(folder.path.parent / "val" / "annotations.json"),
        every_epochs=100,
        with_loss=True,
    )
    loader = TinyLoader(sampler, dtype=torch.float64)
    settings = {"seed": 11, "max_steps": max_steps, "log_every_steps": 2}
    fit(state, tiny_loop(folder, validation, loader=loader, sampler=sampler, **settings))
    return state.model.state_dict()


def failing_run(folder: RunFolder) -> str:
    """Return the error of a run in which a pixel on rank 1 makes only gradients non-finite."""
    folder.claim()
    own = distributed.rank()
    batch = tiny_batch([1 + 2 * own, 2 + 2 * own], [1, 1])
    if own == 1:
        batch.images.images[0, 0, 0, 0] = math.inf  # tanh maps it to 1 or -1, so the loss is finite
    try:
        sampler = tiny_sampler(num_samples=4, total_batch=4)
        validation = Validation([], NOTHING_ANNOTATED)
        fit(tiny_state(), tiny_loop(folder, validation, loader=[batch], sampler=sampler))
    except NonFiniteError as error:
        return str(error)
    return "no error"


def failing_evaluation(annotations: Path) -> list[str]:
    """Return the errors of an evaluation and a validation loss in which rank 1 has a NaN.

    It is in the first of that rank's two batches; the other rank has three.
    """
    model, state = tiny_detector(), tiny_state()
    ids = [1, 1, 1]
    if distributed.rank() == 1:
        ids = [2, 2]
        model.box_head.weight.data[0] = math.nan
    state.model = model
    batches = [tiny_batch([image_id], [0]) for image_id in ids]
    criterion, errors = tiny_criterion(), []
    validation = Validation(batches, read_ground_truth(annotations), describe="photo {}".format)
    try:
        validation.measure(state, criterion, StopRequest())
    except NonFinitePredictionsError as error:
        errors.append(str(error))
    try:
        validation_loss(model, batches, criterion, device=torch.device("cpu"))
    except NonFinitePredictionsError as error:
        errors.append(str(error))
    return errors


def uneven_step() -> tuple[Tensor, dict[str, float]]:
    """Take one step of three micro-batches; return its concatenated gradients, and its means."""
    batches = [
        tiny_batch(image_ids, counts, dtype=torch.float64)
        for image_ids, counts in (([1, 2], [3, 0]), ([3, 4], [1, 2]), ([5, 6], [0, 4]))
    ]
    state, means = tiny_state(dropout=0.2, dtype=torch.float64), RunningMean()
    own = batches[distributed.rank() :: distributed.world_size()]
    means.update(train_step(state, own, tiny_criterion(), seed=0, max_grad_norm=0))
    return _gradients(state.model), means.read()


def detections_of_any_sizes(folder: Path) -> tuple[dict[str, float], DetectionTable]:
    """Evaluate a detector on images of several sizes; return the metrics and all detections."""
    detector = Detector.from_checkpoint(folder / "random.pth", device="cpu")
    dataset = CocoDataset(
        folder / "sizes" / "images",
        folder / "sizes" / "annotations.json",
        label_space=detector.label_space,
    )
    evaluator, metrics = measure(detector, dataset, batch_size=2, num_workers=0)
    return metrics.as_dict(), evaluator.table


def validation_total(checkpoint: Checkpoint) -> float:
    """Return the loss of the averaged weights on the images of both ranks, in one batch."""
    model = tiny_detector(dtype=torch.float64)
    load_weights(model, weights_for_inference(checkpoint), "checkpoint")
    batch = tiny_batch([1, 2], [1, 1], dtype=torch.float64)
    return validation_loss(model, [batch], tiny_criterion(), device=torch.device("cpu"))["total"]


def _error_of_main() -> str:
    try:
        distributed.from_main(lambda: [][distributed.rank()])
    except IndexError as error:
        return str(error)
    return "none"


def _talk() -> dict[str, Any]:
    """Use all functions of `distributed`, and take steps that fail on rank 1 only."""
    rank = distributed.rank()
    entered = 0.0
    with distributed.main_first():
        if rank == 0:
            time.sleep(0.5)
        entered = time.monotonic()
    means = RunningMean()
    means.update({"value": torch.tensor(float(rank))})
    return {
        "rank": rank,
        "world_size": distributed.world_size(),
        "is_main": distributed.is_main(),
        "sum": distributed.all_reduce_sum(torch.tensor([1.0, 10.0 * rank])).tolist(),
        "gathered": distributed.all_gather_objects({"rank": rank}),
        "from main": distributed.from_main(lambda: f"of rank {rank}"),
        "error of main": _error_of_main(),
        "mean": means.read(),
        "shares of counted": _shares_of_a_count(),
        "entered": entered,
        "uneven": uneven_step(),
        "not finite": _failure(tiny_batch([1, 2], [0, 0]), value=math.nan),
        "not matched": _failure(tiny_batch([1, 2], [1, 1]), value=math.inf),
        "overflown": _overflow_once(),
    }


def _shares_of_a_count() -> list[float]:
    """Return the total loss as a share of its sum, for 5 objects on rank 0, 1 and none.

    The last three are by the official rule.
    """
    shares = []
    for is_official in (False, True):
        criterion = paper_criterion(official_divisor=is_official)
        for counts in ([3, 2], [1, 0], [0, 0]):
            batch = tiny_batch([1, 2], counts if distributed.rank() == 0 else [0, 0])
            output = tiny_detector()(batch.images)
            counted = criterion(output, batch.targets).losses["total"]
            shares.append((counted / criterion(output, batch.targets, 1.0).losses["total"]).item())
    return shares


def _failure(batch: Batch, *, value: float) -> str:
    """Return the error of a step whose first of two micro-batches is corrupt on rank 1."""
    if distributed.rank() == 1:
        batch.images.images[0] = value
    state = tiny_state()
    try:
        train_step(
            state, [batch, tiny_batch([3, 4], [1, 1])], tiny_criterion(), seed=0, max_grad_norm=0.1
        )
    except NonFiniteError as error:
        return f"{state.step}: {error}"
    return "no error"


def _overflow_once() -> dict[str, Any]:
    """Take a step in float16 in which one gradient on rank 1 overflows once."""
    state = tiny_state(precision="float16")
    scale = 64.0
    state.scaler.load_state_dict({**state.scaler.state_dict(), "scale": scale})
    attempts: list[int] = []

    def overflow(gradient: Tensor) -> Tensor:
        attempts.append(1)
        is_planted = distributed.rank() == 1 and len(attempts) == 1
        return torch.full_like(gradient, math.inf) if is_planted else gradient

    state.model.box_head.weight.register_hook(overflow)
    train_step(state, [tiny_batch([1, 2], [1, 1])], tiny_criterion(), seed=0, max_grad_norm=0.1)
    return {
        "attempts": len(attempts),
        "scale": state.scaler.get_scale() / scale,
        "steps": state.step,
        "weights": state.model.state_dict(),
    }


@torch.no_grad()
def _perturb(model: nn.Module) -> None:
    """Add noise, as weights initialized to zero would hide the gradients of their inputs."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter += 0.03 * noise


def _gradients(model: nn.Module) -> Tensor:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None for parameter in trainable)
    return torch.cat([parameter.grad.flatten() for parameter in trainable])
