"""The configs of the package, with what each is."""

import re
from dataclasses import dataclass

from deformable_detr.config.loading import config_names, find_config

_PUBLISHED = re.compile(r"Published(?: by others)?: AP ([0-9.]+)")


@dataclass(frozen=True)
class ConfigSummary:
    """Name and purpose of a config.

    Attributes:
        name: name, for `--config`.
        title: first line of its file, without the period.
        published_ap: AP on COCO val2017 as published by others; "" if none is.
    """

    name: str
    title: str
    published_ap: str


def list_configs() -> list[ConfigSummary]:
    """Read the comments at the top of the configs of the package; those in folders come last."""
    return [_summary(name) for name in sorted(config_names(), key=lambda name: "/" in name)]


def _summary(name: str) -> ConfigSummary:
    text = find_config(name).read_text(encoding="utf-8")
    comment = re.match(r"(?:#.*\n)+", text)
    lines = [line.removeprefix("#").strip() for line in comment[0].splitlines()] if comment else []
    published = _PUBLISHED.search(" ".join(lines))
    title = lines[0].removesuffix(".") if lines else ""
    return ConfigSummary(name, title, published[1] if published else "")
