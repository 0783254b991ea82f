import math

import pytest
import torch

from deformable_detr.ops import available_backends, ms_deform_attn, ms_deform_attn_fused

LEVEL_SHAPES = ((6, 4), (3, 2))


def random_inputs(dtype=torch.float64, *, N=2, Q=5, M=2, D=3, P=2, shapes=LEVEL_SHAPES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    S = sum(height * width for height, width in shapes)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    value = torch.randn(N, S, M, D, generator=generator, dtype=torch.float64)
    locations = 1.4 * torch.rand(N, Q, M, len(shapes), P, 2, generator=generator) - 0.2
    weights = torch.rand(N, Q, M, len(shapes) * P, generator=generator).softmax(-1)
    return (
        value.to(dtype),
        shapes,
        locations.to(wide),
        weights.view(N, Q, M, len(shapes), P).to(wide),
    )


def sampled_by_definition(value, level_shapes, locations, weights):
    """Compute equation 3 with plain loops."""
    N, _, M, D = value.shape
    _, Q, _, L, P, _ = locations.shape
    output = torch.zeros(N, Q, M, D, dtype=value.dtype)
    starts = [sum(h * w for h, w in level_shapes[:level]) for level in range(L)]
    for n in range(N):
        for q in range(Q):
            for m in range(M):
                for level, (height, width) in enumerate(level_shapes):
                    for p in range(P):
                        x, y = locations[n, q, m, level, p].tolist()
                        x, y = x * width - 0.5, y * height - 0.5
                        for row in (math.floor(y), math.floor(y) + 1):
                            for column in (math.floor(x), math.floor(x) + 1):
                                if 0 <= row < height and 0 <= column < width:
                                    share = (1 - abs(y - row)) * (1 - abs(x - column))
                                    cell = starts[level] + row * width + column
                                    weight = weights[n, q, m, level, p] * share
                                    output[n, q, m] += weight * value[n, cell, m]
    return output.flatten(2)


@pytest.fixture(params=[name for name, reason in available_backends().items() if not reason])
def backend(request):
    return request.param


def test_equals_the_definition(backend):
    inputs = random_inputs()
    actual = ms_deform_attn(*inputs, backend=backend)
    torch.testing.assert_close(actual, sampled_by_definition(*inputs), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ((0.5, 0.5), 11.5),
        ((0.0, 0.0), 0.0),
        ((1.0, 1.0), 5.75),
        ((0.125, 1 / 6), 0.0),
        ((-0.2, 0.5), 0.0),
        ((-0.05, 0.5), 3.0),
    ],
)
def test_golden_samples(backend, location, expected):
    rows, columns = torch.meshgrid(torch.arange(3.0), torch.arange(4.0), indexing="ij")
    value = (10 * rows + columns).reshape(1, 12, 1, 1)
    locations = torch.tensor(location).view(1, 1, 1, 1, 1, 2)
    actual = ms_deform_attn(value, ((3, 4),), locations, torch.ones(1, 1, 1, 1, 1), backend=backend)
    torch.testing.assert_close(actual.item(), expected, rtol=0, atol=1e-5)


def test_gradients_equal_finite_differences(backend):
    value, shapes, locations, weights = random_inputs(N=1, Q=3)
    inputs = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    assert torch.autograd.gradcheck(
        lambda v, p, w: ms_deform_attn(v, shapes, p, w, backend=backend), inputs
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_points_at_infinity_contribute_nothing_and_have_no_gradient(backend, bad):
    value, shapes, locations, weights = random_inputs()
    locations[:, :, :, :, 0, 0] = bad
    value.requires_grad_()
    locations.requires_grad_()
    output = ms_deform_attn(value, shapes, locations, weights, backend=backend)
    output.sum().backward()

    without = weights.clone()
    without[..., 0] = 0
    safe = locations.detach().clone()
    safe[:, :, :, :, 0] = 0.5
    expected = ms_deform_attn(value.detach(), shapes, safe, without, backend=backend)
    torch.testing.assert_close(output.detach(), expected)
    assert (locations.grad[:, :, :, :, 0] == 0).all()
    assert value.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_values_are_summed_in_float32(backend, dtype):
    value, shapes, locations, weights = random_inputs(dtype)
    actual = ms_deform_attn(value, shapes, locations, weights, backend=backend)
    wide = ms_deform_attn(value.float(), shapes, locations, weights, backend=backend)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, wide.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("empty", ["N", "Q", "M", "D", "P"])
def test_empty_sizes_give_zeros(backend, empty):
    value, shapes, locations, weights = random_inputs(**{empty: 0})
    inputs = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    output = ms_deform_attn(value, shapes, locations, weights, backend=backend)
    output.sum().backward()
    assert output.shape == (*locations.shape[:2], value.shape[2] * value.shape[3])
    assert (output == 0).all()
    assert all((tensor.grad == 0).all() for tensor in inputs)


def test_a_level_without_cells_contributes_nothing(backend):
    inputs = random_inputs(shapes=((6, 4), (0, 3)))
    value, _, locations, weights = inputs
    actual = ms_deform_attn(*inputs, backend=backend)
    first = (locations[:, :, :, :1].contiguous(), weights[:, :, :, :1].contiguous())
    torch.testing.assert_close(actual, ms_deform_attn(value, ((6, 4),), *first, backend=backend))


def change(index, value):
    def apply(inputs):
        changed = list(inputs)
        changed[index] = value(inputs[index])
        return changed

    return apply


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (change(0, lambda t: t.long()), "value must be float64, float32, .* got torch.int64"),
        (change(0, lambda t: t[0]), r"value must have shape \(N, S, M, D\), got \(30, 2, 3\)"),
        (
            change(1, lambda _: ((5, 4), (3, 2))),
            r"value holds S = 30 positions but level_shapes \(\(5, 4\), \(3, 2\)\) describe 26",
        ),
        (change(2, lambda t: t[..., :1]), "sampling_locations must have shape"),
        (change(2, lambda t: t.half()), "sampling_locations must be torch.float64"),
        (change(3, lambda t: t[..., :1]), "attention_weights must have shape"),
        (change(3, lambda t: t.float()), "attention_weights must be torch.float64"),
    ],
)
def test_invalid_arguments_raise(apply, message):
    with pytest.raises(ValueError, match=message):
        ms_deform_attn(*apply(random_inputs()))


