"""FailureBundle: one file with everything that is needed to run a failed step again."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deformable_detr.config.upgrade import upgrade
from deformable_detr.data.collate import Batch
from deformable_detr.engine.checkpoints.sealed_file import read_file, write_file
from deformable_detr.engine.precision import low_precision
from deformable_detr.messages import shown
from deformable_detr.structures import ImageBatch, Target

FORMAT = "deformable_detr failure"


@dataclass(frozen=True)
class FailureBundle:
    """Micro-batch of a rank whose loss or gradient was not finite, with the state of the run.

    Attributes:
        step: number of steps taken before.
        rank: rank of the process.
        message: message of the error that ended the run.
        cause: description of the likely cause.
        images: (N, 3, H, W), the input of the model.
        padding_mask: (N, H, W).
        targets: the fields of `Target` per image.
        num_boxes: divisor of the losses.
        dropout_seed: dropout seed of the micro-batch.
        precision: precision of the forward pass, named as a dtype of PyTorch.
        scaler: state of the gradient scaler; empty if the loss was not scaled.
        learning_rates: per role of the parameters, in this step.
        weight_norms: (step, 2-norm of all finite weights) over the run.
        bad_weights: names of weights that were not finite before the step.
        examination: the fields of `Examination`.
        model: the detector's state_dict before the step.
        label_space: the classes, as in a checkpoint.
        config: the resolved configuration, plain JSON; in a loaded one, keys have current names.
        versions: versions of the packages that wrote it.
    """

    step: int
    rank: int
    message: str
    cause: str
    images: Tensor
    padding_mask: Tensor
    targets: list[dict[str, Any]]
    num_boxes: float
    dropout_seed: int
    precision: str
    scaler: dict[str, Any]
    learning_rates: dict[str, float]
    weight_norms: list[tuple[int, float]]
    bad_weights: list[str]
    examination: dict[str, Any]
    model: dict[str, Tensor]
    label_space: list[dict[str, Any]]
    config: dict[str, Any]
    versions: dict[str, str]

    @property
    def image_ids(self) -> list[int]:
        """Ids of the images of the micro-batch."""
        return [target["image_id"] for target in self.targets]

    @property
    def batch(self) -> Batch:
        """The micro-batch, on the CPU."""
        return Batch(
            ImageBatch(self.images, self.padding_mask),
            tuple(Target(**target) for target in self.targets),
        )

    @property
    def low_precision(self) -> torch.dtype | None:
        """Dtype of autocast, or None for a run without it."""
        return low_precision(self.precision)

    @property
    def loss_scale(self) -> float:
        """Factor that the loss was multiplied by."""
        return float(self.scaler.get("scale", 1.0))

    def save(self, path: Path) -> None:
        """Write the file; it holds tensors and plain values only.

        Raises:
            RuntimeError: the file could not be written.
        """
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        write_file(path, {"format": FORMAT, **content}, noun="bundle")

    @classmethod
    def load(cls, path: Path) -> "FailureBundle":
        """Read the file; no code in it is ever run.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not a complete bundle.
        """
        if not path.exists():
            raise FileNotFoundError(
                f"bundle {shown(path)} does not exist; a run whose step fails leaves "
                "failure_step_N_rank_R.pth in its folder"
            )
        content = read_file(path, noun="bundle")
        names = {field.name for field in fields(cls)}
        if not isinstance(content, dict) or content.keys() != names | {"format"}:
            raise ValueError(
                f"bundle {shown(path)} must be one that this version wrote, got another kind of "
                "file; "
                "a checkpoint is evaluated with `deformable-detr evaluate`"
            )
        values = {name: content[name] for name in names}
        if not isinstance(values["config"], dict):
            raise ValueError(f"config of bundle {shown(path)} must be a dictionary, got another")
        try:
            return cls(**{**values, "config": upgrade(values["config"])})
        except ValueError as error:
            raise ValueError(f"bundle {shown(path)} has no usable config: {error}") from error


def batch_to_plain(batch: Batch) -> dict[str, Any]:
    """Return `images`, `padding_mask` and `targets` of a bundle."""
    batch = batch.to("cpu")
    return {
        "images": batch.images.images,
        "padding_mask": batch.images.padding_mask,
        "targets": [asdict(target) for target in batch.targets],
    }


def state_on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a copy of a state_dict on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in state.items()}
