import pytest
import torch
from torch import Tensor, nn

from deformable_detr.benchmark.multiply_adds import count_multiply_adds
from deformable_detr.layers.deform_conv import DeformConv2d, ModulatedDeformConv2d
from deformable_detr.layers.deform_kernel import DeformKernelConv2d


class Network(nn.Module):
    """Single layer with the interface of a detector."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, images: list[Tensor]) -> Tensor:
        return self.layer(torch.stack(images))


class SelfAttention(nn.Module):
    """Self-attention between the rows of the image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        rows = images[:, 0]
        return self.attention(rows, rows, rows)[0]


PLACES = 10 * 12
LAYERS = {
    "plain": (nn.Conv2d(3, 6, 3, padding=1), PLACES * 6 * 3 * 9),
    "strided, in groups": (nn.Conv2d(3, 6, 3, 2, 1, groups=3), PLACES // 4 * 6 * 9),
    "v1": (DeformConv2d(3, 6, 3, padding=1), PLACES * 3 * 9 * (6 + 18)),
    "v2": (ModulatedDeformConv2d(3, 6, 3, padding=1), PLACES * 3 * 9 * (6 + 27)),
    "depthwise v1": (DeformConv2d(3, 3, 3, padding=1, groups=3), PLACES * 9 * (3 + 3 * 18)),
    "deformable kernels": (
        DeformKernelConv2d(3, 3, 3, padding=1, groups=3, scope_size=5, image_offsets=True),
        PLACES * 9 * (3 + 2 * 3 * 18),
    ),
    "attention": (SelfAttention(12), 10 * 12 * 12 * 4 + 2 * 10 * 10 * 12),
}


@pytest.mark.parametrize("name", LAYERS)
def test_count_of_a_layer_agrees_with_a_count_by_hand(name: str) -> None:
    layer, expected = LAYERS[name]
    model = Network(layer)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert count_multiply_adds(model, height=10, width=12) == expected
    assert all(p.requires_grad for p in model.parameters())
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
