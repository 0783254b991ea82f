"""Learned queries of the one-stage detector."""

import torch
from torch import nn

from deformable_detr.layers.precision import at_least_float32, without_autocast
from deformable_detr.structures import Memory, Predictions, Queries


class LearnedQueries(nn.Module):
    """Learned queries, the same for every image, and reference points computed from them.

    Args:
        num_queries: Q.
        embed_dim: C.
    """

    def __init__(self, num_queries: int, embed_dim: int) -> None:
        super().__init__()
        # The first half is the position, the second the content.
        self.embed = nn.Parameter(torch.empty(num_queries, 2 * embed_dim))
        self.reference_points = nn.Linear(embed_dim, 2)
        nn.init.normal_(self.embed)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def forward(self, memory: Memory) -> tuple[Queries, Predictions | None]:
        """Return queries for every image of the memory, and None: there are no proposals."""
        embed = self.embed.expand(len(memory.tokens), -1, -1)
        query_pos, query = embed.chunk(2, dim=-1)
        with without_autocast(query_pos.device):
            reference_points = self.reference_points(at_least_float32(query_pos)).sigmoid()
        return Queries(query, query_pos, reference_points), None
