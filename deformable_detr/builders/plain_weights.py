"""Weights of a detector with a plain backbone, for one whose convolutions are replaced."""

from collections.abc import Mapping

import torch
from torch import Tensor

from deformable_detr.builders.model import build_backbone, replace_backbone_convs
from deformable_detr.config import BackboneConfig, PlainConvConfig
from deformable_detr.engine.checkpoints.transfer import BACKBONE, holds_backbone


def with_replaced_convs(
    config: BackboneConfig, weights: Mapping[str, Tensor]
) -> dict[str, Tensor] | None:
    """The weights of a plain detector, its backbone's as the replaced convolutions have them.

    What is new in the replacements, such as offset generators, is not among them: as it is built,
    it adds nothing.

    Args:
        config: of the backbone with replaced convolutions.
        weights: of a detector, by our names.

    Returns:
        None if no convolutions are replaced, or the weights hold no such plain backbone.
    """
    if config.conv.kind == "plain":
        return None
    plain = config.model_copy(update={"conv": PlainConvConfig()})
    own = build_backbone(plain, load_weights=False).state_dict()
    names = {BACKBONE + name: name for name in own}
    if not holds_backbone({name: own[names[name]] for name in names}, weights):
        return None
    own |= {names[name]: value for name, value in weights.items() if name in names}
    replaced = _replace(config, plain, own)
    # What comes from the weights is what would not be a number if they were none.
    unknown = {name: _not_a_number(value) for name, value in own.items()}
    origin = _replace(config, plain, unknown)
    taken = {
        BACKBONE + name: value for name, value in replaced.items() if origin[name].isnan().any()
    }
    return {name: value for name, value in weights.items() if name not in names} | taken


def _replace(
    config: BackboneConfig, plain: BackboneConfig, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What becomes of a plain backbone's tensors."""
    backbone = build_backbone(plain, load_weights=False)
    backbone.load_state_dict(tensors)
    replace_backbone_convs(backbone, config)
    return backbone.state_dict()


def _not_a_number(value: Tensor) -> Tensor:
    """Counters stay, as they cannot be."""
    return torch.full_like(value, torch.nan) if value.is_floating_point() else value
