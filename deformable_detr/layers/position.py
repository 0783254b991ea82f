"""Position embeddings of image cells (sine, learned) and of boxes (sine)."""

import math

import torch
from torch import Tensor, nn

TEMPERATURE = 10000.0  # Attention Is All You Need, section 3.5
_EPS = 1e-6


def sine_features(
    positions: Tensor, num_features: int, *, temperature: float = TEMPERATURE
) -> Tensor:
    """Compute sines and cosines of positions at geometrically spaced wavelengths, interleaved.

    Feature 2j is sin(p / t_j), feature 2j + 1 is cos(p / t_j), with t_j = T^(2j / num_features).

    Args:
        positions: (...) angles.
        num_features: number of features per position, even.
        temperature: T, the ratio of the longest to the shortest wavelength.

    Returns:
        (..., num_features) in the dtype of `positions`.
    """
    pair = torch.arange(num_features // 2, dtype=positions.dtype, device=positions.device)
    angles = positions[..., None] / temperature ** (2 * pair / num_features)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


def box_embedding(boxes: Tensor, num_features: int) -> Tensor:
    """Compute the sine embedding of boxes: center x, center y, width, height, in this order.

    Args:
        boxes: (..., 4) cxcywh in [0, 1].
        num_features: a multiple of 8; each of the four numbers gets a quarter.

    Returns:
        (..., num_features).
    """
    return sine_features(boxes * (2 * math.pi), num_features // 4).flatten(-2)


class SinePositionEmbedding(nn.Module):
    """Fixed embedding of a cell's position within the image without padding.

    Cells are counted from 1, and normalized to 2 pi by the image's own extent. The first half of
    the channels embeds y, the second half x. In Deformable DETR half a cell is subtracted, so that
    0 and 2 pi are the outer edges; DETR and DINO do not.

    Args:
        embed_dim: C, a multiple of 4.
        temperature: see `sine_features`; 20 in the official DINO.
        offset: cells that are added to the count; 0 in the official DINO.
    """

    def __init__(
        self, embed_dim: int, *, temperature: float = TEMPERATURE, offset: float = -0.5
    ) -> None:
        super().__init__()
        if embed_dim % 4:
            raise ValueError(f"embed_dim must be a multiple of 4, got {embed_dim}")
        self.embed_dim = embed_dim
        self.temperature = temperature
        self.offset = offset

    def forward(self, padding_mask: Tensor) -> Tensor:
        """Embed (N, H, W) bool, True on padding, as (N, C, H, W) float32.

        A row or column that is all padding gets large but finite angles, which are never read.
        """
        valid = ~padding_mask
        features = []
        for axis in (1, 2):  # y, then x
            count = valid.cumsum(axis, dtype=torch.float32)
            extent = count.select(axis, -1).unsqueeze(axis)
            angle = (count + self.offset) / (extent + _EPS) * (2 * math.pi)
            features.append(sine_features(angle, self.embed_dim // 2, temperature=self.temperature))
        return torch.cat(features, dim=-1).permute(0, 3, 1, 2)


class LearnedPositionEmbedding(nn.Module):
    """Learned embedding of a cell's column (first half of the channels) and row (second half).

    Args:
        embed_dim: C, even.
        max_cells: maximum number of rows or columns of a map; 50 in the official code.
    """

    def __init__(self, embed_dim: int, *, max_cells: int) -> None:
        super().__init__()
        if embed_dim % 2:
            raise ValueError(f"embed_dim must be even, got {embed_dim}")
        self.column_embed = nn.Embedding(max_cells, embed_dim // 2)
        self.row_embed = nn.Embedding(max_cells, embed_dim // 2)
        nn.init.uniform_(self.column_embed.weight)
        nn.init.uniform_(self.row_embed.weight)

    def forward(self, padding_mask: Tensor) -> Tensor:
        """Embed (N, H, W) bool as (N, C, H, W).

        Raises:
            ValueError: H or W is above `max_cells`.
        """
        N, H, W = padding_mask.shape
        limit = self.row_embed.num_embeddings
        if max(H, W) > limit:
            raise ValueError(
                f"a map must have at most max_cells = {limit} rows and columns, got {H} x {W}; "
                "raise model.position.max_cells or use the sine embedding"
            )
        columns = self.column_embed.weight[:W].expand(H, -1, -1)
        rows = self.row_embed.weight[:H, None].expand(-1, W, -1)
        embedding = torch.cat((columns, rows), dim=-1).permute(2, 0, 1)
        return embedding.expand(N, -1, -1, -1)
