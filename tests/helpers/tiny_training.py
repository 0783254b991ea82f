"""A detector of a few hundred parameters, and batches for it, to test the engine on its own."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from helpers.recipe import paper_criterion, paper_groups
from torch import Tensor, nn

from deformable_detr import distributed
from deformable_detr.data.collate import Batch
from deformable_detr.data.samplers import BatchPlan, MicroBatchSampler, StepSampler
from deformable_detr.engine.ema import ExponentialMovingAverage
from deformable_detr.engine.evaluate import Validation
from deformable_detr.engine.optimizer import adamw
from deformable_detr.engine.precision import Precision
from deformable_detr.engine.run.folder import RunFolder
from deformable_detr.engine.schedule import Schedule, StepSchedule
from deformable_detr.engine.state import TrainState
from deformable_detr.engine.train import TrainLoop
from deformable_detr.ground_truth import GroundTruth
from deformable_detr.labels import LabelSpace
from deformable_detr.losses.criterion import SetCriterion
from deformable_detr.structures import ImageBatch, ModelOutput, Predictions, Target

NUM_CLASSES = 3
NUM_QUERIES = 6
LABEL_SPACE = LabelSpace((1, 2, 7), ("a", "b", "c"))
NOTHING_ANNOTATED = GroundTruth.of(
    Path("none.json"), {"images": [], "categories": LABEL_SPACE.to_json()}
)
CONSTANT = StepSchedule(drop_steps=1_000_000)


class TinyDetector(nn.Module):
    """Detector with two layers of predictions from four cells of an image, and dropout."""

    def __init__(self, *, dropout: float = 0.0, num_classes: int = NUM_CLASSES) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = nn.Linear(3 * 4, 16)
        self.sampling = nn.Linear(16, 16)
        self.dropout = nn.Dropout(dropout)
        self.class_head = nn.Linear(16, NUM_QUERIES * num_classes)
        self.box_head = nn.Linear(16, NUM_QUERIES * 4)

    def forward(self, images: ImageBatch, targets: Sequence[Target] | None = None) -> ModelOutput:
        pixels = nn.functional.adaptive_avg_pool2d(images.images, 2).flatten(1)
        first = self.backbone(pixels).tanh()
        second = self.dropout(first + self.sampling(first).tanh())
        return ModelOutput(self._predict(second), (self._predict(first),), None)

    def _predict(self, features: Tensor) -> Predictions:
        logits = self.class_head(features).view(-1, NUM_QUERIES, self.num_classes)
        return Predictions(logits, self.box_head(features).view(-1, NUM_QUERIES, 4).sigmoid())

    def parameter_roles(self) -> dict[str, str]:
        roles = {"backbone": "backbone", "sampling": "sampling"}
        return {
            name: roles.get(name.split(".")[0], "default") for name, _ in self.named_parameters()
        }


def tiny_detector(*, dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> TinyDetector:
    """Return a detector with the same weights in every call."""
    torch.manual_seed(3)
    return TinyDetector(dropout=dropout).to(dtype)


def tiny_criterion() -> SetCriterion:
    return paper_criterion()


def tiny_state(
    *,
    dropout: float = 0.0,
    lr: float = 1e-2,
    dtype: torch.dtype = torch.float32,
    schedule: Schedule = CONSTANT,
    ema_decay: float | None = None,
    precision: Precision = "float32",
) -> TrainState:
    model = tiny_detector(dropout=dropout, dtype=dtype)
    return TrainState(
        model,
        adamw(paper_groups(model, lr=lr)),
        schedule,
        label_space=LABEL_SPACE,
        config={"lr": lr},
        ema=None if ema_decay is None else ExponentialMovingAverage(model, decay=ema_decay),
        precision=precision,
    )


def tiny_batch(
    image_ids: list[int],
    counts: list[int],
    *,
    dtype: torch.dtype = torch.float32,
    size: int = 8,
) -> Batch:
    """Return images of one size; pixels and objects depend on the image's id and count only."""
    images, targets = [], []
    for image_id, count in zip(image_ids, counts, strict=True):
        generator = torch.Generator().manual_seed(image_id)
        images.append(torch.randn(3, size, size, generator=generator))
        boxes = torch.rand(count, 4, generator=generator) * 0.3 + 0.3
        labels = torch.randint(NUM_CLASSES, (count,), generator=generator)
        targets.append(Target(boxes.to(dtype), labels, image_id, (size, size)))
    stacked = torch.stack(images).to(dtype)
    mask = torch.zeros(len(images), size, size, dtype=torch.bool)
    return Batch(ImageBatch(stacked, mask), tuple(targets))


class TinyLoader:
    """Loader of batches of two images in the order of a sampler; half of the images are empty."""

    def __init__(self, sampler: StepSampler, *, dtype: torch.dtype = torch.float32) -> None:
        self._sampler = sampler
        self._dtype = dtype

    def __iter__(self) -> Iterator[Batch]:
        for keys in self._sampler:
            image_ids = [1 + key.index for key in keys]
            counts = [image_id % 2 * 2 for image_id in image_ids]
            yield tiny_batch(image_ids, counts, dtype=self._dtype)


def tiny_sampler(
    *, num_samples: int = 9, micro_batch: int = 2, total_batch: int = 2
) -> StepSampler:
    plan = BatchPlan(
        total_batch=total_batch,
        micro_batch=micro_batch,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    return MicroBatchSampler(num_samples, plan, seed=5)


def tiny_loop(
    folder: Path | RunFolder,
    validation: Validation,
    *,
    loader: Iterable[Batch] | None = None,
    sampler: StepSampler | None = None,
    **settings: Any,
) -> TrainLoop:
    """Return a loop over the tiny batches with default settings, except for those given."""
    sampler = sampler or tiny_sampler()
    recipe = {
        "seed": 0,
        "epochs": 50,
        "max_steps": None,
        "max_grad_norm": 0.1,
        "log_every_steps": 10,
        "checkpoint_every_steps": 500,
    }
    return TrainLoop(
        criterion=tiny_criterion(),
        loader=TinyLoader(sampler) if loader is None else loader,
        sampler=sampler,
        folder=RunFolder(folder) if isinstance(folder, Path) else folder,
        validation=validation,
        **recipe | settings,
    )


def weights(state: TrainState) -> list[Tensor]:
    """Return a copy of the detector's weights, to compare with later."""
    return [value.clone() for value in state.model.state_dict().values()]
