"""Length of a run: repeats, epochs, and epochs between evaluations."""

import math
from dataclasses import dataclass

from deformable_detr.preset import constants as c
from deformable_detr.preset.statistics import SetStatistics
from deformable_detr.preset.views import View


@dataclass(frozen=True)
class Length:
    """Length of a run.

    Attributes:
        batch: images per step.
        repeats: passes over the training set per epoch.
        epochs: number of epochs.
        steps: number of steps, of all epochs.
        eval_every_epochs: number of epochs between evaluations.
    """

    batch: int
    repeats: int
    epochs: int
    steps: int
    eval_every_epochs: int


def choose_length(train: SetStatistics, val: SetStatistics, view: View, batch: int) -> Length:
    """Choose the length of a run from the number of training views."""
    wanted = max(c.STEPS * math.sqrt(view.num_views / c.STEPS_AT_IMAGES), c.LEAST_STEPS)
    epoch_steps = c.EPOCH_STEPS if view.crop_px is None else c.CROP_EPOCH_STEPS
    repeats = max(math.ceil(epoch_steps * batch / train.num_images), 1)
    steps_per_epoch = train.num_images * repeats // batch
    passes = c.LEAST_PASSES if repeats == 1 else 1
    epochs = max(math.ceil(wanted / steps_per_epoch), passes)
    steps = epochs * steps_per_epoch
    pixels = view.size**2 * view.aspect
    eval_pixels = view.eval_size**2 * view.eval_aspect
    evaluation = c.FORWARD_SHARE * val.num_images * eval_pixels
    affordable = int(c.EVAL_SHARE * steps * batch * pixels / evaluation)
    evaluations = min(max(affordable, 1), c.MOST_EVALUATIONS)
    return Length(batch, repeats, epochs, steps, math.ceil(epochs / evaluations))


def rates_over(steps: int) -> tuple[int, float]:
    """Return the steps of warm-up, and the decay of the average of weights, of a run."""
    warmup = min(max(round(c.WARMUP_SHARE * steps), c.LEAST_WARMUP), c.MOST_WARMUP)
    decay = 1 - 1 / (c.EMA_SHARE * steps)
    return min(warmup, steps // 2), round(min(max(decay, c.LEAST_EMA), c.MOST_EMA), 4)
