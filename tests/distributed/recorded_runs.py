"""Complete runs through the code of the training command, with a record of each step's images."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

from helpers.coco_files import CocoFiles
from helpers.small_run import SMALL_RUN, data_settings
from torch import Tensor

from deformable_detr.config.loading import load_config
from deformable_detr.data.collate import Batch
from deformable_detr.engine.state import TrainState
from deformable_detr.engine.train import TrainLoop, fit
from deformable_detr.workflows import training

TOTAL_STEPS = 6  # with two steps per epoch, so that the run stops within an epoch
STOP_AFTER = 3


@dataclass
class Recording:
    """Initial weights and images of a run on this rank.

    Attributes:
        start: the weights before the first step.
        steps: the image ids of each micro-batch, per step.
    """

    start: dict[str, Tensor] = field(default_factory=dict)
    steps: list[list[list[int]]] = field(default_factory=list)

    def fit(self, state: TrainState, loop: TrainLoop) -> None:
        """Call the engine's `fit`, and record weights and images."""
        self.start = {name: value.clone() for name, value in state.model.state_dict().items()}
        size = loop.sampler.micro_batches_per_step
        fit(state, replace(loop, loader=_Recorded(loop.loader, self.steps, size)))


@dataclass
class _Recorded:
    loader: Iterable[Batch]
    steps: list[list[list[int]]]
    micro_batches: int

    def __iter__(self) -> Iterator[Batch]:
        for number, batch in enumerate(self.loader):
            if number % self.micro_batches == 0:
                self.steps.append([])
            self.steps[-1].append([target.image_id for target in batch.targets])
            yield batch


def record_run(folder: Path, files: CocoFiles, *, max_steps: int, **options: Any) -> Recording:
    """Train in `folder` with total batches of four, in a single process or as one of several."""
    settings = [*SMALL_RUN, *data_settings(files, files), f"train.max_steps={max_steps}"]
    recording = Recording()
    with mock.patch.object(training, "fit", recording.fit):
        training.train(
            load_config("deformable_detr_r50", settings),
            run_dir=folder,
            device="cpu",
            **options,
        )
    return recording


def resume_and_finetune(folder: Path) -> dict[str, Recording]:
    """Resume the run that was stopped, and fine-tune from another's weights."""
    data, other = (
        CocoFiles(folder / name / "images", folder / name / "annotations.json")
        for name in ("data", "other")
    )
    return {
        "resumed": record_run(folder / "parts", data, max_steps=TOTAL_STEPS, resume=True),
        "fine-tuned": record_run(
            folder / "tuned", other, max_steps=1, finetune_from=folder / "whole" / "last.pth"
        ),
    }
