"""The reference and the NumPy definition, written apart, agree in float64."""

import numpy as np
import pytest
import torch
from helpers.operator_calls import FORMS, points_like, random_call
from helpers.operator_truth import errors, fused_truth, plain_truth


@pytest.mark.parametrize("kind", ["random", "border", "far", "mixed"])
@pytest.mark.parametrize("references", FORMS.values(), ids=FORMS.keys())
def test_reference_and_definition_agree(references, kind):
    call = random_call(torch.float64, references=references, L=5)
    if kind != "random":
        call = call.with_points(points_like(call.tensors[-2], kind, call.level_shapes))
    truth_of = fused_truth if call.is_fused else plain_truth
    truth = truth_of(call.tensors[0], call.level_shapes, *call.tensors[1:], call.grad_output)
    results = call.run_with_gradients("reference")
    for actual, exact in zip(results, (truth.output, *truth.gradients), strict=True):
        error = errors(actual, exact)
        if exact.ndim == 6:
            error = np.where(truth.is_on_lattice[..., None], 0, error)
        if exact.shape == call.tensors[1].shape and call.is_fused:
            error = np.where(truth.is_on_lattice.any((2, 4))[..., None], 0, error)
        assert error.max() <= 1e-12 * max(1, np.abs(exact).max())
