"""Conversion of plain backbone weights to a backbone with replaced convolutions."""

from collections.abc import Mapping

import torch
from torch import Tensor

from deformable_detr.builders.model import build_backbone, replace_backbone_convs
from deformable_detr.config import BackboneConfig, PlainConvConfig
from deformable_detr.engine.checkpoints.transfer import BACKBONE, holds_backbone
from deformable_detr.models.backbones.input_channels import with_input_channels


def with_replaced_convs(
    config: BackboneConfig, weights: Mapping[str, Tensor]
) -> dict[str, Tensor] | None:
    """Convert the weights of a plain detector to one with replaced backbone convolutions.

    Parameters that are new in the replacements, such as offset generators, are not included: as
    initialized, they have no effect.

    Args:
        config: config of the backbone with replaced convolutions.
        weights: weights of a detector under this package's names; those of three input channels
            are adapted to the config's.

    Returns:
        The weights; None if no convolutions are replaced, or `weights` lacks the plain backbone.
    """
    if config.conv.kind == "plain":
        return None
    plain = config.model_copy(update={"conv": PlainConvConfig()})
    own = build_backbone(plain, load_weights=False).state_dict()
    names = {BACKBONE + name: name for name in own}
    weights = with_input_channels({name: own[names[name]] for name in names}, weights)
    if not holds_backbone({name: own[names[name]] for name in names}, weights):
        return None
    own |= {names[name]: value for name, value in weights.items() if name in names}
    replaced = _replace(config, plain, own)
    # Tensors that turn NaN when the plain weights are all NaN are derived from them.
    unknown = {name: _not_a_number(value) for name, value in own.items()}
    origin = _replace(config, plain, unknown)
    taken = {
        BACKBONE + name: value for name, value in replaced.items() if origin[name].isnan().any()
    }
    return {name: value for name, value in weights.items() if name not in names} | taken


def _replace(
    config: BackboneConfig, plain: BackboneConfig, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Load tensors into a plain backbone, replace its convolutions, and return its tensors."""
    backbone = build_backbone(plain, load_weights=False)
    backbone.load_state_dict(tensors)
    replace_backbone_convs(backbone, config)
    return backbone.state_dict()


def _not_a_number(value: Tensor) -> Tensor:
    """Return a tensor of NaN; integers, such as batch counters, have none and are kept."""
    return torch.full_like(value, torch.nan) if value.is_floating_point() else value
