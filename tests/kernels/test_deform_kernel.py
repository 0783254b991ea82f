"""Compiled deformable kernel convolution, compared with its reference."""

import pytest
import torch
from helpers.deform_kernel_oracle import gradients, random_call
from helpers.operator_calls import requires_native

from deformable_detr.ops.deform_kernel.dispatch import (
    deform_kernel_conv2d,
    deform_kernel_conv2d_by_products,
)
from deformable_detr.ops.deform_kernel.reference import deform_kernel_conv2d_core_pytorch
from deformable_detr.ops.geometry import ConvGeometry

pytestmark = requires_native

SAME = ConvGeometry((3, 3), padding=(1, 1))


# One vector, part of a vector, two vectors, several units and part of another.
@pytest.mark.parametrize(("channels", "groups"), [(16, 1), (9, 3), (12, 1), (75, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_number_of_channels_on_every_instruction_set(
    channels, groups, dtype, instruction_set
):
    tensors = random_call(SAME, channels=channels, groups=groups, size=(5, 19), dtype=dtype)
    expected = gradients(deform_kernel_conv2d_core_pytorch, tensors, geometry=SAME)
    actual = gradients(deform_kernel_conv2d, tensors, geometry=SAME)
    tolerance = 1e-11 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_results_are_bitwise_the_same_for_any_number_of_threads():
    tensors = random_call(SAME, channels=150, groups=2, size=(9, 17), batch=3, dtype=torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            output, grads = gradients(deform_kernel_conv2d, tensors, geometry=SAME)
            results.append([output, *grads])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # from opcheck itself
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_operator_passes_opcheck(dtype):
    tensors = random_call(SAME, groups=2, dtype=dtype)
    operator = torch.ops.deformable_detr.deform_kernel_conv2d.default
    torch.library.opcheck(operator, (*tensors, [3, 3, 1, 1, 1, 1, 1, 1], True))


@pytest.mark.parametrize(("batch", "channels"), [(0, 4), (2, 0)])
def test_empty_inputs_give_empty_outputs(batch, channels):
    tensors = random_call(SAME, batch=batch, channels=channels)
    output, grads = gradients(deform_kernel_conv2d, tensors, geometry=SAME)
    assert output.shape == (batch, channels, 6, 7)
    for tensor, grad in zip(tensors, grads, strict=True):
        assert torch.equal(grad, torch.zeros_like(tensor))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("clip_to_scope", [False, True])
@pytest.mark.parametrize("path", [deform_kernel_conv2d, deform_kernel_conv2d_by_products])
def test_a_non_finite_rotation_gives_the_same_on_every_path(path, clip_to_scope, bad):
    x, weight, rotation = random_call(SAME)
    rotation.data[0, 3, 2, 1] = bad
    options = {"geometry": SAME, "clip_to_scope": clip_to_scope}
    tensors = (x, weight, rotation)
    expected = gradients(deform_kernel_conv2d_core_pytorch, tensors, **options)
    assert all(tensor.isfinite().all() for tensor in (expected[0], *expected[1]))
    torch.testing.assert_close(gradients(path, tensors, **options), expected)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("path", [deform_kernel_conv2d, deform_kernel_conv2d_core_pytorch])
def test_a_non_finite_offset_reads_zero_without_gradient(path, bad):
    tensors = random_call(SAME)
    offsets = 0.3 * torch.randn(tensors[0].shape[0], 18, *tensors[0].shape[2:]).double()
    results = []
    for value in (bad, 1e5):
        given = offsets.clone()
        given[0, 3, 2, 1] = value
        results.append(gradients(path, (*tensors, given.requires_grad_()), geometry=SAME))
    torch.testing.assert_close(results[0], results[1])
    assert results[0][1][3][0, 3, 2, 1] == 0


def test_a_compiled_graph_works_for_any_size():
    def call(*tensors):
        return deform_kernel_conv2d(*tensors, geometry=SAME)

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((6, 7), (4, 9)):
        tensors = random_call(SAME, size=size)
        actual, actual_grads = gradients(compiled, tensors)
        expected, expected_grads = gradients(call, tensors)
        torch.testing.assert_close((actual, actual_grads), (expected, expected_grads))


def test_an_exported_graph_contains_plain_operators():
    class Call(torch.nn.Module):
        def forward(self, x, weight, rotation):
            return deform_kernel_conv2d(x, weight, rotation, geometry=SAME)

    tensors = tuple(tensor.detach() for tensor in random_call(SAME))
    program = torch.export.export(Call(), tensors)
    assert "deformable_detr" not in str(program.graph)
    torch.testing.assert_close(program.module()(*tensors), Call()(*tensors))


def test_a_second_derivative_raises():
    tensors = random_call(SAME)
    output = deform_kernel_conv2d(*tensors, geometry=SAME)
    (grad,) = torch.autograd.grad(output.sum(), tensors[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        grad.sum().backward()


def test_the_compiled_operator_raises_on_mismatched_shapes():
    x, weight, rotation = (tensor.detach() for tensor in random_call(SAME))
    geometry = [3, 3, 1, 1, 1, 1, 1, 1]
    operator = torch.ops.deformable_detr.deform_kernel_conv2d
    with pytest.raises(RuntimeError, match=r"rotation must have shape"):
        operator(x, weight, rotation[:, :17], geometry, True)
    with pytest.raises(RuntimeError, match="dtype of x"):
        operator(x, weight.float(), rotation, geometry, True)
    with pytest.raises(RuntimeError, match="geometry must hold"):
        operator(x, weight, rotation, geometry[:7], True)
