"""Decoder: queries attend to each other and to the memory, with predictions at every layer."""

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from deformable_detr.boxes import DINO_EPS, INVERSE_SIGMOID_EPS
from deformable_detr.layers.attention import MSDeformAttn
from deformable_detr.layers.mlp import MLP
from deformable_detr.layers.position import box_embedding
from deformable_detr.layers.recompute import call_and_forget
from deformable_detr.models.heads import (
    BoxHead,
    CenterOffset,
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
        self,
        query: Tensor,
        query_pos: Tensor,
        reference_points: Tensor,
        memory: Memory,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Run one layer.

        Args:
            query: (N, Q, C).
            query_pos: (N, Q, C) position embedding, added to the queries of both attentions and
                to the keys of self-attention.
            reference_points: (N, Q, 2) points or (N, Q, 4) boxes, relative to the image without
                padding.
            memory: the encoder's output.
            attention_mask: (Q, Q) bool for self-attention, see `Queries`.

        Returns:
            (N, Q, C).
        """
        placed = query + query_pos
        attended, _ = self.self_attn(
            placed, placed, query, attn_mask=attention_mask, need_weights=False
        )
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

    DINO (Zhang et al., 2023) differs in three ways, which are arguments here. Query positions are
    computed from the references anew in each layer, and the heads then read a common norm of the
    layers' outputs; the references of the next layer are refined with the output before that norm.
    "Look forward twice": the box that a layer predicts is an offset from the box of the layer
    before, not detached, so that the loss of a layer also trains the box head of the layer before.
    And all layers may share their heads.

    Args:
        layers: the layers, first to last; at least one.
        num_classes: K.
        embed_dim: C.
        box_refinement: whether each layer refines the boxes of the layer before, see above.
        two_stage: whether the references of the queries are boxes rather than points.
        position: source of the query positions: "query", which has them, or "reference".
        look_forward_twice: see above.
        center_offset: unit of the center offsets, see `in_logit_space`; "box" for two-stage queries
            only.
        share_heads: whether all layers have the same heads; without box refinement they always do.
        gradient_checkpointing: in training, store only the inputs of each layer and recompute
            its activations in the backward pass: less memory, more time.

    Raises:
        ValueError: two-stage queries or look forward twice without box refinement, or positions or
            center offsets in units of references that are points.
    """

    def __init__(
        self,
        layers: list[DeformableTransformerDecoderLayer],
        *,
        num_classes: int,
        embed_dim: int,
        box_refinement: bool,
        two_stage: bool,
        position: Literal["query", "reference"] = "query",
        look_forward_twice: bool = False,
        center_offset: CenterOffset = "image",
        share_heads: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if two_stage and not box_refinement:
            raise ValueError(
                "box_refinement must be true for two-stage queries, got false; proposals are "
                "boxes for the decoder to refine"
            )
        if look_forward_twice and not box_refinement:
            raise ValueError("box_refinement must be true for look_forward_twice, got false")
        if position == "reference" and not two_stage:
            raise ValueError("two_stage must be true for position='reference', got false")
        if center_offset == "box" and not two_stage:
            raise ValueError("two_stage must be true for center_offset='box', got false")
        self.layers = nn.ModuleList(layers)
        self.box_refinement = box_refinement
        self.look_forward_twice = look_forward_twice
        self.center_offset = center_offset
        self.gradient_checkpointing = gradient_checkpointing
        self.norm: nn.LayerNorm | None = None
        self.position_head: MLP | None = None
        if position == "reference":
            self.norm = nn.LayerNorm(embed_dim)
            self.position_head = MLP(2 * embed_dim, embed_dim, embed_dim, num_layers=2)
            for name, parameter in self.position_head.named_parameters():
                if name.endswith("weight"):
                    nn.init.xavier_uniform_(parameter)
        # Each as its source; DINO's also clamps boxes that are smaller.
        self.eps = INVERSE_SIGMOID_EPS if position == "query" else DINO_EPS
        class_head, box_head = ClassHead(embed_dim, num_classes), BoxHead(embed_dim)
        num_heads = len(layers) if box_refinement and not share_heads else 1
        self.class_heads = nn.ModuleList(copy.deepcopy(class_head) for _ in range(num_heads))
        self.box_heads = nn.ModuleList()
        for size_logit in initial_size_logits(num_heads, two_stage=two_stage):
            head = copy.deepcopy(box_head)
            nn.init.constant_(head.output.bias[2:], size_logit)
            self.box_heads.append(head)

    def forward(self, queries: Queries, memory: Memory) -> list[Predictions]:
        """Return the predictions of every layer, first to last."""
        query, reference_points = queries.query, queries.reference_points
        # What the next boxes are offsets from; its gradient reaches the layer before.
        start = reference_points
        predictions = []
        for index, layer in enumerate(self.layers):
            query_pos = self._positions(queries, reference_points, memory)
            inputs = (query, query_pos, reference_points, memory, queries.attention_mask)
            if self.gradient_checkpointing and self.training:
                query = call_and_forget(layer, *inputs)
            else:
                query = layer(*inputs)
            head = min(index, len(self.box_heads) - 1)
            hidden = query if self.norm is None else self.norm(query)
            offsets = self.box_heads[head](hidden)
            boxes = self._boxes(offsets, start)
            predictions.append(Predictions(self.class_heads[head](hidden), boxes, hidden))
            if self.box_refinement and index < len(self.layers) - 1:
                refined = boxes
                if start is not reference_points or self.norm is not None:
                    if self.norm is not None:
                        offsets = self.box_heads[head](query)
                    refined = self._boxes(offsets, reference_points)
                reference_points = refined.detach()
                start = refined if self.look_forward_twice else reference_points
        return predictions

    def _boxes(self, offsets: Tensor, reference_points: Tensor) -> Tensor:
        return boxes_from_offsets(
            offsets, reference_points, eps=self.eps, center_offset=self.center_offset
        )

    def _positions(self, queries: Queries, reference_points: Tensor, memory: Memory) -> Tensor:
        """Return (N, Q, C) position embeddings of the queries in a layer."""
        if self.position_head is None:
            assert queries.query_pos is not None  # the queries of this decoder have them
            return queries.query_pos
        x, y, width, height = (
            reference_points * memory.valid_ratios[:, :1].repeat(1, 1, 2)
        ).unbind(-1)
        num_features = 2 * queries.query.shape[-1]
        embedding = box_embedding(torch.stack((y, x, width, height), dim=-1), num_features)
        return self.position_head(embedding.to(queries.query.dtype))


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
