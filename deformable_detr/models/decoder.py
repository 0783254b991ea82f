"""Decoder: queries attend to each other and to the memory, with predictions at every layer."""

import copy

import torch
from torch import Tensor, nn

from deformable_detr.layers.attention import MSDeformAttn
from deformable_detr.layers.recompute import call_and_forget
from deformable_detr.models.heads import (
    BoxHead,
    ClassHead,
    boxes_from_offsets,
    initial_size_logits,
)
from deformable_detr.ops import Backend
from deformable_detr.structures import Memory, Predictions, Queries


class DeformableTransformerDecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention, feed-forward network, each with post-norm.

    Args:
        embed_dim: C.
        num_heads: M, in self-attention and in cross-attention.
        num_levels: L.
        num_points: P, per head and level.
        ffn_dim: hidden width of the feed-forward network.
        dropout: dropout probability within self-attention, on the outputs of both attentions, and
            twice in the feed-forward network.
        backend: back-end of the deformable attention operator.
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
        self.self_attn = nn.MultiheadAttention(
            embed_dim, num_heads, dropout=dropout, batch_first=True
        )
        self.norm1 = nn.LayerNorm(embed_dim)
        self.cross_attn = MSDeformAttn(
            embed_dim,
            num_heads=num_heads,
            num_levels=num_levels,
            num_points=num_points,
            backend=backend,
        )
        self.norm2 = nn.LayerNorm(embed_dim)
        self.linear1 = nn.Linear(embed_dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, embed_dim)
        self.norm3 = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.self_attn.out_proj, self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(
        self, query: Tensor, query_pos: Tensor, reference_points: Tensor, memory: Memory
    ) -> Tensor:
        """Run one layer.

        Args:
            query: (N, Q, C).
            query_pos: (N, Q, C) position embedding, added to the queries of both attentions and
                to the keys of self-attention.
            reference_points: (N, Q, 2) points or (N, Q, 4) boxes, relative to the image without
                padding.
            memory: the encoder's output.

        Returns:
            (N, Q, C).
        """
        placed = query + query_pos
        attended, _ = self.self_attn(placed, placed, query, need_weights=False)
        query = self.norm1(query + self.dropout(attended))
        attended = self.cross_attn(
            query + query_pos,
            references_in_levels(reference_points, memory.valid_ratios),
            memory.tokens,
            memory.level_shapes,
            memory.padding_mask,
        )
        query = self.norm2(query + self.dropout(attended))
        hidden = self.dropout(self.linear1(query).relu())
        return self.norm3(query + self.dropout(self.linear2(hidden)))


class DeformableTransformerDecoder(nn.Module):
    """A stack of decoder layers with their class and box heads.

    A layer's boxes are its box head's output added, in logit space, to its references. With box
    refinement, the detached boxes are the references of the next layer, and every layer has its
    own heads. Without it, the references stay the same, and all layers share one pair of heads.

    Args:
        layers: the layers, first to last; at least one.
        num_classes: K.
        embed_dim: C.
        box_refinement: whether each layer refines the boxes of the layer before, see above.
        two_stage: whether the references of the queries are boxes rather than points.
        gradient_checkpointing: in training, store only the inputs of each layer and recompute
            its activations in the backward pass: less memory, more time.

    Raises:
        ValueError: two-stage queries without box refinement.
    """

    def __init__(
        self,
        layers: list[DeformableTransformerDecoderLayer],
        *,
        num_classes: int,
        embed_dim: int,
        box_refinement: bool,
        two_stage: bool,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if two_stage and not box_refinement:
            raise ValueError(
                "box_refinement must be true for two-stage queries, got false; proposals are "
                "boxes for the decoder to refine"
            )
        self.layers = nn.ModuleList(layers)
        self.box_refinement = box_refinement
        self.gradient_checkpointing = gradient_checkpointing
        class_head, box_head = ClassHead(embed_dim, num_classes), BoxHead(embed_dim)
        num_heads = len(layers) if box_refinement else 1
        self.class_heads = nn.ModuleList(copy.deepcopy(class_head) for _ in range(num_heads))
        self.box_heads = nn.ModuleList()
        for size_logit in initial_size_logits(num_heads, two_stage=two_stage):
            head = copy.deepcopy(box_head)
            nn.init.constant_(head.output.bias[2:], size_logit)
            self.box_heads.append(head)

    def forward(self, queries: Queries, memory: Memory) -> list[Predictions]:
        """Return the predictions of every layer, first to last."""
        query, reference_points = queries.query, queries.reference_points
        predictions = []
        for index, layer in enumerate(self.layers):
            inputs = (query, queries.query_pos, reference_points, memory)
            if self.gradient_checkpointing and self.training:
                query = call_and_forget(layer, *inputs)
            else:
                query = layer(*inputs)
            head = index if self.box_refinement else 0
            boxes = boxes_from_offsets(self.box_heads[head](query), reference_points)
            predictions.append(Predictions(self.class_heads[head](query), boxes, query))
            if self.box_refinement:
                reference_points = boxes.detach()
        return predictions


def references_in_levels(reference_points: Tensor, valid_ratios: Tensor) -> Tensor:
    """Convert references relative to the image to references relative to the padded levels.

    Args:
        reference_points: (N, Q, 2) points or (N, Q, 4) boxes cxcywh.
        valid_ratios: (N, L, 2) share of each level's (width, height) that is not padding.

    Returns:
        (N, Q, L, 2) or (N, Q, L, 4).
    """
    repeats = reference_points.shape[-1] // 2
    scale = torch.cat([valid_ratios] * repeats, dim=-1)
    return reference_points[:, :, None] * scale[:, None]
