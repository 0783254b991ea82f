"""FailureBundle: one file with everything that is needed to run a failed step again."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deformable_detr.arguments import LARGEST_SEED
from deformable_detr.config.upgrade import upgrade
from deformable_detr.data.collate import Batch
from deformable_detr.engine.checkpoints.sealed_file import read_file, write_file
from deformable_detr.engine.failures.replay import Examination
from deformable_detr.engine.precision import low_precision
from deformable_detr.messages import in_brief, shown
from deformable_detr.pixels.channels import MOST_CHANNELS
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
        images: (N, channels, H, W), the input of the model.
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
        what = f"bundle {shown(path)}"
        _check_types(values, what)
        try:
            return cls(**{**values, "config": upgrade(values["config"])})
        except ValueError as error:
            raise ValueError(f"{what} has no usable config: {error}") from error


def _check_types(values: Mapping[str, Any], what: str) -> None:
    """Raise if a field has another type or shape than in `FailureBundle`."""
    for name, kinds in _KINDS.items():
        if not isinstance(values[name], kinds) or isinstance(values[name], bool):
            kind = kinds[-1].__name__
            raise ValueError(f"{name} of {what} must be {kind}, got {in_brief(values[name])}")
    for name, fits in _CONTENTS.items():
        if not fits(values[name]):
            raise ValueError(
                f"{name} of {what} must be as a run writes it, got {in_brief(values[name])}"
            )
    shape, mask = tuple(values["images"].shape), tuple(values["padding_mask"].shape)
    if len(shape) != 4 or not 1 <= shape[1] <= MOST_CHANNELS or mask != (shape[0], *shape[2:]):
        raise ValueError(
            f"images and padding_mask of {what} must be (N, channels, H, W) and (N, H, W), "
            f"got {shape} and {mask}"
        )
    if len(values["targets"]) != shape[0]:
        raise ValueError(
            f"targets of {what} must be one for each of {shape[0]} images, "
            f"got {len(values['targets'])}"
        )
    try:
        for target in values["targets"]:
            Target(**target)
    except ValueError as error:
        raise ValueError(f"targets of {what} must be sound, got: {error}") from error


def _are_numbers(values: Any) -> bool:
    return isinstance(values, dict) and all(
        isinstance(name, str) and isinstance(one, int | float) for name, one in values.items()
    )


def _is_target(value: Any) -> bool:
    kinds = {"boxes": Tensor, "labels": Tensor, "image_id": int, "original_size": tuple | list}
    return (
        isinstance(value, dict)
        and value.keys() == kinds.keys()
        and all(isinstance(value[name], kind) for name, kind in kinds.items())
    )


def _is_examination(value: dict[str, Any]) -> bool:
    return (
        value.keys() == {field.name for field in fields(Examination)}
        and all(isinstance(value[name], str) for name in ("refusal", "forward", "backward"))
        and _are_numbers({name: value[name] for name in ("loss", "largest_input")})
        and _are_numbers(value["gradient_norms"])
    )


# Types of the fields; an error names the last one.
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("step", "rank", "dropout_seed"), (int,)),
    **dict.fromkeys(("message", "cause", "precision"), (str,)),
    **dict.fromkeys(("images", "padding_mask"), (Tensor,)),
    **dict.fromkeys(("targets", "weight_norms", "bad_weights", "label_space"), (list,)),
    **dict.fromkeys(
        ("scaler", "learning_rates", "examination", "model", "config", "versions"), (dict,)
    ),
    "num_boxes": (int, float),
}
# What the fields hold.
_CONTENTS: dict[str, Callable[[Any], bool]] = {
    "dropout_seed": lambda seed: 0 <= seed <= LARGEST_SEED,
    "num_boxes": lambda number: number > 0,
    "precision": lambda name: name in ("float32", "float16", "bfloat16"),
    "images": lambda images: images.dtype == torch.float32,
    "padding_mask": lambda mask: mask.dtype == torch.bool,
    "targets": lambda targets: all(map(_is_target, targets)),
    "weight_norms": lambda norms: all(
        isinstance(one, list | tuple)
        and len(one) == 2
        and _are_numbers({"step": one[0], "norm": one[1]})
        for one in norms
    ),
    "learning_rates": _are_numbers,
    "scaler": lambda scaler: isinstance(scaler.get("scale", 1.0), int | float),
    "examination": _is_examination,
    "model": lambda model: all(
        isinstance(name, str) and isinstance(one, Tensor) for name, one in model.items()
    ),
}


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
