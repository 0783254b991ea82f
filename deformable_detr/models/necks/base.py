"""Interface of a neck."""

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from deformable_detr.structures import Pyramid


class Neck(nn.Module):
    """A module that maps backbone features to the model's width and number of levels.

    Attributes:
        num_levels: L.
    """

    num_levels: int

    @abstractmethod
    def forward(self, features: Sequence[Tensor], padding_mask: Tensor) -> Pyramid:
        """Map features to the pyramid.

        Args:
            features: (N, C_l, H_l, W_l) maps, finest first.
            padding_mask: (N, H, W) bool, True on the padding of the images.
        """
