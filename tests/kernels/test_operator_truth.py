"""Agreement of the reference and the independent NumPy definition in float64."""

import numpy as np
import pytest
import torch
from helpers.operator_calls import FORMS, points_like, random_call, truth_of
from helpers.operator_truth import errors


@pytest.mark.parametrize("kind", ["random", "border", "far", "mixed"])
@pytest.mark.parametrize("references", FORMS.values(), ids=FORMS.keys())
def test_reference_and_definition_agree(references, kind):
    call = random_call(torch.float64, references=references, L=5)
    if kind != "random":
        call = call.with_points(points_like(call.tensors[-2], kind, call.level_shapes))
    truth = truth_of(call)
    results = call.run_with_gradients("reference")
    for actual, exact in zip(results, (truth.output, *truth.gradients), strict=True):
        error = np.where(truth.counts(exact), errors(actual, exact), 0)
        assert error.max() <= 1e-12 * max(1, np.abs(exact).max())
