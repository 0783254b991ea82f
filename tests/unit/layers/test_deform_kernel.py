import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import deform_conv2d

from deformable_detr.layers.deform_kernel import (
    DeformKernelConv2d,
    DeformKernelResidual,
    centered_scope_weight,
)

GEOMETRIES = [
    (1, 1, 1),
    (2, 1, 1),
    (1, 2, 2),
    ((2, 1), (0, 3), (1, 2)),
]  # stride, padding, dilation


def block(scope_size, kernel_size=3, channels=4, **options):
    return DeformKernelConv2d(
        channels, channels, kernel_size, groups=channels, scope_size=scope_size, **options
    )


def generators(module):
    return {
        name: child
        for name, child in module.named_modules()
        if name.split(".")[-1] in ("rotation_conv", "offset_conv", "fc")
    }


def randomize(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


@pytest.mark.parametrize("mode", ["local", "global"])
@pytest.mark.parametrize(("stride", "padding", "dilation"), GEOMETRIES)
def test_a_scope_as_large_as_the_kernel_starts_as_the_plain_convolution(
    mode, stride, padding, dilation
):
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    convolution = block(3, mode=mode, **geometry)
    x = torch.randn(2, 4, 9, 8)
    expected = F.conv2d(x, convolution.weight, convolution.bias, groups=4, **geometry)
    torch.testing.assert_close(convolution(x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["local", "global"])
def test_a_scope_of_five_starts_with_its_central_nine_cells(mode):
    convolution = block(5, mode=mode, padding=1, bias=False)
    x = torch.randn(2, 4, 7, 6)
    center = convolution.weight[:, :, 1:4, 1:4].clone()
    expected = F.conv2d(x, center, padding=1, groups=4)
    torch.testing.assert_close(convolution(x), expected, rtol=0, atol=1e-6)
    with torch.no_grad():  # no other cell is read, not even with a tiny weight
        convolution.weight[:, :, [0, 4]] = 1e20
        convolution.weight[..., [0, 4]] = 1e20
    torch.testing.assert_close(convolution(x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rotation_groups", [1, 2])
def test_global_mode_gives_every_image_its_own_kernel(rotation_groups):
    convolution = randomize(
        block(4, mode="global", padding=1, stride=2, rotation_groups=rotation_groups)
    )
    x = torch.randn(2, 4, 7, 6) + torch.tensor([2.0, -2.0]).view(2, 1, 1, 1)
    apart = torch.cat([convolution(x[:1]), convolution(x[1:])])
    torch.testing.assert_close(convolution(x), apart, rtol=0, atol=1e-5)
    swapped = torch.cat([convolution(x[[1, 0]])[[1, 0]]])
    torch.testing.assert_close(swapped, apart, rtol=0, atol=1e-5)


def test_global_mode_is_local_mode_with_one_rotation_everywhere():
    over_all = randomize(block(4, mode="global", padding=1))
    torch.nn.init.zeros_(over_all.fc.weight)
    local = block(4, padding=1)
    local.load_state_dict(
        {
            "weight": over_all.weight,
            "bias": over_all.bias,
            "rotation_conv.weight": torch.zeros(18, 4, 3, 3),
            "rotation_conv.bias": over_all.fc.bias,
        }
    )
    x = torch.randn(2, 4, 7, 6)
    torch.testing.assert_close(over_all(x), local(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("stride", "padding", "dilation"), GEOMETRIES)
def test_with_image_offsets_and_no_rotation_it_is_a_deformable_convolution(
    stride, padding, dilation
):
    convolution = randomize(
        block(3, stride=stride, padding=padding, dilation=dilation, image_offsets=True)
    )
    for parameter in convolution.rotation_conv.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.randn(2, 4, 9, 8)
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    steps = torch.tensor(convolution.geometry.dilation).repeat(9).view(18, 1, 1)
    offsets = convolution.offset_conv(x) * steps
    expected = deform_conv2d(x, offsets, convolution.weight, convolution.bias, **geometry)
    torch.testing.assert_close(convolution(x), expected, rtol=0, atol=1e-5)

    repository = block(3, image_offsets=True, kernel_offsets=False, **geometry)
    repository.load_state_dict(
        {k: v for k, v in convolution.state_dict().items() if "rotation" not in k}
    )
    torch.testing.assert_close(repository(x), expected, rtol=0, atol=1e-5)


def test_with_zero_image_offsets_it_is_the_local_mode():
    both = randomize(block(4, padding=1, image_offsets=True))
    for parameter in both.offset_conv.parameters():
        torch.nn.init.zeros_(parameter)
    local = block(4, padding=1)
    local.load_state_dict({k: v for k, v in both.state_dict().items() if "offset" not in k})
    x = torch.randn(2, 4, 9, 8)
    torch.testing.assert_close(both(x), local(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, {"rotation_conv"}),
        ({"mode": "global"}, {"fc"}),
        ({"image_offsets": True}, {"rotation_conv", "offset_conv"}),
        ({"image_offsets": True, "kernel_offsets": False}, {"offset_conv"}),
    ],
)
def test_generators_start_at_zero_and_get_gradients(options, names):
    convolution = block(4, padding=1, **options)
    found = generators(convolution)
    assert set(found) == names
    for generator in found.values():
        assert not generator.weight.any()
        assert not generator.bias.any()
    convolution(torch.randn(2, 4, 7, 6)).square().sum().backward()
    for generator in found.values():
        assert generator.weight.grad.abs().max() > 0


def test_the_initial_kernel_does_not_depend_on_the_input():
    x = torch.randn(1, 4, 7, 6)
    for options in ({}, {"mode": "global"}, {"image_offsets": True}):
        convolution = block(4, padding=1, bias=False, **options)
        torch.testing.assert_close(convolution(3 * x), 3 * convolution(x), rtol=1e-5, atol=1e-6)
        randomize(convolution)
        assert (convolution(3 * x) - 3 * convolution(x)).abs().max() > 0.01


def test_initial_values_of_the_scope_have_the_bound_of_the_kernel_size():
    weight = DeformKernelConv2d(512, 512, 3, groups=512, scope_size=7).weight
    assert weight.abs().max() <= 1 / 3
    assert weight.std().item() == pytest.approx(1 / 3 / 3**0.5, rel=0.02)


def test_the_default_scope_is_one_cell_larger_than_the_kernel():
    assert block(None, kernel_size=(1, 3)).weight.shape == (4, 1, 2, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": 1}, "a depthwise convolution.*, got 8, 8 and 1"),
        ({"out_channels": 16}, "a depthwise convolution.*, got 8, 16 and 8"),
        ({"scope_size": (4, 2)}, r"scope_size must be at least kernel_size, got \(4, 2\) and"),
        ({"clip_to_scope": (0, 3)}, r"clip_to_scope must be True or False, got \(0, 3\)"),
        ({"mode": "planar"}, r"mode must be one of \('local', 'global'\), got 'planar'"),
        ({"rotation_groups": 3}, "rotation_groups must be a divisor of in_channels, got 3 and 8"),
        ({"rotation_groups": 0}, "rotation_groups must be a divisor of in_channels, got 0 and 8"),
        ({"mode": "global", "image_offsets": True}, "image_offsets must be False with mode 'glo"),
        ({"kernel_offsets": False}, "kernel_offsets must be True without image_offsets"),
    ],
)
def test_invalid_arguments_raise(arguments, message):
    options = {"in_channels": 8, "out_channels": 8, "kernel_size": 3, "groups": 8, **arguments}
    with pytest.raises(ValueError, match=message):
        DeformKernelConv2d(**options)


def test_repr_shows_the_options():
    text = repr(block((5, 4), padding=1, rotation_groups=2, clip_to_scope=False))
    for part in ("kernel_size=(3, 3)", "padding=(1, 1)", "scope_size=(5, 4)", "mode='local'"):
        assert part in text
    assert "rotation_groups=2, clip_to_scope=False" in text


@pytest.mark.parametrize("options", [{}, {"mode": "global"}, {"image_offsets": True}])
def test_autocast_keeps_the_result_close(options):
    convolution = block(4, padding=1, **options)
    x = torch.randn(2, 4, 7, 6)
    with torch.autocast("cpu", torch.bfloat16):
        output = convolution(x)
        output.float().sum().backward()
    torch.testing.assert_close(output.float(), convolution(x), rtol=0, atol=0.02)
    assert all(p.grad is not None for p in convolution.parameters())


@pytest.mark.parametrize("image_offsets", [False, True])
def test_an_exported_graph_gives_the_same(image_offsets):
    convolution = randomize(block((2, 3), kernel_size=(1, 2), image_offsets=image_offsets))
    exported = torch.export.export(convolution, (torch.randn(2, 4, 4, 5),)).module()
    x = torch.randn(2, 4, 4, 5)
    torch.testing.assert_close(exported(x), convolution(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scope_size", [3, 4, 5, 6, (5, 4)])
def test_centered_scope_weight_reads_the_given_kernel(scope_size):
    kernel = torch.randn(4, 1, 3, 3)
    convolution = block(scope_size, padding=1, bias=False)
    with torch.no_grad():
        convolution.weight.copy_(centered_scope_weight(kernel, scope_size))
    x = torch.zeros(1, 4, 5, 5)
    x[:, :, 2, 2] = 1
    read = convolution(x)[:, :, 1:4, 1:4].flip(2, 3).transpose(0, 1)
    assert (read - kernel).abs().max() < 1e-5


def test_centered_scope_weight_has_minimal_norm():
    kernel = torch.randn(50, 1, 3, 3, dtype=torch.float64)
    padded = centered_scope_weight(kernel, 5)
    torch.testing.assert_close(padded, F.pad(kernel, (1, 1, 1, 1)), rtol=0, atol=1e-14)
    torch.testing.assert_close(centered_scope_weight(kernel, 3), kernel, rtol=0, atol=1e-14)
    scope = centered_scope_weight(kernel, 4)
    means = F.avg_pool2d(torch.eye(16, dtype=torch.float64).view(16, 1, 4, 4), 2, stride=1)
    system = means.flatten(1).T  # (9, 16): every tap is the mean of 2x2 cells
    expected = torch.linalg.lstsq(system, kernel.flatten(1).T, driver="gelsd").solution.T
    torch.testing.assert_close(scope.flatten(1), expected, rtol=0, atol=1e-12)
    assert (scope.norm() / kernel.norm()).item() == pytest.approx(2.8, abs=0.5)


def test_centered_scope_weight_of_an_invalid_kernel_raises():
    with pytest.raises(ValueError, match=r"kernel must have shape \(C, 1, k_h, k_w\), got \(4, 4,"):
        centered_scope_weight(torch.zeros(4, 4, 3, 3), 4)
    with pytest.raises(ValueError, match="scope_size must be at least kernel_size"):
        centered_scope_weight(torch.zeros(4, 1, 5, 5), 4)


@pytest.mark.parametrize("options", [{}, {"mode": "global"}, {"image_offsets": True}])
def test_the_residual_block_starts_as_the_identity_and_gets_gradients(options):
    residual = DeformKernelResidual(64, scope_size=4, **options)
    x = torch.randn(2, 64, 5, 6)
    assert torch.equal(residual(x), x)
    optimizer = torch.optim.SGD(residual.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (residual(x) - 2 * x).square().mean().backward()
        optimizer.step()
    assert all(p.grad.abs().max() > 0 for p in residual.parameters())


def test_the_residual_block_equals_its_parts():
    residual = randomize(DeformKernelResidual(64, scope_size=4, rotation_groups=4))
    x = torch.randn(2, 64, 5, 6)
    made = F.conv2d(residual.depthwise(x), residual.pointwise.weight)
    made = F.group_norm(made, 32, residual.norm.weight, residual.norm.bias)
    torch.testing.assert_close(residual(x), x + made)
    assert residual.depthwise.scope_size == (4, 4)


def test_the_residual_block_with_invalid_channels_raises():
    with pytest.raises(ValueError, match="channels must be a multiple of 32 and above it, got 32"):
        DeformKernelResidual(32, scope_size=4)
