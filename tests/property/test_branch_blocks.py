import torch
from helpers.branch_blocks import oracle, randomize
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from deformable_detr.layers.reparam.algebra import (
    Kernel,
    average_pool_as_conv,
    chain_1x1_kxk,
    pad_kernel,
)
from deformable_detr.layers.reparam.blocks import ACBlock, DiverseBranchBlock


@st.composite
def geometries(draw, *, padding=None):
    """Draw the arguments of a convolution in order, and an input that is large enough."""
    groups = draw(st.sampled_from([1, 2, 3]))
    channels = [groups * draw(st.integers(1, 2)) for _ in range(2)]
    kernel_size = draw(st.sampled_from([1, 3, 5]))
    stride = tuple(draw(st.integers(1, 3)) for _ in range(2))
    dilation = tuple(draw(st.integers(1, 3)) for _ in range(2))
    reach = tuple(d * (kernel_size // 2) for d in dilation)
    padding = reach if padding is None else tuple(draw(padding) for _ in range(2))
    size = [2 * r + 1 + draw(st.integers(0, 4)) for r in reach]
    features = torch.randn(1, channels[0], *size, dtype=torch.float64)
    return (*channels, kernel_size, stride, padding, dilation, groups), features


def assert_is_its_convolution(block, features):
    randomize(block).double().eval()
    wanted = oracle(block, features)
    torch.testing.assert_close(block(features), wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(block.fuse()(features), wanted, rtol=1e-10, atol=1e-12)


@given(geometries())
def test_a_diverse_branch_block_is_the_convolution_that_it_fuses_into(case):
    arguments, features = case
    assert_is_its_convolution(DiverseBranchBlock(*arguments), features)


@given(geometries(padding=st.integers(0, 4)))
def test_an_asymmetric_block_is_the_convolution_that_it_fuses_into(case):
    arguments, features = case
    assert_is_its_convolution(ACBlock(*arguments), features)


@given(geometries(), st.sampled_from([ACBlock, DiverseBranchBlock]), st.booleans())
def test_a_block_starts_as_the_pair_that_it_replaces(case, kind, bias):
    arguments, features = case
    trained = nn.Sequential(nn.Conv2d(*arguments, bias=bias), FrozenBatchNorm2d(arguments[1]))
    randomize(trained).double()
    block = kind.from_conv_norm(*trained)
    assert block.fuse().weight.shape == trained[0].weight.shape
    torch.testing.assert_close(block(features), trained(features), rtol=1e-10, atol=1e-12)


@st.composite
def grouped_chains(draw):
    groups = draw(st.integers(1, 4))
    before, between, after = (groups * draw(st.integers(1, 3)) for _ in range(3))
    size = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    first = torch.randn(between, before // groups, 1, 1), torch.randn(between)
    second = torch.randn(after, between // groups, *size), torch.randn(after)
    return [Kernel(*(t.double() for t in kernel)) for kernel in (first, second)], groups


@given(grouped_chains())
def test_a_chain_of_any_sizes_is_one_convolution(case):
    (first, second), groups = case
    features = torch.randn(1, first.weight.shape[1] * groups, 6, 5, dtype=torch.float64)
    wanted = F.conv2d(F.conv2d(features, *first, groups=groups), *second, groups=groups)
    result = F.conv2d(features, *chain_1x1_kxk(first, second, groups=groups), groups=groups)
    torch.testing.assert_close(result, wanted, rtol=1e-10, atol=1e-12)


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 2),
)
def test_an_average_of_any_size_is_one_convolution(groups, share, kernel_size, stride, padding):
    padding = min(padding, kernel_size // 2)
    channels = groups * share
    kernel = average_pool_as_conv(channels, kernel_size, groups=groups, dtype=torch.float64)
    features = torch.randn(1, channels, 7, 6, dtype=torch.float64)
    result = F.conv2d(features, *kernel, stride=stride, padding=padding, groups=groups)
    wanted = F.avg_pool2d(features, kernel_size, stride, padding)
    torch.testing.assert_close(result, wanted, rtol=1e-10, atol=1e-12)


@given(st.tuples(st.integers(1, 4), st.integers(1, 4)), st.integers(0, 2), st.integers(0, 2))
def test_a_padded_kernel_with_as_much_more_padding_is_the_same(size, rows, columns):
    kernel = Kernel(torch.randn(2, 3, *size).double(), torch.randn(2).double())
    padded = pad_kernel(kernel, (size[0] + 2 * rows, size[1] + 2 * columns))
    features = torch.randn(1, 3, 6, 5, dtype=torch.float64)
    result = F.conv2d(features, *padded, padding=(rows, columns))
    torch.testing.assert_close(result, F.conv2d(features, *kernel), rtol=1e-10, atol=1e-12)
