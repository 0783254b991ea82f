"""Preset: a config that fits a training and a validation set, and the reasons for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deformable_detr.config import RunConfig
from deformable_detr.config.loading import Overrides, load_config, validate_config
from deformable_detr.conversion.files import read_weights
from deformable_detr.data.annotations import Annotations, read_annotations
from deformable_detr.data.image_headers import channels_of
from deformable_detr.engine.train import total_steps
from deformable_detr.environment import computes_bfloat16
from deformable_detr.preset.choice import Start, choose
from deformable_detr.preset.schedule import rates_over
from deformable_detr.preset.statistics import SetStatistics, densest_crop, measure

BASE = "quickstart"


@dataclass(frozen=True)
class Preset:
    """Config of a run, and the reasons for its settings.

    Attributes:
        config: the config.
        reasons: at most eight lines of at most 78 characters.
        num_images: number of training images.
    """

    config: RunConfig
    reasons: tuple[str, ...]
    num_images: int

    def overridden(self, overrides: Overrides) -> RunConfig:
        """Return the config with overrides; warm-up and moving average fit another length."""
        changed = load_config(self.config, overrides)
        length = _num_steps(changed, self.num_images)
        if length == _num_steps(self.config, self.num_images):
            return changed
        warmup, decay = rates_over(length)
        fitting = {"train.schedule.warmup_steps": warmup, "train.ema_decay": decay}
        return load_config(load_config(self.config, fitting), overrides)


def choose_preset(
    data: Mapping[str, Any], *, finetune_from: Path | None, device: torch.device
) -> Preset:
    """Choose the settings for a data set; the same in every process.

    Only annotations are read, and the header of the first image. Training starts from the
    checkpoint, else from the backbone weights of the quickstart if they have been fetched, else
    from random weights.

    Args:
        data: settings of the data by dotted key, with `data.train.images`,
            `data.train.annotations` and `data.val.annotations`; they are part of the config.
        finetune_from: checkpoint that training starts from, whose model settings are kept.
        device: device to train on.

    Raises:
        ValueError: an annotation file breaks a rule, or the file is not a checkpoint.
    """
    train = read_annotations(Path(data["data.train.annotations"]))
    val = read_annotations(Path(data["data.val.annotations"]), label_space=train.label_space)
    boxes_xyxy, num_objects = train.objects.boxes_xyxy.numpy(), np.diff(train.offsets)
    base, start = _base(finetune_from)
    choice = choose(
        _statistics(train),
        _statistics(val),
        start=start,
        device="cpu" if device.type == "cpu" else "gpu",
        has_bfloat16=computes_bfloat16(device),
        objects_in_crop=lambda side: densest_crop(boxes_xyxy, num_objects, side=side),
        channels=channels_of(Path(data["data.train.images"], *train.images.file_names[:1])),
    )
    config = load_config(base, {**choice.settings, **data})
    return Preset(config, choice.reasons, len(train.images.sizes))


def _num_steps(config: RunConfig, num_images: int) -> int:
    """Return the number of steps of a run, as the sampler counts them."""
    per_epoch = max(num_images * config.data.repeats // config.train.total_batch, 1)
    return total_steps(per_epoch, epochs=config.train.epochs, max_steps=config.train.max_steps)


def _base(finetune_from: Path | None) -> tuple[RunConfig, Start]:
    """Return the config under the chosen settings, and what training starts from."""
    base = load_config(BASE)
    if finetune_from is None:
        weights = getattr(base.model.backbone, "weights", "")
        is_there = Path(weights).is_file()
        return base, Start("backbone", weights) if is_there else Start("random")
    content = base.model_dump(mode="json")
    content["model"] = read_weights(finetune_from).config["model"]
    return validate_config(content, source=str(finetune_from), ignore_unknown=True), Start(
        "checkpoint", str(finetune_from)
    )


def _statistics(annotations: Annotations) -> SetStatistics:
    return measure(
        annotations.images.sizes,
        annotations.objects.boxes_xyxy.numpy(),
        annotations.objects.labels.numpy(),
        np.diff(annotations.offsets),
        num_classes=annotations.label_space.num_classes,
    )
