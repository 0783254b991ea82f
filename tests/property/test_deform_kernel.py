import torch
from helpers.deform_kernel_oracle import gradients, random_call
from hypothesis import given
from hypothesis import strategies as st

from deformable_detr.ops.deform_kernel.dispatch import (
    deform_kernel_conv2d,
    deform_kernel_conv2d_by_products,
)
from deformable_detr.ops.deform_kernel.reference import deform_kernel_conv2d_core_pytorch
from deformable_detr.ops.geometry import ConvGeometry


def pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def calls(draw):
    geometry = ConvGeometry(
        draw(pairs(1, 3)), draw(pairs(1, 3)), draw(pairs(0, 4)), draw(pairs(1, 3))
    )
    larger = draw(pairs(0, 2))
    fitting = [
        max(1, reach + 1 - 2 * padding)
        for reach, padding in zip(geometry.reach, geometry.padding, strict=True)
    ]
    extra = draw(pairs(0, 4))
    groups = draw(st.integers(1, 3))
    tensors = random_call(
        geometry,
        channels=groups * draw(st.integers(1, 2)),
        groups=groups,
        scope=tuple(map(sum, zip(geometry.kernel_size, larger, strict=True))),
        size=tuple(map(sum, zip(fitting, extra, strict=True))),
        image_offsets=draw(st.booleans()),
        spread=draw(st.sampled_from([0.0, 0.3, 2.0])),
        seed=draw(st.integers(0, 10**6)),
    )
    return tensors, geometry, draw(st.booleans())


@given(calls())
def test_the_fast_paths_equal_the_reference_with_all_gradients(call):
    tensors, geometry, clip_to_scope = call
    options = {"geometry": geometry, "clip_to_scope": clip_to_scope}
    expected, expected_gradients = gradients(deform_kernel_conv2d_core_pytorch, tensors, **options)
    for function in (deform_kernel_conv2d, deform_kernel_conv2d_by_products):
        actual, actual_gradients = gradients(function, tensors, **options)
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
        for one, other in zip(actual_gradients, expected_gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
