"""Two-stage queries: every memory token proposes a box; the best become the decoder's queries."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from deformable_detr.layers.position import sine_features
from deformable_detr.models.heads import BoxHead, ClassHead
from deformable_detr.models.memory import cell_centers
from deformable_detr.structures import LevelShapes, Memory, Predictions, Queries

_VALID_RANGE = (0.01, 0.99)


class ProposalQueries(nn.Module):
    """Queries chosen from the memory (Deformable DETR paper, section 4.2).

    A token proposes a box around its own cell. The `num_queries` tokens with the highest logit
    of class 0, which is trained to mean "an object of any class", become queries: the box,
    detached, is the reference, and its sine embedding makes the query's position. The content is
    made from the same embedding, as in the paper, or is the token's own features, as in RT-DETR
    (Zhao et al., 2024), which learns faster from few images. An image with fewer tokens than
    `num_queries` gets as many queries as it has tokens.

    As in the official code, padded tokens, and those whose start box is too near the border or
    too large, may still be chosen if there are too few others; their box is the whole image
    shifted to its far corner, (1, 1, 1, 1), and has no gradient.

    Args:
        num_queries: Q.
        num_classes: K; only class 0 is used, the others are trained as background.
        embed_dim: C, a multiple of 4.
        content: source of a query's content, "box" or "memory", see above.
        base_size: width and height that the boxes of the finest level start from, as a share of
            the image; they double from level to level.
    """

    def __init__(
        self,
        num_queries: int,
        *,
        num_classes: int,
        embed_dim: int,
        content: Literal["box", "memory"] = "box",
        base_size: float,
    ) -> None:
        super().__init__()
        self.base_size = base_size
        self.content = content
        self.num_queries = num_queries
        self.memory_proj = nn.Linear(embed_dim, embed_dim)
        self.memory_norm = nn.LayerNorm(embed_dim)
        self.class_head = ClassHead(embed_dim, num_classes)
        self.box_head = BoxHead(embed_dim)
        made_from_box = 2 * embed_dim if content == "box" else embed_dim
        self.query_proj = nn.Linear(2 * embed_dim, made_from_box)
        self.query_norm = nn.LayerNorm(made_from_box)
        nn.init.xavier_uniform_(self.memory_proj.weight)
        nn.init.xavier_uniform_(self.query_proj.weight)

    def forward(self, memory: Memory) -> tuple[Queries, Predictions]:
        """Return (N, Q, C) queries with (N, Q, 4) references, and the proposals of all S tokens."""
        start, is_valid = proposal_logits(
            memory.level_shapes,
            memory.valid_ratios,
            memory.padding_mask,
            base_size=self.base_size,
        )
        tokens = memory.tokens.masked_fill(~is_valid[..., None], 0.0)
        features = self.memory_norm(self.memory_proj(tokens))
        logits = self.class_head(features)
        box_logits = self.box_head(features) + start

        count = min(self.num_queries, logits.shape[1])
        chosen = logits[..., 0].topk(count, dim=1).indices[..., None]
        chosen_logits = box_logits.detach().gather(1, chosen.expand(-1, -1, 4))
        embedding = box_embedding(chosen_logits.sigmoid(), self.query_proj.in_features)
        query_pos = self.query_norm(self.query_proj(embedding.to(tokens.dtype)))
        if self.content == "memory":
            query = features.gather(1, chosen.expand(-1, -1, features.shape[2]))
        else:
            query_pos, query = query_pos.chunk(2, dim=-1)
        queries = Queries(query, query_pos, chosen_logits.sigmoid())
        return queries, Predictions(logits, box_logits.sigmoid())


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


def box_embedding(boxes: Tensor, num_features: int) -> Tensor:
    """Compute the sine embedding of boxes: center x, center y, width, height, in this order.

    Args:
        boxes: (..., 4) cxcywh in [0, 1].
        num_features: a multiple of 8; each of the four numbers gets a quarter.

    Returns:
        (..., num_features).
    """
    return sine_features(boxes * (2 * math.pi), num_features // 4).flatten(-2)
