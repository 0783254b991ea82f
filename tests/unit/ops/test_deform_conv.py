import math

import pytest
import torch
import torch.nn.functional as F
import torchvision

from deformable_detr.ops import (
    deform_conv2d,
    deform_conv2d_core_pytorch,
    offsets_from_block_layout,
)

BOTH = pytest.mark.parametrize("operator", [deform_conv2d, deform_conv2d_core_pytorch])


def random_call(
    *, groups=1, offset_groups=1, stride=1, padding=0, dilation=1, dtype=torch.float64, spread=2.0
):
    """Return input, offset, weight, bias, geometry and mask of a 3x2 kernel on a 7x8 map."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    input, weight, bias = randn(2, 8, 7, 8), randn(4, 8 // groups, 3, 2), randn(4)
    size = F.conv2d(input, weight, None, stride, padding, dilation, groups).shape[2:]
    offset = spread * randn(2, 12 * offset_groups, *size)
    mask = torch.rand(2, 6 * offset_groups, *size, generator=generator, dtype=dtype)
    return input, offset, weight, bias, stride, padding, dilation, mask


def loop(input, offset, weight, bias, stride, padding, dilation, mask):
    """Compute the definition with plain loops."""
    (N, C, H, W), (num_outputs, per_group, k_h, k_w) = input.shape, weight.shape
    taps, groups = k_h * k_w, C // per_group
    per_offset_group = C // (offset.shape[1] // (2 * taps))

    def sample(n, c, y, x):
        total = 0.0
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x), math.floor(x) + 1):
                if 0 <= row < H and 0 <= column < W:
                    share = (1 - abs(y - row)) * (1 - abs(x - column))
                    total += share * input[n, c, row, column].item()
        return total

    output = torch.zeros(N, num_outputs, *offset.shape[2:], dtype=input.dtype)
    for n, o, i, j in torch.cartesian_prod(*map(torch.arange, output.shape)).tolist():
        output[n, o, i, j] = bias[o]
        for c in range(per_group):
            channel = o // (num_outputs // groups) * per_group + c
            q = channel // per_offset_group
            for t in range(taps):
                dy, dx = offset[n, q * 2 * taps + 2 * t : q * 2 * taps + 2 * t + 2, i, j].tolist()
                y = i * stride - padding + t // k_w * dilation + dy
                x = j * stride - padding + t % k_w * dilation + dx
                moved = mask[n, q * taps + t, i, j] * sample(n, channel, y, x)
                output[n, o, i, j] += weight[o, c, t // k_w, t % k_w] * moved
    return output


@BOTH
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("offset_groups", [1, 4])
def test_the_operator_equals_its_definition(operator, groups, offset_groups):
    arguments = random_call(
        groups=groups, offset_groups=offset_groups, stride=2, padding=1, dilation=2
    )
    torch.testing.assert_close(operator(*arguments), loop(*arguments))


@BOTH
@pytest.mark.parametrize(
    ("stride", "padding", "dilation"), [(1, 1, 1), (2, 1, 1), (1, 2, 2), (2, 0, 1)]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("with_mask", [False, True])
def test_without_offsets_it_is_a_plain_convolution(
    operator, stride, padding, dilation, dtype, tolerance, with_mask
):
    input, offset, weight, bias, *geometry, mask = random_call(
        groups=2, stride=stride, padding=padding, dilation=dilation, dtype=dtype
    )
    mask = torch.ones_like(mask) if with_mask else None
    actual = operator(input, torch.zeros_like(offset), weight, bias, *geometry, mask)
    expected = F.conv2d(input, weight, bias, *geometry, groups=2)
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@BOTH
def test_golden_bilinear_sample(operator):
    input = torch.tensor([[[[1.0, 2], [3, 4]]]])
    offset = torch.tensor([-0.25, -0.5]).view(1, 2, 1, 1).expand(-1, -1, 2, 2)
    output = operator(input, offset, torch.ones(1, 1, 1, 1))
    torch.testing.assert_close(output[0, 0], torch.tensor([[0.375, 1.125], [1.25, 3.0]]))


@BOTH
def test_golden_shifts_of_whole_pixels(operator):
    input = torch.arange(25.0).view(1, 1, 5, 5)
    kernel, down, right = torch.ones(1, 1, 1, 1), torch.zeros(1, 2, 5, 5), torch.zeros(1, 2, 5, 5)
    down[:, 0], right[:, 1] = 1, 1
    assert operator(input, down, kernel)[0, 0, 0].tolist() == [5, 6, 7, 8, 9]
    assert operator(input, right, kernel)[0, 0, 0].tolist() == [1, 2, 3, 4, 0]


@BOTH
def test_golden_masked_sums(operator):
    input = torch.tensor([[[[1.0, 2, 3]] * 3]])
    output = operator(
        input,
        torch.zeros(1, 8, 4, 4),
        torch.ones(1, 1, 2, 2),
        padding=1,
        mask=torch.full((1, 4, 4, 4), 0.5),
    )
    edge, middle = [0.5, 1.5, 2.5, 1.5], [1.0, 3, 5, 3]
    torch.testing.assert_close(output[0, 0], torch.tensor([edge, middle, middle, edge]))


@BOTH
def test_offsets_of_whole_pixels_shift_the_input_of_each_tap(operator):
    input, offset, weight, _, stride, padding, dilation, mask = random_call()
    shift = torch.randint(-2, 3, (6, 2), generator=torch.Generator().manual_seed(1))
    whole = shift.flatten().to(offset).view(1, 12, 1, 1).expand_as(offset)
    # Outside the map are zeros; five rows and columns of them are within reach.
    framed = F.pad(input, (5, 5, 5, 5))
    expected = 0.0
    for tap, (dy, dx) in enumerate(shift.tolist()):
        row, column = 5 + tap // 2 + dy, 5 + tap % 2 + dx
        window = framed[:, :, row : row + offset.shape[2], column : column + offset.shape[3]]
        kernel = weight[:, :, tap // 2, tap % 2, None, None]
        expected = expected + F.conv2d(window * mask[:, tap, None], kernel)
    actual = operator(input, whole, weight, None, stride, padding, dilation, mask)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


@BOTH
def test_an_offset_group_is_a_contiguous_block_of_channels(operator):
    input, offset, weight, bias, *geometry, mask = random_call(offset_groups=2)
    whole = operator(input, offset, weight, bias, *geometry, mask)
    halves = [
        operator(
            input.chunk(2, dim=1)[half],
            offset.chunk(2, dim=1)[half],
            weight.chunk(2, dim=1)[half],
            None,
            *geometry,
            mask.chunk(2, dim=1)[half],
        )
        for half in (0, 1)
    ]
    torch.testing.assert_close(whole, halves[0] + halves[1] + bias[:, None, None])


@BOTH
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("offset_groups", [1, 2])
@pytest.mark.parametrize("with_mask", [False, True])
def test_it_equals_torchvision_in_values_and_gradients(operator, groups, offset_groups, with_mask):
    arguments = random_call(
        groups=groups, offset_groups=offset_groups, stride=2, padding=1, dtype=torch.float32
    )
    *arguments, mask = arguments
    if with_mask:
        arguments.append(mask)
    results = []
    for function in (operator, torchvision.ops.deform_conv2d):
        own = [a.clone().requires_grad_() if isinstance(a, torch.Tensor) else a for a in arguments]
        output = function(*own)
        output.square().sum().backward()
        results.append([output, *(a.grad for a in own if isinstance(a, torch.Tensor))])
    for actual, expected in zip(*results, strict=True):
        scale = expected.abs().max().clamp(min=1)
        torch.testing.assert_close(actual / scale, expected / scale, rtol=0, atol=1e-5)


@BOTH
@pytest.mark.parametrize("offset_groups", [1, 2])
def test_gradients_equal_finite_differences(operator, offset_groups):
    input, offset, weight, bias, *geometry, mask = random_call(
        offset_groups=offset_groups, stride=2, dilation=2, padding=2
    )
    # A sample has no derivative where it crosses a row or a column of pixels.
    offset = offset.floor() + 0.2 + 0.6 * torch.rand_like(offset)
    arguments = [t[:1].requires_grad_() for t in (input, offset, mask)]
    weight, bias = weight.requires_grad_(), bias.requires_grad_()

    def call(input, offset, mask, weight, bias):
        return operator(input, offset, weight, bias, *geometry, mask)

    is_slow = operator is deform_conv2d_core_pytorch
    assert torch.autograd.gradcheck(call, (*arguments, weight, bias), fast_mode=is_slow)


@BOTH
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_sample_with_a_non_finite_offset_is_zero_without_gradient(operator, bad):
    input, offset, weight, _, *geometry, mask = random_call()
    without = mask.clone()
    without[:, 2, 1], without[:, 4, 3, 2] = 0, 0
    expected = operator(input, offset, weight, None, *geometry, without)
    offset[:, 4, 1], offset[:, 5, 1], offset[:, 9, 3, 2] = bad, bad, bad
    offset.requires_grad_()
    output = operator(input, offset, weight, None, *geometry, mask)
    torch.testing.assert_close(output, expected)
    output.square().sum().backward()
    assert offset.grad.isfinite().all()
    assert (offset.grad[:, 4:6, 1] == 0).all()
    assert (offset.grad[:, 8:10, 3, 2] == 0).all()


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("under_autocast", [False, True])
def test_a_low_precision_input_is_rounded_once_at_the_end(operator, dtype, under_autocast):
    input, offset, weight, bias, *geometry, mask = random_call(dtype=torch.float32)
    input = input.to(dtype)
    exact = operator(input.double(), offset, weight, bias, *geometry, mask)
    with torch.autocast("cpu", torch.bfloat16, enabled=under_autocast):
        output = operator(input, offset, weight, bias, *geometry, mask)
    assert output.dtype == dtype
    scale = exact.abs().max().item()
    half_a_step = scale * torch.finfo(dtype).eps / 2
    torch.testing.assert_close(output.double(), exact, rtol=0, atol=half_a_step + 1e-5 * scale)


@BOTH
def test_an_empty_batch_gives_an_empty_batch(operator):
    input, offset, weight, bias, *geometry, mask = random_call()
    output = operator(input[:0], offset[:0], weight, bias, *geometry, mask[:0])
    assert output.shape == (0, 4, *offset.shape[2:])


def test_the_block_layout_is_converted_to_alternating_rows_and_columns():
    offset = torch.cat((torch.arange(9.0), 100 + torch.arange(9.0))).view(1, 18, 1, 1)
    expected = [value for tap in range(9) for value in (tap, 100 + tap)]
    assert offsets_from_block_layout(offset).flatten().tolist() == expected


def test_a_converted_generator_predicts_converted_offsets():
    features, weight, bias = torch.randn(2, 5, 6, 7), torch.randn(18, 5, 3, 3), torch.randn(18)
    converted = F.conv2d(
        features, offsets_from_block_layout(weight, dim=0), offsets_from_block_layout(bias, dim=0)
    )
    expected = offsets_from_block_layout(F.conv2d(features, weight, bias))
    torch.testing.assert_close(converted, expected)


def test_the_operator_on_converted_offsets_is_the_resampled_map_of_that_layout():
    input, weight = torch.randn(1, 4, 6, 7), torch.randn(3, 4, 3, 3)
    rows, columns = 2 * torch.randn(2, 9, 6, 7)
    # Implementations of that layout place the samples of a pixel in 3x3 cells of a map three
    # times as large, over which a convolution of stride 3 runs.
    large = torch.zeros(1, 4, 18, 21)
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(7.0), indexing="ij")
    for tap in range(9):
        points = torch.stack((x + tap % 3 - 1 + columns[tap], y + tap // 3 - 1 + rows[tap]), -1)
        grid = (2 * points + 1) / torch.tensor([7.0, 6.0]) - 1
        large[:, :, tap // 3 :: 3, tap % 3 :: 3] = F.grid_sample(
            input, grid[None], align_corners=False
        )
    expected = F.conv2d(large, weight, stride=3)
    offset = offsets_from_block_layout(torch.cat((rows, columns))[None])
    actual = deform_conv2d(input, offset, weight, padding=1)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@BOTH
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("input", lambda t: t[0], "input must have 4 dimensions, got shape"),
        ("weight", lambda t: t[:3], "weight must have shape .* for C = 8"),
        ("offset", lambda t: t[:, :5], "offset must have shape .* with N = 2, K = 6"),
        ("offset", lambda t: t[:, :, 1:], r"\(H_out, W_out\) = \(5, 7\), got"),
        ("offset", lambda t: t[:, :1].expand(-1, 36, -1, -1), "divisible by the G = 3 groups"),
        ("mask", lambda t: t[:, :5], r"mask must have shape \(2, 6, 5, 7\), got \(2, 5, 5, 7\)"),
        ("input", lambda t: t[:, :, :2], r"input must be as large as the kernel \(3, 2\)"),
    ],
)
def test_mismatched_shapes_raise(operator, name, change, message):
    names = ("input", "offset", "weight", "bias", "stride", "padding", "dilation", "mask")
    # Three output channels are not divisible by two groups.
    arguments = dict(zip(names, random_call(groups=2), strict=True))
    arguments[name] = change(arguments[name])
    with pytest.raises(ValueError, match=message):
        operator(**arguments)


def test_a_block_layout_with_an_odd_number_of_offsets_raises():
    with pytest.raises(ValueError, match="offset must have an even number of entries along dim 1"):
        offsets_from_block_layout(torch.zeros(1, 9, 2, 2))
