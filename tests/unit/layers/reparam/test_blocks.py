import copy
from functools import partial

import pytest
import torch
from helpers.branch_blocks import (
    CHANNELS,
    count_parameters,
    norms_of,
    oracle,
    pair,
    random_block,
    randomize,
)
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from deformable_detr.layers.norm import FixedStatisticsNorm2d
from deformable_detr.layers.reparam.blocks import ACBlock, DiverseBranchBlock
from deformable_detr.layers.reparam.branches import IdentityConv1x1, NormAndPad

BOTH = pytest.mark.parametrize("kind", [ACBlock, DiverseBranchBlock])
NORM = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]


def keys(*entries):
    """`name` for a weight, `name.*` for a norm."""
    names = []
    for entry in entries:
        prefix = entry.removesuffix(".*")
        names += [f"{prefix}.{name}" for name in NORM] if entry.endswith(".*") else [entry]
    return names


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_a_fused_diverse_branch_block_computes_the_same(kernel_size, stride, channels):
    in_channels, out_channels, groups = channels
    geometry = (kernel_size, stride, kernel_size // 2, 1, groups)
    assert_fuses(random_block(DiverseBranchBlock, in_channels, out_channels, *geometry))


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("kernel_size", "padding"), [(3, 1), (3, 0), (5, 1), (5, 2), (5, 3), (5, 4), (5, 6)]
)
def test_a_fused_asymmetric_block_computes_the_same(kernel_size, padding, stride, groups):
    block = random_block(ACBlock, 16, 32, kernel_size, stride, padding, 1, groups)
    assert_fuses(block)


