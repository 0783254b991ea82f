"""Training with the settings that fit the data, as `train --data` chooses them."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deformable_detr import train
from few_images.measured import Run, seconds_per_step

METRICS = ("AP", "AP50", "AP75")


def length_of(steps: int) -> list[str]:
    """Return the settings of a run of so many steps; the preset follows its length."""
    return [
        "train.epochs=1000000",
        f"train.max_steps={steps}",
        "train.eval_every_epochs=1000000",  # at the end only
    ]


def train_preset(
    data: Path, settings: Sequence[str], *, seed: int, steps: int, folder: Path
) -> Run:
    """Train with the preset and `settings`; see `Trainer`."""
    marks: list[tuple[int, float]] = []

    def mark(kind: str, record: Mapping[str, Any]) -> None:
        if kind == "train":
            marks.append((record["step"], time.process_time()))

    result = train(
        data=data,
        overrides=[
            *length_of(steps),
            f"train.seed={seed}",
            f"train.log_every={max(steps // 20, 1)}",
            *settings,
        ],
        run_dir=folder,
        device="cpu",
        callback=mark,
    )
    return Run(seconds_per_step(marks), {name: result.metrics[name] for name in METRICS})
