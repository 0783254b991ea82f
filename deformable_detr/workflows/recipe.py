"""Published recipes, and the settings in which a run deviates from the nearest one."""

import json
from collections.abc import Mapping
from typing import Any

from deformable_detr.config import RunConfig
from deformable_detr.config.flatten import flatten
from deformable_detr.config.loading import load_config

RECIPES = (
    "deformable_detr_r50",
    "deformable_detr_r50_refine",
    "deformable_detr_r50_two_stage",
    "deformable_detr_r50_single_scale",
    "deformable_detr_r50_single_scale_dc5",
    "dino_r50",
    "dino_r50_24ep",
    "dino_r50_5scale",
    "dino_r50_official",
)
# Settings of data paths, speed, logging and randomness: they do not make another recipe.
FREE_SETTINGS = frozenset(
    {
        "match_official",  # has its own line in the header
        "data.cache_images",
        "data.clip_boxes",  # changes detections, not training
        "data.exif",
        "data.image_order",
        "data.num_workers",
        "data.train.annotations",
        "data.train.images",
        "data.val.annotations",
        "data.val.images",
        "model.attention.backend",
        "train.channels_last",
        "train.checkpoint_every",
        "train.deterministic",
        "train.eval_batch",
        "train.eval_every_epochs",
        "train.gradient_checkpointing",
        "train.log_every",
        "train.micro_batch",  # gradients accumulate to the total batch
        "train.sample_order",
        "train.seed",
        "train.timeout_s",
        "train.trackers",
        "train.validation_loss",
    }
)


def nearest_recipe(config: RunConfig) -> tuple[str, list[str]]:
    """Return the recipe with the fewest deviations, and one line per deviation from it."""
    settings = _settings(config)
    found = {}
    for name in RECIPES:
        found[name] = _deviations(settings, _settings(load_config(name)))
    nearest = min(RECIPES, key=lambda name: len(found[name]))
    return nearest, found[nearest]


def _deviations(settings: Mapping[str, Any], recipe: Mapping[str, Any]) -> list[str]:
    # Settings that only the recipe has belong to another `kind`, which has its own line.
    lines = []
    for key, value in settings.items():
        if key not in recipe:
            lines.append(f"{key} is {_show(value)}, the recipe has no such setting")
        elif value != recipe[key]:
            lines.append(f"{key} is {_show(value)}, the recipe has {_show(recipe[key])}")
    return lines


def _settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that belong to a recipe, by dotted key."""
    settings = flatten(config.model_dump(mode="json"))
    return {key: value for key, value in settings if key not in FREE_SETTINGS}


def _show(value: Any) -> str:
    """Format a value as in YAML."""
    return value if isinstance(value, str) else json.dumps(value)
