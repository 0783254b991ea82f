"""Effects of padding.

From the encoder to the last box there are none, and the content of the padding never matters. A
whole detector depends on the size of the padded batch (through group norm, the borders of
convolutions and rounded masks), as the official one does, but not on the other images' content.
"""

from dataclasses import dataclass
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from helpers.models import VARIANTS, randomize_weights, small_detector
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deformable_detr.layers.position import SinePositionEmbedding
from deformable_detr.models.decoder import (
    DeformableTransformerDecoder,
    DeformableTransformerDecoderLayer,
)
from deformable_detr.models.deformable_detr import DeformableDETR
from deformable_detr.models.encoder import (
    DeformableTransformerEncoder,
    DeformableTransformerEncoderLayer,
)
from deformable_detr.models.memory import MemoryBuilder
from deformable_detr.models.proposals import ProposalQueries
from deformable_detr.structures import ImageBatch, Predictions, Pyramid, Queries, Size

SETTINGS = {
    "embed_dim": 32,
    "num_heads": 4,
    "num_levels": 2,
    "num_points": 3,
    "ffn_dim": 32,
    "dropout": 0.0,
}
SHAPES = ((5, 7), (3, 4))


@dataclass(frozen=True)
class PaddingEffects:
    """Differences between an unpadded image and the same image with padding.

    Attributes:
        convolutions: change of the backbone's maps, whose borders read zeros instead of the edge;
            root mean square relative to that of the map, the maximum over the levels.
        group_norm: change of the neck's maps for the same features, because the statistics
            include the padding; in the same unit.
        mask_rounding: cells by which a level's valid part is longer or shorter than the image's
            share of it; the maximum over levels and axes.
        alone: the last layer's predictions for the image alone.
        padded: the same with padding.
    """

    convolutions: float
    group_norm: float
    mask_rounding: float
    alone: Predictions
    padded: Predictions


@torch.no_grad()
def padding_effects(detector: DeformableDETR, image: Tensor, size: Size) -> PaddingEffects:
    """Measure the effects for a normalized (3, h, w) image padded to `size`, (height, width)."""
    detector.eval()
    alone, padded = ImageBatch.from_images([image]), _pad(image, size)
    own, wide = detector.backbone(alone.images), detector.backbone(padded.images)
    same = [_fill(features, other.shape[2:]) for features, other in zip(own, wide, strict=True)]
    pyramid = detector.neck(same, padded.padding_mask)
    level_maps = detector.neck(own, alone.padding_mask).maps[: len(own)]
    rounding = [
        abs(count - share * extent)
        for mask in pyramid.padding_masks
        for count, share, extent in (
            ((~mask[0, :, 0]).sum().item(), image.shape[1] / size[0], mask.shape[1]),
            ((~mask[0, 0]).sum().item(), image.shape[2] / size[1], mask.shape[2]),
        )
    ]
    return PaddingEffects(
        max(_change(a, b) for a, b in zip(own, wide, strict=True)),
        max(_change(a, b) for a, b in zip(level_maps, pyramid.maps, strict=False)),
        max(rounding),
        detector(alone).last,
        detector(padded).last,
    )


def _pad(image: Tensor, size: Size) -> ImageBatch:
    """Pad an image as in a batch with another image of that size."""
    batch = ImageBatch.from_images([image, image.new_zeros(3, *size)])
    return ImageBatch(batch.images[:1], batch.padding_mask[:1])


def _fill(features: Tensor, size: Size) -> Tensor:
    rows, columns = size[0] - features.shape[2], size[1] - features.shape[3]
    return F.pad(features, (0, columns, 0, rows))


def _change(alone: Tensor, padded: Tensor) -> float:
    """Return the relative change over the cells of the map without padding."""
    _, _, H, W = alone.shape
    return ((padded[:, :, :H, :W] - alone).square().mean() / alone.square().mean()).sqrt().item()


def build_parts():
    torch.manual_seed(0)
    parts = torch.nn.ModuleList(
        (
            MemoryBuilder(SinePositionEmbedding(32), embed_dim=32, num_levels=2),
            DeformableTransformerEncoder(
                [DeformableTransformerEncoderLayer(**SETTINGS) for _ in range(2)]
            ),
            DeformableTransformerDecoder(
                [DeformableTransformerDecoderLayer(**SETTINGS) for _ in range(2)],
                num_classes=3,
                embed_dim=32,
                box_refinement=True,
                two_stage=False,
            ),
        )
    )
    for parameter in parts.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return parts.double()


def padded(pyramid, rows, columns):
    """Add garbage at the bottom and the right, marked as padding."""
    maps = [F.pad(m, (0, columns, 0, rows), value=100.0) for m in pyramid.maps]
    masks = [F.pad(m, (0, columns, 0, rows), value=True) for m in pyramid.padding_masks]
    return Pyramid(tuple(maps), tuple(masks))


