"""Tensors of the golden values that were computed with the official code of DINO.

They follow from their names, so that no file is needed.
"""

import re

import torch
from helpers.dino_weights import official_weight
from torch import Tensor

# Names of the package -> official names, the alphabetically first if there are several.
_OFFICIAL_NAMES = (
    (r"^memory_builder\.level_embed$", "transformer.level_embed"),
    (r"^decoder\.layers\.(\d+)\.norm2\.", r"transformer.decoder.layers.\1.norm1."),
    (r"^decoder\.layers\.(\d+)\.norm1\.", r"transformer.decoder.layers.\1.norm2."),
    (r"^decoder\.position_head\.", "transformer.decoder.ref_point_head."),
    (r"^decoder\.box_heads\.0\.mlp\.", "bbox_embed.0."),
    (r"^decoder\.class_heads\.0\.", "class_embed.0."),
    (r"^(encoder|decoder)\.", r"transformer.\1."),
    (r"^queries\.content$", "transformer.tgt_embed.weight"),
    (r"^queries\.memory_proj\.", "transformer.enc_output."),
    (r"^queries\.memory_norm\.", "transformer.enc_output_norm."),
    (r"^queries\.box_head\.mlp\.", "transformer.enc_out_bbox_embed."),
    (r"^queries\.class_head\.", "transformer.enc_out_class_embed."),
    (r"^denoising\.label_embed\.", "label_enc."),
    (r"^neck\.projections\.(\d+)\.", r"input_proj.\1.0."),
    (r"^neck\.norms\.(\d+)\.", r"input_proj.\1.1."),
    (r"^backbone\.body\.", "backbone.0.body."),
)


def official_name(name: str) -> str:
    """Return the official name of a tensor of the package."""
    for pattern, replacement in _OFFICIAL_NAMES:
        found, count = re.subn(pattern, replacement, name)
        if count:
            return found
    raise KeyError(name)


def golden_weight(name: str, shape: torch.Size) -> Tensor:
    """Return the tensor of a name of the package: as wide as usual, and nowhere zero."""
    return official_weight(official_name(name), tuple(shape))


def golden_images() -> list[Tensor]:
    """Return the two images."""
    return [
        official_weight("image.0", (3, 96, 128)),
        official_weight("image.1", (3, 80, 112)),
    ]
