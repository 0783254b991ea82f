import itertools

import pytest
import torch
from helpers.branch_blocks import pair
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from deformable_detr.layers.norm import FixedStatisticsNorm2d
from deformable_detr.layers.reparam.algebra import (
    Kernel,
    add_branches,
    average_pool_as_conv,
    chain_1x1_kxk,
    concat_branches,
    fuse_conv_norm,
    kernel_of,
    pad_kernel,
)
from deformable_detr.layers.reparam.official_layout import as_official_conv_norm

LIMITS = {torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.fixture(params=list(LIMITS), ids=["float32", "float64"])
def dtype(request):
    return request.param


def random_kernel(out_channels, in_channels, *size, dtype):
    weight = torch.randn(out_channels, in_channels, *size, dtype=dtype) / in_channels
    return Kernel(weight, torch.randn(out_channels, dtype=dtype))


def assert_equal(result, wanted):
    assert result.dtype == wanted.dtype
    torch.testing.assert_close(result, wanted, rtol=0, atol=LIMITS[wanted.dtype])


@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, nn.BatchNorm2d, FixedStatisticsNorm2d])
@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_and_its_norm_are_one_convolution(norm, bias, dtype):
    both = pair(norm, 6, 8, 3, groups=2, bias=bias).to(dtype)
    features = torch.randn(2, 6, 7, 8, dtype=dtype)
    result = F.conv2d(features, *fuse_conv_norm(kernel_of(both[0]), both[1]), groups=2)
    assert_equal(result, both(features))


def test_the_sum_of_convolutions_is_one_convolution(dtype):
    kernels = [random_kernel(4, 3, 3, 3, dtype=dtype) for _ in range(3)]
    features = torch.randn(2, 3, 7, 8, dtype=dtype)
    wanted = sum(F.conv2d(features, *kernel, padding=1) for kernel in kernels)
    assert_equal(F.conv2d(features, *add_branches(*kernels), padding=1), wanted)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_1x1_convolution_then_another_is_one_convolution(groups, dtype):
    first = random_kernel(8, 4 // groups, 1, 1, dtype=dtype)
    second = random_kernel(12, 8 // groups, 3, 3, dtype=dtype)
    features = torch.randn(2, 4, 7, 8, dtype=dtype)
    between = F.conv2d(features, *first, groups=groups)
    wanted = F.conv2d(between, *second, groups=groups)
    chained = chain_1x1_kxk(first, second, groups=groups)
    assert_equal(F.conv2d(features, *chained, groups=groups), wanted)


def test_a_chain_sums_over_the_channels_in_between():
    first = random_kernel(4, 3, 1, 1, dtype=torch.float64)
    second = random_kernel(5, 4, 3, 3, dtype=torch.float64)
    weight = torch.zeros(5, 3, 3, 3, dtype=torch.float64)
    bias = second.bias.clone()
    for o, m, h, w in itertools.product(range(5), range(4), range(3), range(3)):
        bias[o] += second.weight[o, m, h, w] * first.bias[m]
        for i in range(3):
            weight[o, i, h, w] += second.weight[o, m, h, w] * first.weight[m, i, 0, 0]
    chained = chain_1x1_kxk(first, second)
    assert_equal(chained.weight, weight)
    assert_equal(chained.bias, bias)


def test_a_chain_is_exact_if_the_map_in_between_is_padded_with_the_first_bias():
    first = random_kernel(4, 3, 1, 1, dtype=torch.float64)
    second = random_kernel(5, 4, 3, 3, dtype=torch.float64)
    features = torch.randn(2, 3, 7, 8, dtype=torch.float64)
    between = F.conv2d(features, *first)
    border = first.bias[:, None, None]
    padded = F.pad(between - border, (1, 1, 1, 1)) + border
    result = F.conv2d(features, *chain_1x1_kxk(first, second), padding=1)
    assert_equal(result, F.conv2d(padded, *second))
    assert (result - F.conv2d(between, *second, padding=1)).abs().max() > 0.1


def test_a_grouped_chain_concatenates_the_chains_of_its_groups(dtype):
    first = random_kernel(8, 2, 1, 1, dtype=dtype)
    second = random_kernel(6, 4, 3, 3, dtype=dtype)
    halves = zip(*(t.chunk(2) for t in (*first, *second)), strict=True)
    separate = [chain_1x1_kxk(Kernel(w1, b1), Kernel(w2, b2)) for w1, b1, w2, b2 in halves]
    wanted = concat_branches(*separate)
    chained = chain_1x1_kxk(first, second, groups=2)
    assert_equal(chained.weight, wanted.weight)
    assert_equal(chained.bias, wanted.bias)


def test_concatenated_convolutions_are_one_convolution(dtype):
    kernels = [random_kernel(out, 3, 3, 3, dtype=dtype) for out in (2, 5)]
    features = torch.randn(2, 3, 7, 8, dtype=dtype)
    wanted = torch.cat([F.conv2d(features, *kernel) for kernel in kernels], dim=1)
    assert_equal(F.conv2d(features, *concat_branches(*kernels)), wanted)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("kernel_size", [2, 3, 5])
def test_average_pooling_is_a_convolution(groups, kernel_size, dtype):
    kernel = average_pool_as_conv(6, kernel_size, groups=groups, dtype=dtype)
    features = torch.randn(2, 6, 9, 8, dtype=dtype)
    wanted = F.avg_pool2d(features, kernel_size, stride=2, padding=1)
    assert_equal(F.conv2d(features, *kernel, stride=2, padding=1, groups=groups), wanted)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (3, 3), (5, 5)])