def test_an_unknown_backend_raises():
    with pytest.raises(ValueError, match=r"backend must be one of .*, got 'cudnn'"):
        ms_deform_attn(*random_inputs(), backend="cudnn")


def random_fused_inputs(last=2):
    value, shapes, locations, weights = random_inputs()
    N, Q, _, L = locations.shape[:4]
    return value, shapes, torch.rand(N, Q, L, last, dtype=torch.float64), locations, weights


@pytest.mark.parametrize("last", [2, 4])
def test_fused_gradients_equal_finite_differences(backend, last):
    value, shapes, *others = random_fused_inputs(last)
    inputs = [tensor.requires_grad_() for tensor in (value, *others)]
    assert torch.autograd.gradcheck(
        lambda v, *rest: ms_deform_attn_fused(v, shapes, *rest, backend=backend), inputs
    )


def test_fused_equals_plain_after_softmax_and_locations(backend):
    value, shapes, references, offsets, logits = random_fused_inputs()
    sizes = torch.tensor([(width, height) for height, width in shapes])
    locations = references[:, :, None, :, None] + offsets / sizes[:, None]
    weights = logits.flatten(3).softmax(-1).view_as(logits)
    actual = ms_deform_attn_fused(value, shapes, references, offsets, logits, backend=backend)
    expected = ms_deform_attn(value, shapes, locations, weights, backend="reference")
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (change(2, lambda t: t[..., :1]), r"reference_points must end in 2 \(points\) or 4"),
        (change(2, lambda t: t[:, :1]), r"reference_points must have shape \(2, 5, 2, 2\), got"),
        (change(2, lambda t: t.float()), "reference_points must be torch.float64"),
        (change(3, lambda t: t[0]), "sampling_offsets must have shape"),
        (change(4, lambda t: t[..., :1]), "attention_logits must have shape"),
    ],
)
def test_invalid_arguments_of_the_fused_operator_raise(apply, message):
    with pytest.raises(ValueError, match=message):
        ms_deform_attn_fused(*apply(random_fused_inputs()))


def test_nine_levels_raise():
    inputs = random_inputs(shapes=((1, 1),) * 9)
    with pytest.raises(ValueError, match="level_shapes must describe 1 to 8 levels, got 9"):
        ms_deform_attn(*inputs)


def test_negative_sizes_raise(backend):
    value, _, locations, weights = random_inputs(shapes=((2, 3),))
    with pytest.raises(ValueError, match=r"no negative sizes, got \(\(-2, -3\),\)"):
        ms_deform_attn(value, ((-2, -3),), locations, weights, backend=backend)


def test_autocast_does_not_change_the_operators_dtypes(backend):
    """The operator names tensors that the caller must cast; it never narrows coordinates."""
    value, shapes, locations, weights = random_inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = ms_deform_attn(value, shapes, locations, weights, backend=backend)
        assert output.dtype == torch.float32
        with pytest.raises(ValueError, match=r"sampling_locations must be torch.float32"):
            ms_deform_attn(value.bfloat16(), shapes, locations.bfloat16(), weights)
    torch.testing.assert_close(
        output, ms_deform_attn(value, shapes, locations, weights, backend=backend), rtol=0, atol=0
    )
