import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from deformable_detr.layers.deform_conv import DeformConv2d, ModulatedDeformConv2d
from deformable_detr.ops import deform_conv2d_core_pytorch

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
GEOMETRIES = st.fixed_dictionaries(
    {
        "kernel_size": st.tuples(st.integers(1, 4), st.integers(1, 4)),
        "stride": pairs,
        "padding": st.tuples(st.integers(0, 3), st.integers(0, 3)),
        "dilation": pairs,
        "groups": st.sampled_from([1, 2, 4]),
        "offset_groups": st.sampled_from([1, 2, 4]),
        "bias": st.booleans(),
    }
)
SEEDS = st.integers(0, 10**6)


@given(GEOMETRIES, SEEDS)
def test_block_and_reference_equal_torchvision_for_any_geometry(geometry, seed):
    torch.manual_seed(seed)
    block = ModulatedDeformConv2d(4, 8, **geometry).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    features = torch.randn(2, 4, 11, 12, dtype=torch.float64)
    offset, mask = block.sampling(features)
    places = {name: geometry[name] for name in ("stride", "padding", "dilation")}
    arguments = (features, offset, block.weight, block.bias)
    expected = torchvision.ops.deform_conv2d(*arguments, **places, mask=mask)
    torch.testing.assert_close(block(features), expected)
    actual = deform_conv2d_core_pytorch(*arguments, **places, mask=mask)
    torch.testing.assert_close(actual, expected)


@given(GEOMETRIES, SEEDS)
def test_a_new_block_is_the_plain_convolution_for_any_geometry(geometry, seed):
    torch.manual_seed(seed)
    block = DeformConv2d(4, 8, **geometry).double()
    plain = nn.Conv2d(4, 8, **{key: geometry[key] for key in geometry if key != "offset_groups"})
    block.load_state_dict(plain.state_dict(), strict=False)
    features = torch.randn(2, 4, 11, 12, dtype=torch.float64)
    torch.testing.assert_close(block(features), plain.double()(features), rtol=0, atol=1e-10)
