"""What a config builds: a detector, a backbone, and a run up to its first step."""

import functools
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, patch

import torch
from torch import nn

from deformable_detr.builders import build_backbone, build_model
from deformable_detr.config import RunConfig
from deformable_detr.layers.deform_conv import DeformConv2d, ModulatedDeformConv2d
from deformable_detr.layers.deform_kernel import DeformKernelConv2d
from deformable_detr.layers.reparam.base import ReparameterizedBlock
from deformable_detr.models.backbones.base import Backbone
from deformable_detr.models.deformable_detr import DeformableDETR
from deformable_detr.workflows import training

REPLACEMENTS = (DeformConv2d, ModulatedDeformConv2d, DeformKernelConv2d, ReparameterizedBlock)


@functools.cache
def detector(config: RunConfig) -> DeformableDETR:
    """Build the detector on the meta device, which takes no memory and computes nothing."""
    with torch.device("meta"):
        return build_model(config, num_classes=3, load_backbone_weights=False)


@functools.cache
def backbone(config: RunConfig) -> Backbone:
    with torch.device("meta"):
        return build_backbone(config.model.backbone, load_weights=False)


def replaced(config: RunConfig) -> list[nn.Module]:
    """Return the modules that replace convolutions of the backbone."""
    return [one for one in backbone(config).modules() if isinstance(one, REPLACEMENTS)]


@functools.cache
def started(config: RunConfig) -> SimpleNamespace:
    """Start `train` and return what it passes to the loop, and the state of PyTorch there."""
    seen: list[SimpleNamespace] = []

    def look(state: Any, loop: Any) -> None:
        deterministic = torch.are_deterministic_algorithms_enabled()
        trackers = list(loop.folder.tracking._trackers)
        seen.append(
            SimpleNamespace(
                state=state,
                loop=loop,
                samples=loop.loader.dataset._samples,
                validation_samples=loop.validation.loader.dataset._samples,
                deterministic=deterministic,
                seed=torch.initial_seed(),
                trackers=trackers,
            )
        )
        loop.folder.last.touch()

    unused = {
        "report_after_training": Mock(),
        "header_lines": Mock(return_value=[]),
        "_log_end": Mock(),
        "TrackerProcess": Mock(),
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.multiple(training, fit=look, **unused),
    ):
        training.train(config, run_dir=Path(folder) / "run", device="cpu")
    return seen[0]


def same(*values: Any) -> Any:
    """Return the value that all places have; a test fails if they differ."""
    assert all(value == values[0] for value in values), values
    return values[0]
