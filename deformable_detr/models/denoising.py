"""Contrastive denoising: additional queries in training that start from noisy objects."""

from torch import Tensor, nn


class DenoisingQueries(nn.Module):
    """Queries made from noisy copies of the objects (DINO, Zhang et al., 2023).

    Args:
        num_classes: K.
        embed_dim: C.
    """

    def __init__(self, num_classes: int, embed_dim: int) -> None:
        super().__init__()
        self.label_embed = nn.Embedding(num_classes, embed_dim)

    def forward(self, labels: Tensor) -> Tensor:
        """Return the (..., C) content of queries with these labels."""
        return self.label_embed(labels)
