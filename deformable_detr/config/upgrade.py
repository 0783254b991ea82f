"""Upgrade of configs written by earlier versions: renamed settings, and settings they lack.

Checkpoints, failure bundles and run folders hold whole configs. Only this module knows former names
and former behavior: a rename adds a row to `RENAMED`; a new setting whose default changes results
adds a row to `ADDED`.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from deformable_detr.arguments import require_bounded


@dataclass(frozen=True)
class Renamed:
    """Renamed setting.

    Attributes:
        old: the former dotted key.
        new: the current dotted key.
        values: old value -> new value; other values are kept.
    """

    old: str
    new: str
    values: Mapping[str | bool, Any] = field(default_factory=dict)

    def new_value(self, old: Any) -> Any:
        """Translate a value."""
        return self.values.get(old, old) if isinstance(old, str | bool) else old


@dataclass(frozen=True)
class Added:
    """Setting that earlier versions lacked, and that changes what a model computes.

    Attributes:
        key: the dotted key.
        former: the value that gives the behavior of versions without the setting.
        kind: the kind of section that has the setting, or None if each has.
    """

    key: str
    former: Any
    kind: str | None = None


RENAMED = (
    Renamed("compat", "match_official", {"none": False, "official": True}),
    Renamed("train.tensorboard", "train.trackers", {False: [], True: ["tensorboard"]}),
)
ADDED: tuple[Added, ...] = (
    Added("data.clip_boxes", False),
    Added("model.backbone.padding", "required", kind="timm"),
)


def upgrade(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config that means in this version what it meant in the version that wrote it.

    Args:
        content: plain JSON; not modified.

    Raises:
        ValueError: it is larger or nested deeper than any config.
    """
    require_bounded(content, "the config")
    upgraded = copy.deepcopy(dict(content))
    for row in RENAMED:
        *above, last = row.old.split(".")
        section = reduce(_section, above, upgraded)
        if last in section:
            value = row.new_value(section.pop(last))
            *above, last = row.new.split(".")
            reduce(_section_to_write, above, upgraded)[last] = value
    for added in ADDED:
        *above, last = added.key.split(".")
        section = reduce(_section, above, upgraded)
        # A whole config has the section.
        if section and added.kind in (None, section.get("kind")):
            section.setdefault(last, added.former)
    return upgraded


def find_renamed(path: Sequence[str]) -> Renamed | None:
    """Return the row of a former key, given as its parts; None if there was no such setting."""
    return next((row for row in RENAMED if row.old == ".".join(path)), None)


def _section(content: dict[str, Any], key: str) -> dict[str, Any]:
    below = content.get(key)
    return below if isinstance(below, dict) else {}


def _section_to_write(content: dict[str, Any], key: str) -> dict[str, Any]:
    below: dict[str, Any] = content.setdefault(key, {})
    return below
