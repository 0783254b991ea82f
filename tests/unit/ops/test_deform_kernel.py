import pytest
import torch
from helpers.deform_kernel_oracle import deform_kernel_by_loops, gradients, random_call

from deformable_detr.ops.deform_kernel import products
from deformable_detr.ops.deform_kernel.dispatch import (
    deform_kernel_conv2d,
    deform_kernel_conv2d_by_products,
)
from deformable_detr.ops.deform_kernel.reference import deform_kernel_conv2d_core_pytorch
from deformable_detr.ops.deform_kernel.scope import kernel_coordinates, sample_scope
from deformable_detr.ops.geometry import ConvGeometry

PATHS = [
    deform_kernel_conv2d,
    deform_kernel_conv2d_by_products,
    deform_kernel_conv2d_core_pytorch,
]
SAME = ConvGeometry((3, 3), padding=(1, 1))
UNEVEN = ConvGeometry((3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 2))


def read_scope(scope, kernel_size, offsets=None, *, clip_to_scope=False):
    """Read kernel values from one scope; offsets: {(a, b): (row, column)}."""
    scope = torch.as_tensor(scope, dtype=torch.float32)
    rotation = torch.zeros(kernel_size, kernel_size, 2)
    for tap, offset in (offsets or {}).items():
        rotation[tap] = torch.tensor(offset)
    weight = scope[None, None]
    size = (kernel_size, kernel_size)
    return sample_scope(weight, rotation.view(1, -1), size, clip_to_scope=clip_to_scope)[0, 0]


def assert_same(actual, expected, tolerance):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def test_zero_offsets_read_the_middle_of_the_scope():
    scope = torch.arange(16.0).view(4, 4)
    golden = torch.tensor([[2.5, 3.5, 4.5], [6.5, 7.5, 8.5], [10.5, 11.5, 12.5]])
    assert_same(read_scope(scope, 3), golden, 1e-6)
    assert_same(read_scope([[1, 2], [3, 4]], 1), torch.tensor([[2.5]]), 1e-6)


@pytest.mark.parametrize(
    ("tap", "offset", "value"),
    [
        ((1, 1), (0.5, -0.25), 9.25),
        ((2, 2), (1.0, 0.0), 7.25),  # half outside
        ((2, 2), (1.5, 0.0), 0.0),
        ((0, 0), (-1.5, 0.0), 0.0),
    ],
)
def test_offsets_move_a_tap_in_the_scope(tap, offset, value):
    kernel = read_scope(torch.arange(16.0).view(4, 4), 3, {tap: offset})
    assert kernel[tap].item() == pytest.approx(value, abs=1e-6)


def test_clipped_taps_stop_at_the_first_and_last_cell():
    rotation = torch.tensor([-9.0, 9.0]).repeat(18)[None]
    for taps, (low, high) in {0: (-0.5, 2.5), 2: (-2.5, 0.5)}.items():
        rows, columns = kernel_coordinates(rotation, (4, 4), SAME, clip_to_scope=True)
        base = taps + 0.5
        assert rows.view(1, 1, 3, 3, 2)[..., taps, :, 0].sub(base).eq(low).all()
        assert columns.view(1, 1, 3, 3, 2)[..., taps, 1].sub(base).eq(high).all()


def test_clipping_keeps_every_coordinate_in_the_scope_of_its_axis():
    rotation = 5 * torch.randn(2, 36, 4, 5)
    rows, columns = kernel_coordinates(rotation, (4, 7), SAME, clip_to_scope=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 3, 0, 6)
    free_rows, _ = kernel_coordinates(rotation, (4, 7), SAME, clip_to_scope=False)
    assert free_rows.min() < 0
    assert free_rows.max() > 3


