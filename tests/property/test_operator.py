import torch
from hypothesis import given
from hypothesis import strategies as st

from deformable_detr.ops import ms_deform_attn

SHAPES = ((3, 4), (2, 2))


def inputs(seed):
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(1, 16, 2, 3, generator=generator, dtype=torch.float64)
    other = torch.randn(1, 16, 2, 3, generator=generator, dtype=torch.float64)
    locations = 1.4 * torch.rand(1, 5, 2, 2, 2, 2, generator=generator, dtype=torch.float64) - 0.2
    weights = torch.rand(1, 5, 2, 2, 2, generator=generator, dtype=torch.float64)
    return value, other, locations, weights


@given(st.integers(0, 10**6), st.floats(-3, 3))
def test_linear_in_value(seed, scale):
    value, other, locations, weights = inputs(seed)
    together = ms_deform_attn(value + scale * other, SHAPES, locations, weights)
    apart = ms_deform_attn(value, SHAPES, locations, weights)
    apart = apart + scale * ms_deform_attn(other, SHAPES, locations, weights)
    torch.testing.assert_close(together, apart)


@given(st.integers(0, 10**6), st.floats(-3, 3))
def test_linear_in_weights(seed, scale):
    value, _, locations, weights = inputs(seed)
    other = weights.flip(1)
    together = ms_deform_attn(value, SHAPES, locations, weights + scale * other)
    apart = ms_deform_attn(value, SHAPES, locations, weights)
    apart = apart + scale * ms_deform_attn(value, SHAPES, locations, other)
    torch.testing.assert_close(together, apart)
