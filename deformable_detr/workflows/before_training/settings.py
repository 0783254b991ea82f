"""Settings of a run: a config, data of the user's own, and overrides."""

from dataclasses import dataclass
from pathlib import Path

import torch

from deformable_detr.arguments import checked
from deformable_detr.config import RunConfig
from deformable_detr.config.loading import Overrides, load_config
from deformable_detr.engine.run.folder import Resume, RunFolder
from deformable_detr.files import as_path
from deformable_detr.workflows.before_training.preset import choose_preset
from deformable_detr.workflows.datasets.preparation import own_data


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run.

    Attributes:
        config: the config, overrides included.
        decisions: what was decided about data of the user's own, one line each.
        reasons: what the preset chose, and why, one line each; empty if a config was given.
    """

    config: RunConfig
    decisions: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()


@checked
def settings_of_run(
    config: str | Path | RunConfig | None,
    files: RunFolder,
    *,
    data: str | Path | None,
    split_by: str | None,
    overrides: Overrides,
    resume: Resume,
    finetune_from: Path | None,
    device: torch.device,
) -> RunSettings:
    """Load the config, or choose the one that fits the data; annotations may be written.

    Args:
        config: as for `train`; None chooses the settings that fit `data`.
        files: the run folder.
        data: as for `train`; None if the config or `overrides` set the paths.
        split_by: as for `train`.
        overrides: as for `train`.
        resume: as for `train`.
        finetune_from: as for `train`.
        device: device to train on.

    Raises:
        ConfigError: a setting or a data path is wrong.
    """
    if data is None:
        assert config is not None  # the caller has a default
        return RunSettings(load_config(config, overrides))
    own = own_data(as_path("data", data), files, resume=resume, split_by=split_by)
    if config is None:
        preset = choose_preset(own.settings, finetune_from=finetune_from, device=device)
        return RunSettings(preset.overridden(overrides), own.decisions, preset.reasons)
    settings = load_config(load_config(config, own.settings), overrides)
    return RunSettings(settings, own.decisions)
