"""Code written for the official extension, run with the drop-in replacement."""

import importlib
import importlib.util
import sys

import pytest
import torch
from torch.autograd import Function, gradcheck
from torch.autograd.function import once_differentiable

import deformable_detr.compat.msda as compat
from deformable_detr.ops.ms_deformable_attention.reference import ms_deform_attn_core_pytorch

MSDA = sys.modules["MultiScaleDeformableAttention"]
SHAPES = ((6, 4), (3, 2))


class MSDeformAttnFunction(Function):
    """Autograd function as in repositories that use the official extension."""

    @staticmethod
    def forward(ctx, value, shapes, level_start_index, locations, weights, im2col_step):
        ctx.im2col_step = im2col_step
        output = MSDA.ms_deform_attn_forward(
            value, shapes, level_start_index, locations, weights, ctx.im2col_step
        )
        ctx.save_for_backward(value, shapes, level_start_index, locations, weights)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        value, shapes, level_start_index, locations, weights = ctx.saved_tensors
        grad_value, grad_locations, grad_weights = MSDA.ms_deform_attn_backward(
            value, shapes, level_start_index, locations, weights, grad_output, ctx.im2col_step
        )
        return grad_value, None, None, grad_locations, grad_weights, None


@pytest.fixture(params=["as installed", "without the extension"])
def _install(request, monkeypatch):
    if request.param == "without the extension":
        from deformable_detr.ops import library

        monkeypatch.setattr(library, "LOAD_ERROR", ImportError("not built"))


def official_inputs(dtype=torch.float64, *, D=2, N=1):
    """Return the inputs of the official unit test: N 1, M 2, two queries, levels and points."""
    torch.manual_seed(3)
    M, Lq, L, P = 2, 2, 2, 2
    shapes = torch.as_tensor(SHAPES, dtype=torch.long)
    starts = torch.cat((shapes.new_zeros((1,)), shapes.prod(1).cumsum(0)[:-1]))
    S = int(shapes.prod(1).sum())
    value = torch.rand(N, S, M, D) * 0.01
    locations = torch.rand(N, Lq, M, L, P, 2)
    weights = torch.rand(N, Lq, M, L, P) + 1e-5
    weights /= weights.sum(-1, keepdim=True).sum(-2, keepdim=True)
    return value.to(dtype), shapes, starts, locations.to(dtype), weights.to(dtype)


def test_the_module_has_exactly_the_two_functions():
    assert [name for name in vars(MSDA) if not name.startswith("__")] == [
        "ms_deform_attn_forward",
        "ms_deform_attn_backward",
    ]
    assert importlib.util.find_spec("MultiScaleDeformableAttention") is MSDA.__spec__


@pytest.mark.usefixtures("_install")
def test_official_double_comparison():
    value, shapes, starts, locations, weights = official_inputs()
    actual = MSDeformAttnFunction.apply(value, shapes, starts, locations, weights, 2)
    expected = ms_deform_attn_core_pytorch(value, SHAPES, locations, weights)
    assert torch.allclose(actual, expected)


@pytest.mark.usefixtures("_install")
def test_official_float_comparison():
    value, shapes, starts, locations, weights = official_inputs(torch.float32)
    actual = MSDeformAttnFunction.apply(value, shapes, starts, locations, weights, 2)
    expected = ms_deform_attn_core_pytorch(value, SHAPES, locations, weights)
    assert torch.allclose(actual, expected, rtol=1e-2, atol=1e-3)


# For large D a dense Jacobian takes 2 to 18 GB, hence fast_mode.
@pytest.mark.parametrize("D", [30, 32, 64, 71, 1025, 2048, 3096])
def test_official_gradient_check(D):
    value, shapes, starts, locations, weights = official_inputs(D=D)
    inputs = (value, shapes, starts, locations, weights, 2)
    for tensor in (value, locations, weights):
        tensor.requires_grad_()
    assert gradcheck(MSDeformAttnFunction.apply, inputs, fast_mode=D >= 1025)


@pytest.mark.usefixtures("_install")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_results_are_those_of_the_operator(dtype):
    value, shapes, starts, locations, weights = official_inputs(dtype, D=8)
    inputs = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    output = MSDeformAttnFunction.apply(value, shapes, starts, locations, weights, 64)
    grad_output = torch.randn(output.shape).to(dtype)
    gradients = torch.autograd.grad(output, inputs, grad_output)

    wide = torch.promote_types(dtype, torch.float32)
    expected = ms_deform_attn_core_pytorch(value, SHAPES, locations.to(wide), weights.to(wide))
    torch.testing.assert_close(output, expected)
    for actual, exact in zip(
        gradients, torch.autograd.grad(expected, inputs, grad_output), strict=True
    ):
        torch.testing.assert_close(actual, exact)  # dtypes too


