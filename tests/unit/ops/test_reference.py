import math

import pytest
import torch

from deformable_detr.ops.ms_deformable_attention.reference import (
    ms_deform_attn_fused_pytorch,
    sampling_locations,
)


def test_locations_around_points_are_offsets_in_cells():
    references = torch.tensor([0.5, 0.25]).view(1, 1, 1, 2)
    offsets = torch.tensor([1.0, -2.0]).view(1, 1, 1, 1, 1, 2)
    actual = sampling_locations(references, offsets, ((4, 10),))
    torch.testing.assert_close(actual.flatten(), torch.tensor([0.6, -0.25]))


def test_locations_around_boxes_are_offsets_in_fractions_of_half_the_size():
    references = torch.tensor([0.5, 0.25, 0.4, 0.2]).view(1, 1, 1, 4)
    offsets = torch.tensor([[1.0, -2.0], [4.0, 4.0]]).view(1, 1, 1, 1, 2, 2)
    actual = sampling_locations(references, offsets, ((4, 10),)).view(2, 2)
    torch.testing.assert_close(actual, torch.tensor([[0.6, 0.15], [0.9, 0.45]]))


@pytest.mark.parametrize("last", [2, 4])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_gradients_are_finite_despite_a_non_finite_point(last, bad):
    references = torch.rand(1, 3, 1, last)
    references[0, 0] = bad
    offsets = torch.randn(1, 3, 2, 1, 2, 2)
    offsets[0, 1, 0, 0, 0, 1] = bad
    tensors = [references, offsets, torch.randn(1, 3, 2, 1, 2)]
    references, offsets, logits = (tensor.requires_grad_() for tensor in tensors)
    value = torch.randn(1, 20, 2, 4)
    output = ms_deform_attn_fused_pytorch(value, ((4, 5),), references, offsets, logits)
    output.sum().backward()
    assert output.isfinite().all()
    assert (output[0, 0] == 0).all()
    assert (references.grad[0, 0] == 0).all()
    assert (offsets.grad[0, 1, 0, 0, 0] == 0).all()
    assert all(tensor.grad.isfinite().all() for tensor in (references, offsets, logits))
    assert (logits.grad[0, 1, 0] != 0).all()  # through the softmax
