"""MLP: linear layers with ReLU between them."""

import itertools

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with a ReLU after each but the last.

    Args:
        input_dim: width of the input.
        hidden_dim: width between the layers.
        output_dim: width of the output.
        num_layers: number of linear layers, at least 1.
    """

    def __init__(
        self, input_dim: int, hidden_dim: int, output_dim: int, *, num_layers: int
    ) -> None:
        super().__init__()
        widths = [input_dim, *[hidden_dim] * (num_layers - 1), output_dim]
        self.layers = nn.ModuleList(
            nn.Linear(before, after) for before, after in itertools.pairwise(widths)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map (..., input_dim) to (..., output_dim)."""
        for layer in self.layers[:-1]:
            features = layer(features).relu()
        return self.layers[-1](features)