def test_a_padded_kernel_computes_the_same(size, dtype):
    kernel = random_kernel(4, 3, *size, dtype=dtype)
    features = torch.randn(2, 3, 9, 8, dtype=dtype)
    padded = pad_kernel(kernel, (5, 5))
    assert padded.weight.shape == (4, 3, 5, 5)
    wanted = F.conv2d(features, *kernel, padding=(size[0] // 2, size[1] // 2))
    assert_equal(F.conv2d(features, *padded, padding=2), wanted)


@pytest.mark.parametrize("size", [(4, 3), (1, 3), (3, 2)])
def test_padding_to_a_size_that_cannot_center_the_kernel_raises(size):
    kernel = random_kernel(4, 3, 3, 3, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"size must exceed \(3, 3\) by even numbers, got"):
        pad_kernel(kernel, size)


def test_adding_kernels_of_different_shapes_raises():
    small, large = (random_kernel(4, 3, k, k, dtype=torch.float32) for k in (1, 3))
    with pytest.raises(ValueError, match=r"kernels must have one shape, got .*; use pad_kernel"):
        add_branches(small, large)


@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (7, 3, 1, 1)])
def test_a_chain_of_mismatched_kernels_raises(shape):
    first = random_kernel(*shape, dtype=torch.float32)
    second = random_kernel(4, 8, 3, 3, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"the first weight must be 1x1 with 8 \* 1 output"):
        chain_1x1_kxk(first, second)


def test_the_official_layout_adds_the_bias_and_scales_by_one():
    conv = nn.Conv2d(6, 8, 3, padding=1, bias=False)
    norm = FrozenBatchNorm2d(8)
    kernel = random_kernel(8, 6, 3, 3, dtype=torch.float32)
    weight, state = as_official_conv_norm(*kernel)
    conv.load_state_dict({"weight": weight})
    norm.load_state_dict(state, strict=True)
    features = torch.randn(2, 6, 7, 8)
    wanted = F.conv2d(features, *kernel, padding=1)
    torch.testing.assert_close(norm(conv(features)), wanted)
    assert torch.equal(norm.running_var + norm.eps, torch.ones(8))


def test_the_transforms_are_differentiable():
    both = pair(FixedStatisticsNorm2d, 3, 4, 3).double()
    pixel = random_kernel(3, 2, 1, 1, dtype=torch.float64)
    inputs = [t.detach().requires_grad_() for t in (*pixel, *kernel_of(both[0]))]
    inputs += [both[1].weight, both[1].bias]

    def transform(weight1, bias1, weight2, bias2, *_):
        second = fuse_conv_norm(Kernel(weight2, bias2), both[1])
        first = Kernel(weight1, bias1)
        chained = chain_1x1_kxk(first, second)
        return add_branches(chained, pad_kernel(Kernel(chained.weight[..., :1, :1], bias2), (3, 3)))

    assert torch.autograd.gradcheck(transform, inputs)