@BOTH
@pytest.mark.parametrize("groups", [1, 2, 32])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel_size", "dilation"), [(3, 2), (5, 2), (3, (1, 3))])
def test_a_dilation_applies_to_all_branches(kind, kernel_size, dilation, stride, groups):
    rows, columns = dilation if isinstance(dilation, tuple) else (dilation, dilation)
    padding = (rows * (kernel_size // 2), columns * (kernel_size // 2))
    block = random_block(kind, 32, 32, kernel_size, stride, padding, dilation, groups)
    assert_fuses(block)
    features = torch.randn(1, 32, 13, 14)
    torch.testing.assert_close(block(features).double(), oracle(block, features), rtol=0, atol=1e-5)


@torch.no_grad()
def assert_fuses(block):
    """Compare a block with its fused form; float32 differs in the order of summation."""
    features = torch.randn(2, block.in_channels, 15, 16)
    exact = copy.deepcopy(block).double()
    truth = exact(features.double())
    assert (exact.fuse()(features.double()) - truth).abs().max() < 1e-12
    difference = (block.fuse()(features) - block(features)).abs().max()
    assert difference < 1e-4
    assert difference < 1e-5 * truth.abs().max().clamp(min=1)


@BOTH
@pytest.mark.parametrize("options", [{}, {"groups": 2, "stride": 2}, {"groups": 6}, {"bias": True}])
def test_a_block_is_the_sum_of_its_branches(kind, options):
    block = random_block(kind, 6, 6, 3, padding=1, **options).double()
    features = torch.randn(2, 6, 9, 10, dtype=torch.float64)
    torch.testing.assert_close(block(features), oracle(block, features))


def test_any_number_of_internal_channels_fuses():
    block = random_block(DiverseBranchBlock, 6, 8, 3, padding=1, groups=2, internal_channels=10)
    block = block.double()
    assert block.dbb_1x1_kxk.conv1.weight.shape == (10, 3, 1, 1)
    features = torch.randn(2, 6, 9, 10, dtype=torch.float64)
    torch.testing.assert_close(block(features), oracle(block, features))
    torch.testing.assert_close(block.fuse()(features), oracle(block, features))


@pytest.mark.parametrize(
    ("channels", "trained", "fused"),
    list(zip(CHANNELS, [42688, 21696, 1248, 21888], [18496, 9280, 320, 9248], strict=True)),
)
def test_a_diverse_branch_block_has_the_published_number_of_parameters(channels, trained, fused):
    in_channels, out_channels, groups = channels
    block = DiverseBranchBlock(in_channels, out_channels, 3, padding=1, groups=groups)
    assert count_parameters(block) == trained
    assert count_parameters(block.fuse()) == fused


@pytest.mark.parametrize("norm", ["frozen", "train"])
def test_the_state_dict_has_the_published_names(norm):
    dense = DiverseBranchBlock(4, 8, 3, padding=1, norm=norm)
    origin = ("dbb_origin.conv.weight", "dbb_origin.bn.*")
    average = ("dbb_avg.conv.weight", "dbb_avg.bn.bn.*", "dbb_avg.avgbn.*")
    pixel = ("dbb_1x1.conv.weight", "dbb_1x1.bn.*")
    chain = ("dbb_1x1_kxk.bn1.bn.*", "dbb_1x1_kxk.conv2.weight", "dbb_1x1_kxk.bn2.*")
    first = "dbb_1x1_kxk.idconv1.weight"
    assert list(dense.state_dict()) == keys(*origin, *average, *pixel, first, *chain)
    depthwise = DiverseBranchBlock(4, 4, 3, padding=1, groups=4, norm=norm)
    first = "dbb_1x1_kxk.conv1.weight"
    assert list(depthwise.state_dict()) == keys(*origin, "dbb_avg.avgbn.*", first, *chain)
    square = ("square_conv.weight", "square_bn.*")
    lines = ("ver_conv.weight", "hor_conv.weight", "ver_bn.*", "hor_bn.*")
    assert list(ACBlock(4, 8, 3, norm=norm).state_dict()) == keys(*square, *lines)


@BOTH
def test_fusing_changes_neither_the_block_nor_the_random_state(kind):
    block = random_block(kind, 6, 6, 3, padding=1)
    before = copy.deepcopy(block.state_dict())
    generator = torch.get_rng_state()
    first, second = block.fuse(), block.fuse()
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(first.weight, second.weight)
    assert first.weight.data_ptr() != second.weight.data_ptr()
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())
    assert first.weight.is_leaf
    assert first.weight.requires_grad


@BOTH
def test_fusing_with_batch_statistics_raises(kind):
    block = random_block(kind, 6, 6, 3, padding=1, norm="train").train()
    with pytest.raises(ValueError, match="must be in eval mode to be fused, got train mode"):
        block.fuse()
    features = torch.randn(1, 6, 8, 8)
    torch.testing.assert_close(block.eval().fuse()(features), block(features))
    frozen = random_block(kind, 6, 6, 3, padding=1).train()
    torch.testing.assert_close(frozen.fuse()(features), frozen(features))


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_fused_low_precision_block_is_rounded_once(kind, dtype):
    block = random_block(kind, 16, 16, 3, padding=1).to(dtype)
    exact = copy.deepcopy(block).double().equivalent_kernel()
    fused = block.fuse()
    assert torch.equal(fused.weight, exact.weight.to(dtype))
    assert torch.equal(fused.bias, exact.bias.to(dtype))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", [nn.BatchNorm2d, FixedStatisticsNorm2d])
def test_the_border_is_the_norm_of_zeros(kind, training):
    pad = NormAndPad(randomize(kind(5)), (2, 1)).train(training)
    features = torch.randn(2, 5, 6, 7)
    output = pad(features)
    assert output.shape == (2, 5, 10, 9)
    # The current statistics: in training, updated by this call.
    zeros = copy.deepcopy(pad.bn).eval()(torch.zeros(1, 5, 1, 1))
    inside = torch.zeros(10, 9, dtype=torch.bool)
    inside[2:-2, 1:-1] = True
    border = output[..., ~inside]
    torch.testing.assert_close(border, zeros[..., 0].expand_as(border), rtol=0, atol=1e-6)
    plain = copy.deepcopy(pad.bn)(features)
    torch.testing.assert_close(output[..., 2:-2, 1:-1], plain, rtol=0, atol=1e-6)


def test_no_gradient_flows_into_the_border():
    pad = NormAndPad(randomize(FixedStatisticsNorm2d(5)), (1, 1))
    output = pad(torch.randn(2, 5, 6, 7))
    output[..., 0, :].square().sum().backward()
    assert not pad.bn.weight.grad.any()
    assert not pad.bn.bias.grad.any()


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_the_identity_convolution_starts_as_the_identity(groups):
    conv = IdentityConv1x1(6, groups=groups)
    features = torch.randn(2, 6, 7, 8)
    assert torch.equal(conv(features), features)
    assert list(conv.state_dict()) == ["weight"]
    assert torch.equal(conv.half()(features.half()), features.half())
    moved = conv.to("meta")
    assert moved(features.half().to("meta")).device.type == "meta"


@BOTH
@pytest.mark.parametrize("options", [{"stride": 2}, {"groups": 8}, {"dilation": 2, "padding": 2}])
def test_a_block_starts_as_its_whole_convolution_and_norm(kind, options):
    options = {"padding": 1, **options}
    block = kind(8, 8, 3, **options).eval()
    own = (
        [block.square_conv, block.square_bn] if kind is ACBlock else [*block.dbb_origin.children()]
    )
    features = torch.randn(2, 8, 9, 10)
    wanted = nn.Sequential(*own)(features)
    torch.testing.assert_close(block(features), wanted, rtol=0, atol=1e-6)
    as_published = kind(8, 8, 3, init="paper", **options).eval()
    assert all((norm.weight == 1).all() for norm in norms_of(as_published))


@BOTH
@pytest.mark.parametrize("eps", [1e-5, 1e-3])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, nn.BatchNorm2d, FixedStatisticsNorm2d])
def test_a_block_starts_as_the_trained_pair_that_it_replaces(kind, norm, bias, eps):
    def make(channels):
        return norm(channels, eps=eps)

    trained = pair(make, 8, 8, 3, stride=2, padding=2, dilation=2, groups=2, bias=bias)
    block = kind.from_conv_norm(*trained)
    features = torch.randn(2, 8, 9, 10)
    wanted = trained(features)
    for training in (False, True):
        result = block.train(training)(features)
        torch.testing.assert_close(result, wanted, rtol=0, atol=1e-6)
    block, trained, features = block.double(), trained.double(), features.double()
    torch.testing.assert_close(block.fuse()(features), trained(features), rtol=0, atol=1e-6)


