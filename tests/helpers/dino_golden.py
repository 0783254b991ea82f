"""Tensors of the golden values that were computed with the official code of DINO.

They follow from their names, so that no file is needed.
"""

import re
import zlib
from collections.abc import Iterable

import numpy as np
import torch
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
_UNSCALED = ("level_embed", "tgt_embed.weight", "label_enc.weight")
_UNSCALED_BIASES = ("sampling_offsets.bias", "in_proj_bias")


def golden_numbers(name: str, shape: Iterable[int]) -> Tensor:
    """Return float64 numbers with mean 0 and variance 1 that depend on the name only."""
    shape = tuple(shape)
    count = np.arange(1, 1 + int(np.prod(shape)), dtype=np.float64)
    start = zlib.crc32(name.encode()) % 100003
    numbers = 43758.5453 * np.sin(12.9898 * count + 0.001 * start)
    fractions = numbers - np.floor(numbers)
    return torch.from_numpy(np.sqrt(3) * (2 * fractions - 1)).view(shape)


def official_name(name: str) -> str:
    """Return the official name of a tensor of the package."""
    for pattern, replacement in _OFFICIAL_NAMES:
        found, count = re.subn(pattern, replacement, name)
        if count:
            return found
    raise KeyError(name)


def golden_weight(name: str, shape: torch.Size) -> Tensor:
    """Return the tensor of a name of the package: as wide as usual, and nowhere zero."""
    official = official_name(name)
    numbers = golden_numbers(official, shape)
    if official.endswith("running_var"):
        return 1 + 0.1 * numbers.abs()
    if official.endswith("running_mean"):
        return 0.1 * numbers
    if official.endswith("bias"):
        if "class_embed" in official:
            return -2 + 0.1 * numbers
        return numbers if official.endswith(_UNSCALED_BIASES) else 0.05 * numbers
    if official.endswith(_UNSCALED):
        return numbers
    if len(shape) == 1:
        return 1 + 0.1 * numbers
    return _scaled(numbers)


def golden_activations(name: str, shape: Iterable[int]) -> Tensor:
    """Return float32 images, logits or boxes; they are scaled like weights."""
    return _scaled(golden_numbers(name, shape)).float()


def _scaled(numbers: Tensor) -> Tensor:
    """Divide by the root of the number of inputs of an output."""
    return numbers / numbers[0].numel() ** 0.5


def golden_images() -> list[Tensor]:
    """Return the two images."""
    return [
        golden_activations("image.0", (3, 96, 128)),
        golden_activations("image.1", (3, 80, 112)),
    ]