@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 10**6))
def test_valid_tokens_and_queries_do_not_depend_on_the_padding(rows, columns, seed):
    build_memory, encode, decode = build_parts()
    generator = torch.Generator().manual_seed(seed)
    maps = tuple(
        torch.randn(1, 32, h, w, generator=generator, dtype=torch.float64) for h, w in SHAPES
    )
    masks = tuple(torch.zeros(1, h, w, dtype=torch.bool) for h, w in SHAPES)
    query, query_pos = torch.randn(2, 1, 4, 32, generator=generator, dtype=torch.float64)
    references = torch.rand(1, 4, 2, generator=generator, dtype=torch.float64)

    results = []
    for pyramid in (Pyramid(maps, masks), padded(Pyramid(maps, masks), rows, columns)):
        memory = encode(build_memory(pyramid))
        predictions = decode(Queries(query, query_pos, references), memory)[-1]
        results.append((memory.tokens[~memory.padding_mask], predictions))
    (tokens, plain), (other_tokens, other) = results
    # The position embedding and the valid ratios are computed in float32.
    torch.testing.assert_close(other_tokens, tokens, rtol=0, atol=1e-4)
    torch.testing.assert_close(other.logits, plain.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(other.boxes, plain.boxes, rtol=0, atol=1e-4)


@given(st.integers(0, 10**6))
def test_content_under_the_mask_never_matters(seed):
    build_memory, encode, decode = build_parts()
    propose = ProposalQueries(4, num_classes=3, embed_dim=32, base_size=0.05).double()
    for parameter in propose.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    generator = torch.Generator().manual_seed(seed)
    masks = tuple(torch.zeros(2, h, w, dtype=torch.bool) for h, w in SHAPES)
    for mask in masks:
        mask[0, :, -2:] = True
        mask[1, -1:] = True
    maps = [torch.randn(2, 32, h, w, generator=generator, dtype=torch.float64) for h, w in SHAPES]
    results = []
    for fill in (0.0, 1e3):
        filled = [m.masked_fill(mask[:, None], fill) for m, mask in zip(maps, masks, strict=True)]
        memory = encode(build_memory(Pyramid(tuple(filled), masks)))
        queries, proposals = propose(memory)
        last = decode(queries, memory)[-1]
        valid = ~memory.padding_mask
        found = (proposals.logits, proposals.boxes, last.logits, last.boxes)
        results.append((memory.tokens[valid], *found))
    for value, other in zip(*results, strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=1e-6)


@settings(max_examples=2)
@pytest.mark.parametrize("variant", VARIANTS)
@given(st.integers(64, 110), st.integers(64, 110), st.integers(0, 10**6))
def test_a_detector_only_depends_on_the_size_of_the_other_images(variant, height, width, seed):
    detector = whole_detector(variant)
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(3, 72, 96, generator=generator)
    others = [3 * torch.randn(3, height, width, generator=generator) for _ in range(2)]
    first, second = (last_of(detector, [image, other], 0) for other in others)
    moved = last_of(detector, [others[0], image], 1)
    for value in (second, moved):
        torch.testing.assert_close(value.logits, first.logits, rtol=0, atol=1e-4)
        torch.testing.assert_close(value.boxes, first.boxes, rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_images_of_one_size_do_not_change_each_other(variant):
    detector = whole_detector(variant)
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(3, 72, 96, generator=generator) for _ in range(3)]
    for place in range(3):
        alone, together = last_of(detector, [images[place]], 0), last_of(detector, images, place)
        torch.testing.assert_close(together.logits, alone.logits, rtol=0, atol=1e-4)
        torch.testing.assert_close(together.boxes, alone.boxes, rtol=0, atol=1e-5)


@cache
def whole_detector(variant):
    detector = small_detector(variant).eval()
    randomize_weights(detector)
    return detector


@torch.no_grad()
def last_of(detector, images, place):
    last = detector(images).last
    return Predictions(last.logits[place : place + 1], last.boxes[place : place + 1])


@pytest.mark.parametrize("variant", ["single_scale_dc5", "two_stage"])
def test_effects_of_padding_come_from_borders_group_norm_and_rounded_masks(variant):
    detector = whole_detector(variant)
    image = torch.randn(3, 72, 96, generator=torch.Generator().manual_seed(1))
    none = padding_effects(detector, image, (72, 96))
    assert (none.convolutions, none.group_norm, none.mask_rounding) == (0, 0, 0)
    torch.testing.assert_close(none.padded.boxes, none.alone.boxes, rtol=0, atol=1e-5)
    some = padding_effects(detector, image, (80, 150))
    assert 0 < some.convolutions < 1
    assert 0 < some.group_norm < 1
    assert 0 < some.mask_rounding <= 1
    assert not torch.allclose(some.padded.boxes, some.alone.boxes, atol=1e-5)
