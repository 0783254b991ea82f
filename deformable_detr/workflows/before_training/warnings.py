"""Warnings before the first step: settings that do not make sense for the data."""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch

from deformable_detr.boxes import area_xyxy
from deformable_detr.builders import build_eval_transform, build_train_transform
from deformable_detr.config import RunConfig
from deformable_detr.data.coco import CocoDataset
from deformable_detr.data.samplers import derive_seed
from deformable_detr.engine.train import total_steps
from deformable_detr.structures import Sample
from deformable_detr.workflows.training_parts import TrainingData

logger = logging.getLogger(__name__)
MOST_FACTOR = 1.5  # between the sizes of objects in training and in evaluation
MOST_PASSES = 1000  # over an image; few images are shown more often, each crop another one
FEW_IMAGES = 50
MOST_STEPS_PER_EPOCH = 5000  # of a repeated set; there is no evaluation earlier
_SAMPLES = 100  # images of each set whose objects are measured
_LEAST_OBJECTS = 20  # fewer have no reliable median


def warn_before_training(config: RunConfig, data: TrainingData) -> None:
    """Log a warning for each group of settings that makes no sense for the data.

    Images are not read, and no random state is changed.
    """
    for line in (*size_warnings(config, data), *length_warnings(config, data)):
        logger.warning("%s", line)


def size_warnings(config: RunConfig, data: TrainingData) -> list[str]:
    """Describe objects whose median size differs between training and evaluation."""
    seed, repeats = config.train.seed, config.data.repeats
    augment, resize = (
        build_train_transform(config.data.augmentation),
        build_eval_transform(config.data),
    )
    generator = torch.Generator()

    def augmented(sample: Sample, key: int) -> Sample:
        generator.manual_seed(derive_seed("augmentation", seed, 0, key))
        return augment(sample, generator)

    train = _object_sizes(data.train, augmented, seed=seed, repeats=repeats)
    val = _object_sizes(data.val, lambda sample, _: resize(sample, generator), seed=seed)
    if min(len(train), len(val)) < _LEAST_OBJECTS:
        return []
    ours, theirs = float(np.median(train)), float(np.median(val))
    if max(ours, theirs) <= MOST_FACTOR * min(ours, theirs):
        return []
    remedy = round(config.data.eval_size * ours / theirs)
    return [
        f"the median object is {ours:.3g} px in training and {theirs:.3g} px in evaluation, as the "
        f"model sees it: AP will be low; set data.eval_size={remedy}, or other sizes in "
        "data.augmentation"
    ]


def _object_sizes(
    dataset: CocoDataset, transform: Callable[[Sample, int], Sample], *, seed: int, repeats: int = 1
) -> Sequence[float]:
    """Return the square roots of the areas of objects, of samples that are drawn by the seed."""
    count = len(dataset) * repeats
    random = np.random.default_rng(seed)
    keys = random.choice(count, size=min(count, _SAMPLES), replace=False)
    sizes: list[float] = []
    for key in sorted(keys.tolist()):
        sample = transform(dataset.blank(key % len(dataset)), key)
        sizes += area_xyxy(sample.boxes_xyxy).sqrt().tolist()
    return sizes


def length_warnings(config: RunConfig, data: TrainingData) -> list[str]:
    """Describe a length of the run that does not fit the number of images."""
    train, num_images = config.train, len(data.train)
    repeats, per_epoch = config.data.repeats, data.sampler.steps_per_epoch
    end = total_steps(per_epoch, epochs=train.epochs, max_steps=train.max_steps)
    lines = []
    passes = end * train.total_batch / num_images
    is_long = passes > MOST_PASSES * max(FEW_IMAGES / num_images, 1)
    if is_long or (repeats > 1 and per_epoch > MOST_STEPS_PER_EPOCH):
        cause = f"data.repeats={repeats} makes" if repeats > 1 else f"train.epochs={train.epochs}:"
        remedy = "set data.repeats=1" if repeats > 1 else "lower train.epochs"
        lines.append(
            f"{cause} epochs of {per_epoch:,} steps, {end:,} in all, for {num_images:,} images, "
            f"which are seen {passes:,.0f} times each; {remedy}"
        )
    if train.schedule.warmup_steps >= end:
        lines.append(
            f"train.schedule.warmup_steps={train.schedule.warmup_steps} must be less than the "
            f"{end:,} steps of the run, which never reaches its learning rate; lower it, or raise "
            "train.epochs or train.max_steps"
        )
    if num_images * repeats < train.total_batch:
        lines.append(
            f"an epoch has {num_images * repeats} samples, fewer than train.total_batch="
            f"{train.total_batch}: a step sees some of them twice; lower it, or raise data.repeats"
        )
    return lines