@pytest.mark.parametrize("clip_to_scope", [False, True])
@pytest.mark.parametrize("image_offsets", [False, True])
@pytest.mark.parametrize("geometry", [SAME, UNEVEN])
@pytest.mark.parametrize("function", PATHS)
def test_agrees_with_loops(function, geometry, image_offsets, clip_to_scope):
    # Offsets reach far outside scope and map; two groups of four channels cover c % R.
    tensors = random_call(
        geometry, groups=2, scope=(4, 5), size=(5, 4), image_offsets=image_offsets, spread=2.0
    )
    given = [tensor.detach() for tensor in tensors]
    options = {"geometry": geometry, "clip_to_scope": clip_to_scope}
    expected = deform_kernel_by_loops(*given[:3], given[3] if image_offsets else None, **options)
    assert_same(function(*given, **options), expected, 1e-12)
    assert_same(function(*[tensor.float() for tensor in given], **options).double(), expected, 1e-5)


@pytest.mark.parametrize("function", PATHS)
def test_channel_c_has_the_rotations_of_group_c_modulo_the_groups(function):
    x, weight, rotation = random_call(SAME, channels=6, groups=3)
    together = function(x, weight, rotation, geometry=SAME)
    for channel in range(6):
        group = rotation.unflatten(1, (3, 18))[:, channel % 3]
        one = slice(channel, channel + 1)
        alone = function(x[:, one], weight[one], group, geometry=SAME)
        assert_same(together[:, one], alone, 1e-12)


@pytest.mark.parametrize("image_offsets", [False, True])
@pytest.mark.parametrize("function", PATHS)
def test_gradients_agree_with_finite_differences(function, image_offsets):
    geometry = ConvGeometry((2, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2))
    tensors = random_call(
        geometry,
        channels=2,
        groups=2,
        scope=(3, 4),
        size=(2, 3),
        batch=1,
        image_offsets=image_offsets,
    )
    for offsets in tensors[2:]:  # avoids the kinks at whole cells
        whole = (offsets.detach() * 2).round() / 2
        offsets.data.copy_(whole + 0.25 + 0.1 * (offsets.detach() - whole))
    tensors[0].data.add_(3)  # so that features from the map and zeros outside differ

    def call(*inputs):
        return function(*inputs, geometry=geometry, clip_to_scope=False)

    assert torch.autograd.gradcheck(call, tensors)


@pytest.mark.parametrize("scope", [(3, 3), (4, 4), (5, 5)])
@pytest.mark.parametrize("image_offsets", [False, True])
def test_both_paths_have_the_same_gradients_at_zero_offsets(scope, image_offsets):
    """Initial parameters lie on kinks: odd scopes and zero image offsets."""
    tensors = random_call(
        SAME, scope=scope, image_offsets=image_offsets, spread=0.0, dtype=torch.float32
    )
    _, expected = gradients(deform_kernel_conv2d_core_pytorch, tensors, geometry=SAME)
    _, actual = gradients(deform_kernel_conv2d, tensors, geometry=SAME)
    for one, other in zip(actual, expected, strict=True):
        assert_same(one, other, 2e-5)


@pytest.mark.parametrize("clip_to_scope", [False, True])
@pytest.mark.parametrize("function", PATHS)
@pytest.mark.parametrize(
    ("column", "slope"), [(0.0, 9.0), (1.0, 90.0), (2.0, 90.0), (-0.5, 1.0), (2.5, -100.0)]
)
def test_the_derivative_on_a_cell_is_from_above_and_on_the_last_from_below(
    function, column, slope, clip_to_scope
):
    weight = torch.tensor([1.0, 10.0, 100.0]).view(1, 1, 1, 3)
    rotation = torch.tensor([0.0, column - 1]).view(1, 2, 1, 1).requires_grad_()
    options = {"geometry": ConvGeometry((1, 1)), "clip_to_scope": clip_to_scope}
    output = function(torch.ones(1, 1, 1, 1), weight, rotation, **options)
    (grad,) = torch.autograd.grad(output, rotation)
    is_clipped = clip_to_scope and not 0 <= column <= 2
    assert grad[0, 1].item() == (0 if is_clipped else slope)
    assert not clip_to_scope or grad[0, 0].item() == 0  # the scope has one row


