"""Places of dropout in encoder and decoder layers: those of the paper's formulas."""

import torch
from helpers.golden import golden_memory
from torch import Tensor, nn

from deformable_detr.models.decoder import DeformableTransformerDecoderLayer, references_in_levels
from deformable_detr.models.encoder import DeformableTransformerEncoderLayer
from deformable_detr.models.memory import encoder_reference_points
from deformable_detr.structures import Memory

SIZES = {"embed_dim": 32, "num_heads": 4, "num_levels": 2, "num_points": 2, "ffn_dim": 48}


def seeded(layer: nn.Module) -> nn.Module:
    """Randomize a layer, so that nothing it computes is zero."""
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer.train()


def memory() -> Memory:
    small = golden_memory()
    tokens, positions = torch.randn(2, 1, 8, 32)
    return Memory(
        tokens=tokens,
        positions=positions,
        padding_mask=small.padding_mask,
        level_shapes=small.level_shapes,
        valid_ratios=small.valid_ratios,
    )


def drop(x: Tensor) -> Tensor:
    return nn.functional.dropout(x, 0.4)


def test_an_encoder_layer_drops_after_attention_and_twice_in_the_feed_forward_network() -> None:
    layer = seeded(DeformableTransformerEncoderLayer(**SIZES, dropout=0.4))
    given = memory()
    references = encoder_reference_points(given)
    torch.manual_seed(1)
    actual = layer(given.tokens, references, given)

    torch.manual_seed(1)
    x = given.tokens
    attended = layer.self_attn(
        x + given.positions, references, x, given.level_shapes, given.padding_mask
    )
    x = layer.norm1(x + drop(attended))
    expected = layer.norm2(x + drop(layer.linear2(drop(layer.linear1(x).relu()))))
    torch.testing.assert_close(actual, expected)


def test_a_decoder_layer_drops_in_and_after_attention_and_twice_in_the_feed_forward_network() -> (
    None
):
    layer = seeded(DeformableTransformerDecoderLayer(**SIZES, dropout=0.4))
    given = memory()
    query, query_pos = torch.randn(2, 1, 5, 32)
    references = 0.2 + 0.6 * torch.rand(1, 5, 2)
    torch.manual_seed(1)
    actual = layer(query, query_pos, references, given)

    torch.manual_seed(1)
    x = query
    x = layer.norm1(x + drop(self_attention(layer, x + query_pos, x)))
    attended = layer.cross_attn(
        x + query_pos,
        references_in_levels(references, given.valid_ratios),
        given.tokens,
        given.level_shapes,
        given.padding_mask,
    )
    x = layer.norm2(x + drop(attended))
    expected = layer.norm3(x + drop(layer.linear2(drop(layer.linear1(x).relu()))))
    torch.testing.assert_close(actual, expected)


def self_attention(layer: DeformableTransformerDecoderLayer, placed: Tensor, x: Tensor) -> Tensor:
    """Compute multi-head attention of (1, Q, C), with dropout of the attention weights."""
    attention = layer.self_attn
    weights = attention.in_proj_weight.chunk(3)
    biases = attention.in_proj_bias.chunk(3)
    heads = [
        nn.functional.linear(source, weight, bias)[0].view(5, 4, 8).transpose(0, 1)
        for source, weight, bias in zip((placed, placed, x), weights, biases, strict=True)
    ]
    queries, keys, values = heads
    shares = (queries @ keys.transpose(1, 2) / 8**0.5).softmax(-1)
    return attention.out_proj((drop(shares) @ values).transpose(0, 1).reshape(1, 5, 32))
