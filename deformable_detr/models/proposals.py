"""Two-stage queries: every memory token proposes a box; the best become the decoder's queries."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from deformable_detr.layers.position import box_embedding
from deformable_detr.models.heads import BoxHead, CenterOffset, ClassHead, in_logit_space
from deformable_detr.models.memory import cell_centers
from deformable_detr.structures import LevelShapes, Memory, Predictions, Queries

_VALID_RANGE = (0.01, 0.99)


class ProposalQueries(nn.Module):
    """Queries chosen from the memory (Deformable DETR paper, section 4.2).

    A token proposes a box around its own cell. The `num_queries` tokens with the highest logits
    become queries: the box, detached, is the reference, and its sine embedding makes the query's
    position. An image with fewer tokens than `num_queries` gets as many queries as it has tokens.

    In the paper, tokens are ranked by the logit of class 0, which is trained on all tokens to mean
    "an object of any class", and the content of a query is made from the same embedding as its
    position. Content may also be the token's own features, as in RT-DETR (Zhao et al., 2024), which
    learns faster from few images, or learned, by rank, with tokens that are ranked by their best
    class, as in DINO (Zhang et al., 2023, "mixed query selection").

    As in the official code, padded tokens, and those whose start box is too near the border or
    too large, may still be chosen if there are too few others; their box is the whole image
    shifted to its far corner, (1, 1, 1, 1), and has no gradient.

    Args:
        num_queries: Q.
        num_classes: K; if ranked by objectness, only class 0 is used, and the others are trained as
            background.
        embed_dim: C, a multiple of 4.
        content: source of a query's content, "box", "memory" or "learned", see above.
        ranking: logit that ranks the tokens: "objectness", that of class 0, or "class", the
            highest one.
        center_offset: unit of the center offsets of proposals, see `in_logit_space`.
        has_positions: whether queries have positions; the decoder may compute them instead.
        base_size: width and height that the boxes of the finest level start from, as a share of
            the image; they double from level to level.
    """

    def __init__(
        self,
        num_queries: int,
        *,
        num_classes: int,
        embed_dim: int,
        content: Literal["box", "memory", "learned"] = "box",
        ranking: Literal["objectness", "class"] = "objectness",
        center_offset: CenterOffset = "image",
        has_positions: bool = True,
        base_size: float,
    ) -> None:
        super().__init__()
        self.base_size = base_size
        self.ranking = ranking
        self.center_offset = center_offset
        self.num_queries = num_queries
        self.memory_proj = nn.Linear(embed_dim, embed_dim)
        self.memory_norm = nn.LayerNorm(embed_dim)
        self.class_head = ClassHead(embed_dim, num_classes)
        self.box_head = BoxHead(embed_dim)
        self.has_positions = has_positions
        self.content_of_box = content == "box"
        self.query_proj: nn.Linear | None = None
        self.query_norm: nn.LayerNorm | None = None
        # Position and content of the box embedding, as far as they are used.
        if made_from_box := embed_dim * (has_positions + self.content_of_box):
            self.query_proj = nn.Linear(2 * embed_dim, made_from_box)
            self.query_norm = nn.LayerNorm(made_from_box)
        nn.init.xavier_uniform_(self.memory_proj.weight)
        if self.query_proj is not None:
            nn.init.xavier_uniform_(self.query_proj.weight)
        self.content: nn.Parameter | None = None
        if content == "learned":
            self.content = nn.Parameter(torch.empty(num_queries, embed_dim))
            nn.init.xavier_uniform_(self.content)

    def forward(self, memory: Memory) -> tuple[Queries, Predictions]:
        """Return (N, Q, C) queries with (N, Q, 4) references, and the proposals.

        Returns:
            The queries, and proposals of all S tokens, or of the Q chosen ones where `ranking` is
            "class": its logits are trained there.
        """
        start, is_valid = proposal_logits(
            memory.level_shapes,
            memory.valid_ratios,
            memory.padding_mask,
            base_size=self.base_size,
        )
        tokens = memory.tokens.masked_fill(~is_valid[..., None], 0.0)
        features = self.memory_norm(self.memory_proj(tokens))
        logits = self.class_head(features)
        sizes = start[..., 2:].sigmoid()
        offsets = in_logit_space(self.box_head(features), sizes, self.center_offset)
        box_logits = offsets + start

        count = min(self.num_queries, logits.shape[1])
        ranks = logits[..., 0] if self.ranking == "objectness" else logits.amax(dim=-1)
        chosen = ranks.topk(count, dim=1).indices[..., None]
        reference_points = _take(box_logits.detach(), chosen).sigmoid()
        query_pos, query = self.from_boxes(reference_points, dtype=tokens.dtype)
        if self.content is not None:
            query = self.content[:count].expand(len(tokens), -1, -1)
        elif query is None:
            query = _take(features, chosen)
        if self.ranking == "class":
            logits, box_logits = _take(logits, chosen), _take(box_logits, chosen)
        queries = Queries(query, query_pos, reference_points)
        return queries, Predictions(logits, box_logits.sigmoid())

    def from_boxes(
        self, boxes: Tensor, *, dtype: torch.dtype
    ) -> tuple[Tensor | None, Tensor | None]:
        """Compute what queries have from their boxes.

        Args:
            boxes: (N, Q, 4) references, cxcywh in [0, 1].
            dtype: dtype of the result.

        Returns:
            (N, Q, C) positions, None if the decoder computes them; (N, Q, C) content, None if it
            has another source.
        """
        if self.query_proj is None or self.query_norm is None:
            return None, None
        embedding = box_embedding(boxes, self.query_proj.in_features)
        made = self.query_norm(self.query_proj(embedding.to(dtype)))
        if self.has_positions and self.content_of_box:
            query_pos, query = made.chunk(2, dim=-1)
            return query_pos, query
        return (made, None) if self.has_positions else (None, made)


def _take(values: Tensor, chosen: Tensor) -> Tensor:
    """Take the rows of (N, S, F) values at (N, Q, 1) indices."""
    return values.gather(1, chosen.expand(-1, -1, values.shape[2]))


def proposal_logits(
    level_shapes: LevelShapes,
    valid_ratios: Tensor,
    padding_mask: Tensor,
    *,
    base_size: float,
) -> tuple[Tensor, Tensor]:
    """Compute the start box of each token.

    Args:
        level_shapes: (height, width) of the L levels.
        valid_ratios: (N, L, 2) share of each level's (width, height) that is not padding.
        padding_mask: (N, S) bool.
        base_size: width and height at the finest level; they double from level to level.

    Returns:
        (N, S, 4) boxes cxcywh relative to the image without padding, in logit space, infinite
        for tokens that are padding or whose box leaves (0.01, 0.99); and (N, S) bool, False for
        those tokens.
    """
    centers = cell_centers(level_shapes, valid_ratios)
    sizes = torch.cat(
        [
            centers.new_full((height * width, 2), base_size * 2.0**level)
            for level, (height, width) in enumerate(level_shapes)
        ]
    )
    boxes = torch.cat((centers, sizes.expand_as(centers)), dim=-1)
    low, high = _VALID_RANGE
    is_valid = ((boxes > low) & (boxes < high)).all(-1) & ~padding_mask
    return boxes.logit().masked_fill(~is_valid[..., None], math.inf), is_valid