@pytest.mark.parametrize("image_offsets", [False, True])
def test_channels_in_chunks_give_the_same_result(image_offsets, monkeypatch):
    tensors = random_call(SAME, channels=10, groups=2, image_offsets=image_offsets)
    expected, expected_gradients = gradients(
        deform_kernel_conv2d_by_products, tensors, geometry=SAME
    )
    monkeypatch.setattr(products, "_CPU_CHUNK_ELEMENTS", 3 * 9 * 6 * 7)  # three, then two
    actual, actual_gradients = gradients(deform_kernel_conv2d_by_products, tensors, geometry=SAME)
    assert_same(actual, expected, 1e-12)
    for one, other in zip(actual_gradients, expected_gradients, strict=True):
        assert_same(one, other, 1e-12)


def test_a_gradient_does_not_depend_on_the_other_gradients():
    x, weight, rotation = random_call(SAME)
    _, expected = gradients(deform_kernel_conv2d, [x, weight, rotation], geometry=SAME)
    frozen = deform_kernel_conv2d(x.detach(), weight.detach(), rotation, geometry=SAME)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(frozen.shape, generator=generator, dtype=torch.float64)
    (actual,) = torch.autograd.grad(frozen, rotation, grad)
    assert_same(actual, expected[2], 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_rounded_once_at_the_end(dtype):
    x, weight, rotation = (tensor.detach() for tensor in random_call(SAME, dtype=dtype))
    exact = deform_kernel_conv2d(x.float(), weight.float(), rotation.float(), geometry=SAME)
    actual = deform_kernel_conv2d(x, weight, rotation, geometry=SAME)
    assert actual.dtype == dtype
    assert torch.equal(actual, exact.to(dtype))


def test_inputs_in_other_memory_orders_give_the_same_result():
    x, weight, rotation = random_call(SAME)
    expected = deform_kernel_conv2d(x, weight, rotation, geometry=SAME)
    last = [t.detach().contiguous(memory_format=torch.channels_last) for t in (x, rotation)]
    tensors = [last[0].requires_grad_(), weight, last[1].requires_grad_()]
    actual, grads = gradients(deform_kernel_conv2d, tensors, geometry=SAME)
    assert_same(actual, expected, 1e-12)
    _, expected_grads = gradients(deform_kernel_conv2d, [x, weight, rotation], geometry=SAME)
    for one, other in zip(grads, expected_grads, strict=True):
        assert_same(one, other, 1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": (4, 6, 7)}, r"x must have shape \(N, C, H, W\), got \(4, 6, 7\)"),
        ({"weight": (4, 2, 4, 4)}, r"weight must have shape \(4, 1, S_h, S_w\), .* are depthwise"),
        ({"weight": (3, 1, 4, 4)}, r"weight must have shape \(4, 1, S_h, S_w\), got \(3, 1, 4, 4"),
        ({"weight": (4, 1, 4, 2)}, r"scope must be at least as large as the kernel, got \(4, 2\)"),
        ({"x": (2, 4, 6, 0)}, r"padded map must be at least as large as the dilated kernel, got"),
        ({"rotation": (2, 17, 6, 7)}, r"rotation must have shape \(2, R \* 18, 6, 7\) with R a"),
        ({"rotation": (2, 54, 6, 7)}, r"R a divisor of 4, got \(2, 54, 6, 7\)"),
        ({"rotation": (2, 18, 6, 6)}, r"rotation must have .* got \(2, 18, 6, 6\)"),
        ({"offsets": (2, 36, 6, 7)}, r"image_offsets must have shape \(2, 18, 6, 7\), got \(2, 36"),
    ],
)
def test_mismatched_shapes_raise(change, message):
    shapes = {
        "x": (2, 4, 6, 7),
        "weight": (4, 1, 4, 4),
        "rotation": (2, 18, 6, 7),
        "offsets": (2, 18, 6, 7),
    }
    with pytest.raises(ValueError, match=message):
        deform_kernel_conv2d(*map(torch.zeros, {**shapes, **change}.values()), geometry=SAME)