def test_value_alone_may_have_low_precision():
    value, shapes, starts, locations, weights = official_inputs(torch.float32)
    inputs = [tensor.requires_grad_() for tensor in (value.bfloat16(), locations, weights)]
    output = MSDeformAttnFunction.apply(inputs[0], shapes, starts, *inputs[1:], 64)
    gradients = torch.autograd.grad(output.float().sum(), inputs)
    assert [gradient.dtype for gradient in gradients] == [tensor.dtype for tensor in inputs]


def test_layout_and_im2col_step_do_not_matter():
    value, shapes, starts, locations, weights = official_inputs(N=3)
    expected = MSDeformAttnFunction.apply(value, shapes, starts, locations, weights, 64)
    strided = [
        tensor.transpose(0, 1).contiguous().transpose(0, 1)
        for tensor in (value, locations, weights)
    ]
    actual = MSDeformAttnFunction.apply(strided[0], shapes, starts, *strided[1:], 2)
    assert torch.equal(actual, expected)


def test_levels_that_are_not_contiguous_are_refused():
    value, shapes, starts, locations, weights = official_inputs()
    message = (
        r"level_start_index must be \[0, 24\] as spatial_shapes are \(\(6, 4\), \(3, 2\)\), "
        r"got \[0, 6\]"
    )
    with pytest.raises(ValueError, match=message):
        MSDA.ms_deform_attn_forward(value, shapes, starts // 4, locations, weights, 64)


def test_spatial_shapes_must_have_shape_l_by_2():
    value, shapes, starts, locations, weights = official_inputs()
    with pytest.raises(ValueError, match=r"spatial_shapes must have shape \(L, 2\), got \(4,\)"):
        MSDA.ms_deform_attn_forward(value, shapes.flatten(), starts, locations, weights, 64)


def test_spatial_shapes_that_do_not_match_the_value_are_refused():
    value, shapes, starts, locations, weights = official_inputs()
    with pytest.raises(ValueError, match="value holds S = 29 positions but level_shapes"):
        MSDA.ms_deform_attn_forward(value[:, 1:], shapes, starts, locations, weights, 64)


def test_an_extension_in_use_is_never_replaced(monkeypatch):
    other = type(sys)("MultiScaleDeformableAttention")
    other.__file__ = "theirs.so"
    monkeypatch.setitem(sys.modules, "MultiScaleDeformableAttention", other)
    message = "is already imported, from theirs.so; import deformable_detr.compat.msda before it"
    with pytest.raises(ImportError, match=message):
        compat._install()
    assert sys.modules["MultiScaleDeformableAttention"] is other


def test_the_module_can_be_loaded_again(monkeypatch):
    monkeypatch.setitem(sys.modules, "MultiScaleDeformableAttention", MSDA)  # restored afterwards
    importlib.reload(compat)
    again = sys.modules["MultiScaleDeformableAttention"]
    assert again is not MSDA
    assert again.__spec__.origin == compat.__file__


def test_spatial_shapes_of_floating_point_are_refused():
    value, shapes, starts, locations, weights = official_inputs()
    with pytest.raises(ValueError, match=r"spatial_shapes must hold integers, got torch\.float32"):
        MSDA.ms_deform_attn_forward(value, shapes.float(), starts, locations, weights, 64)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("value", lambda tensor: tensor[0], r"value must have shape \(N, S, M, D\)"),
        ("value", lambda tensor: tensor.long(), "value must be float64, .*, got torch.int64"),
        ("locations", lambda tensor: tensor[:, :1], "attention_weights must have shape"),
        ("weights", lambda tensor: tensor[..., :1], "attention_weights must have shape"),
        ("grad_output", lambda tensor: tensor[:, :1], "grad_output must have shape"),
    ],
)
def test_backward_raises_for_the_same_arguments_as_forward(name, change, message):
    value, shapes, starts, locations, weights = official_inputs()
    grad_output = MSDA.ms_deform_attn_forward(value, shapes, starts, locations, weights, 64)
    tensors = {
        "value": value,
        "locations": locations,
        "weights": weights,
        "grad_output": grad_output,
    }
    tensors[name] = change(tensors[name])
    with pytest.raises(ValueError, match=message):
        MSDA.ms_deform_attn_backward(
            tensors["value"],
            shapes,
            starts,
            tensors["locations"],
            tensors["weights"],
            tensors["grad_output"],
            64,
        )
