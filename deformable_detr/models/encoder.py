"""Encoder: every token of the pyramid attends to points around itself in all levels."""

from dataclasses import replace

from torch import Tensor, nn

from deformable_detr.layers.attention import MSDeformAttn
from deformable_detr.layers.recompute import call_and_forget
from deformable_detr.models.memory import encoder_reference_points
from deformable_detr.ops import Backend
from deformable_detr.structures import Memory


class DeformableTransformerEncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, each with post-norm.

    Args:
        embed_dim: C.
        num_heads: M.
        num_levels: L.
        num_points: P, per head and level.
        ffn_dim: hidden width of the feed-forward network.
        dropout: dropout probability on the attention's output, and twice in the feed-forward
            network.
        backend: back-end of the attention operator.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        ffn_dim: int,
        dropout: float,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(
            embed_dim,
            num_heads=num_heads,
            num_levels=num_levels,
            num_points=num_points,
            backend=backend,
        )
        self.norm1 = nn.LayerNorm(embed_dim)
        self.linear1 = nn.Linear(embed_dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, embed_dim)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, tokens: Tensor, reference_points: Tensor, memory: Memory) -> Tensor:
        """Run one layer.

        Args:
            tokens: (N, S, C) output of the layer before.
            reference_points: (N, S, L, 2) relative to the padded levels.
            memory: input of the first layer; its positions and geometry are used, not its tokens.

        Returns:
            (N, S, C).
        """
        attended = self.self_attn(
            tokens + memory.positions,
            reference_points,
            tokens,
            memory.level_shapes,
            memory.padding_mask,
        )
        tokens = self.norm1(tokens + self.dropout(attended))
        hidden = self.dropout(self.linear1(tokens).relu())
        return self.norm2(tokens + self.dropout(self.linear2(hidden)))


class DeformableTransformerEncoder(nn.Module):
    """A stack of encoder layers, with no norm after the last one.

    Args:
        layers: the layers, first to last; may be empty.
        gradient_checkpointing: in training, store only the inputs of each layer and recompute
            its activations in the backward pass: less memory, more time.
    """

    def __init__(
        self,
        layers: list[DeformableTransformerEncoderLayer],
        *,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.gradient_checkpointing = gradient_checkpointing

    def forward(self, memory: Memory) -> Memory:
        """Return the memory with the tokens of the last layer."""
        reference_points = encoder_reference_points(memory)
        tokens = memory.tokens
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                tokens = call_and_forget(layer, tokens, reference_points, memory)
            else:
                tokens = layer(tokens, reference_points, memory)
        return replace(memory, tokens=tokens)