@BOTH
def test_the_trained_pair_has_the_published_names(kind):
    trained = pair(FrozenBatchNorm2d, 8, 8, 3, padding=1, bias=False)
    state = kind.from_conv_norm(*trained, norm="train").state_dict()
    conv, bn = {
        ACBlock: ("square_conv", "square_bn"),
        DiverseBranchBlock: ("dbb_origin.conv", "dbb_origin.bn"),
    }[kind]
    assert torch.equal(state[f"{conv}.weight"], trained[0].weight)
    for name, tensor in trained[1].state_dict().items():
        assert torch.equal(state[f"{bn}.{name}"], tensor)
    assert state[f"{bn}.num_batches_tracked"] == 0
    others = [n for n in kind.from_conv_norm(*trained, init="paper").modules() if hasattr(n, "eps")]
    assert sum(bool((norm.weight == 1).all()) for norm in others) == len(others) - 1


@BOTH
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm])
@pytest.mark.parametrize("momentum", [0.03, None])
def test_norms_in_training_have_the_settings_of_the_replaced_one(kind, norm, momentum):
    trained = pair(partial(norm, eps=2e-3, momentum=momentum), 8, 8, 3, padding=1, bias=False)
    trained[1].num_batches_tracked.fill_(5)
    block = kind.from_conv_norm(*trained, norm="train")
    norms = norms_of(block)
    assert {(type(one), one.eps, one.momentum) for one in norms} == {(norm, 2e-3, momentum)}
    assert all(one.affine and one.track_running_stats for one in norms)
    assert sorted(int(one.num_batches_tracked) for one in norms) == [0] * (len(norms) - 1) + [5]


@BOTH
@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_without_a_norm_keeps_its_bias(kind, bias):
    conv = randomize(nn.Conv2d(8, 8, 3, 2, 1, bias=bias))
    block = kind.from_conv_norm(conv, None)
    features = torch.randn(2, 8, 9, 10)
    torch.testing.assert_close(block(features), conv(features), rtol=0, atol=1e-6)
    assert (block.bias is not None) == bias
    randomize(block)
    torch.testing.assert_close(block.fuse()(features), block(features), rtol=0, atol=1e-5)


@BOTH
def test_a_replacement_keeps_dtype_and_mode(kind):
    trained = pair(nn.BatchNorm2d, 8, 8, 3, padding=1).double().train()
    block = kind.from_conv_norm(*trained)
    assert block.training
    assert {parameter.dtype for parameter in block.parameters()} == {torch.float64}


@BOTH
@pytest.mark.parametrize("norm", ["frozen", "train"])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_every_parameter_gets_a_finite_gradient_in_training(kind, norm, groups):
    block = randomize(kind(8, 8, 3, padding=1, groups=groups, norm=norm)).train()
    before = [norm.running_mean.clone() for norm in norms_of(block)]
    block(torch.randn(2, 8, 9, 10)).square().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    after = [norm.running_mean for norm in norms_of(block)]
    moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert all(moved) if norm == "train" else not any(moved)


