"""More padding changes nothing for what is not padding, from the encoder to the last box."""

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from deformable_detr.layers.position import SinePositionEmbedding
from deformable_detr.models.decoder import (
    DeformableTransformerDecoder,
    DeformableTransformerDecoderLayer,
)
from deformable_detr.models.encoder import (
    DeformableTransformerEncoder,
    DeformableTransformerEncoderLayer,
)
from deformable_detr.models.memory import MemoryBuilder
from deformable_detr.structures import Pyramid, Queries

SETTINGS = {
    "embed_dim": 32,
    "num_heads": 4,
    "num_levels": 2,
    "num_points": 3,
    "ffn_dim": 32,
    "dropout": 0.0,
}
SHAPES = ((5, 7), (3, 4))


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
    """Garbage at the bottom and the right, marked as padding."""
    maps = [F.pad(m, (0, columns, 0, rows), value=100.0) for m in pyramid.maps]
    masks = [F.pad(m, (0, columns, 0, rows), value=True) for m in pyramid.padding_masks]
    return Pyramid(tuple(maps), tuple(masks))


@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 10**6))
def test_valid_tokens_and_queries_do_not_see_the_padding(rows, columns, seed):
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
