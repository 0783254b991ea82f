"""A change of one setting, and where it must show in what is built."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.small_run import SMALL_RUN

from deformable_detr.config import RunConfig

FOLDER = Path("<folder>")  # stands for the folder of the data
SMALL = (
    *SMALL_RUN,
    "model.encoder.ffn_dim=64",
    "model.decoder.ffn_dim=64",
    "model.neck.num_levels=4",
    *(
        f"data.{split}.{part}={FOLDER}/{split}/{name}"
        for split in ("train", "val")
        for part, name in (("images", "images"), ("annotations", "annotations.json"))
    ),
)


class AsGiven:
    """Stands for the value of the setting, as it is."""


@dataclass(frozen=True)
class Row:
    """Change of one setting.

    Attributes:
        value: another value than that of `SMALL` with `given`.
        built: config -> what the setting determines in the objects built from it.
        shown: what `built` must return for `value`.
        given: settings that it needs.
    """

    value: Any
    built: Callable[[RunConfig], Any]
    shown: Any = AsGiven
    given: tuple[str, ...] = ()