@BOTH
def test_initially_only_the_gammas_of_the_other_branches_get_gradients(kind):
    block = kind.from_conv_norm(*pair(FrozenBatchNorm2d, 8, 8, 3, padding=1, bias=False))
    block(torch.randn(2, 8, 9, 10)).square().sum().backward()
    conv, norm = {
        ACBlock: ("ver_conv.weight", "ver_bn.weight"),
        DiverseBranchBlock: ("dbb_1x1.conv.weight", "dbb_1x1.bn.weight"),
    }[kind]
    assert not block.get_parameter(conv).grad.any()
    assert block.get_parameter(norm).grad.all()


@BOTH
@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_of_the_equivalent_kernel_are_exact(kind, groups):
    block = randomize(kind(2, 2, 3, padding=1, groups=groups, bias=True)).double()
    parameters = list(block.parameters())
    assert torch.autograd.gradcheck(lambda *_: tuple(block.equivalent_kernel()), parameters)


@BOTH
@pytest.mark.parametrize("options", [{"stride": 2}, {"groups": 2}, {"dilation": 2, "padding": 2}])
def test_gradients_of_a_block_are_exact(kind, options):
    block = randomize(kind(2, 2, 3, **{"padding": 1, **options})).double()
    features = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    # Norms with a border are excluded: finite differences would change the border.
    bordered = ("dbb_avg.bn.", "dbb_1x1_kxk.bn1.")
    smooth = [p for name, p in block.named_parameters() if not name.startswith(bordered)]
    assert torch.autograd.gradcheck(lambda x, *_: block(x), (features, *smooth))


@BOTH
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 4}, r"kernel_size must be square and odd, got 4"),
        ({"kernel_size": (1, 3)}, r"kernel_size must be square and odd, got \(1, 3\)"),
        ({"kernel_size": 0}, "kernel_size must be an integer of at least 1, or two of them, got 0"),
        ({"stride": 0}, "stride must be an integer of at least 1, or two of them, got 0"),
        ({"dilation": (1, 2, 3)}, r"dilation must be an integer .*, got \(1, 2, 3\)"),
        ({"padding": -1}, "padding must be an integer of at least 0, or two of them, got -1"),
        ({"padding": "same"}, "padding must be an integer of at least 0, .*, got 'same'"),
        ({"groups": 3}, "must be divisible by groups, got 8, 8 and 3"),
        ({"norm": "sync"}, r"norm must be one of \('frozen', 'train'\), got 'sync'"),
        ({"init": "zero"}, r"init must be one of \('own_branch', 'paper'\), got 'zero'"),
    ],
)
def test_invalid_arguments_raise(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**{"in_channels": 8, "out_channels": 8, "kernel_size": 3, "padding": 1, **arguments})


@pytest.mark.parametrize(
    ("padding", "dilation", "needed"), [(0, 1, "1, 1"), (2, 1, "1, 1"), (1, 2, "2, 2")]
)
def test_a_diverse_branch_block_with_another_padding_raises(padding, dilation, needed):
    with pytest.raises(ValueError, match=rf"dilation \* \(kernel_size // 2\) = \({needed}\), got"):
        DiverseBranchBlock(8, 8, 3, 1, padding, dilation)


def test_internal_channels_not_divisible_by_groups_raise():
    with pytest.raises(ValueError, match="must be divisible by groups = 4, got 6"):
        DiverseBranchBlock(8, 8, 3, padding=1, groups=4, internal_channels=6)


@pytest.mark.parametrize(
    ("conv", "norm", "message"),
    [
        (nn.Conv2d(8, 8, 3, padding="same"), None, "conv must be an nn.Conv2d that pads with a"),
        (nn.Conv2d(8, 8, 3, padding_mode="circular"), None, "conv must be an nn.Conv2d that pads"),
        (nn.ConvTranspose2d(8, 8, 3), None, "conv must be an nn.Conv2d that pads with a number"),
        (
            nn.Conv2d(8, 8, 3),
            nn.GroupNorm(1, 8),
            "conv_norm must be a batch norm .*, got GroupNorm",
        ),
    ],
)
def test_an_unsupported_pair_raises(conv, norm, message):
    with pytest.raises(ValueError, match=message):
        ACBlock.from_conv_norm(conv, norm)


@BOTH
def test_repr_shows_the_geometry(kind):
    shown = repr(kind(8, 4, 3, 2, 1))
    assert "8, 4, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(1, 1)" in shown
