"""Seeded calls of the operators, plain and fused, and the criterion of their exactness."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from helpers.operator_truth import (
    Truth,
    errors,
    fused_truth,
    plain_truth,
    unit_in_the_last_place,
)
from torch import Tensor

from deformable_detr.ops import available_backends, ms_deform_attn, ms_deform_attn_fused

_OBSTACLE = available_backends()["native"]
requires_native = pytest.mark.skipif(bool(_OBSTACLE), reason=_OBSTACLE)

FORMS = {"plain": None, "fused around points": 2, "fused around boxes": 4}
LEVELS = ((13, 17), (7, 9), (4, 5), (2, 3), (1, 4), (3, 1), (1, 1), (5, 2))
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Call:
    """Arguments of `ms_deform_attn` or `ms_deform_attn_fused`, and a gradient of the output."""

    tensors: tuple[Tensor, ...]  # all but level_shapes, value first
    level_shapes: tuple[tuple[int, int], ...]
    grad_output: Tensor

    @property
    def is_fused(self) -> bool:
        return len(self.tensors) == 4

    def run(self, backend: str) -> Tensor:
        operator = ms_deform_attn_fused if self.is_fused else ms_deform_attn
        value, *others = self.tensors
        return operator(value, self.level_shapes, *others, backend=backend)

    def run_with_gradients(self, backend: str) -> tuple[Tensor, ...]:
        """Return the output and the gradient of every tensor."""
        call = replace(self, tensors=tuple(t.detach().requires_grad_() for t in self.tensors))
        output = call.run(backend)
        return output.detach(), *torch.autograd.grad(output, call.tensors, self.grad_output)

    def with_points(self, points: Tensor) -> "Call":
        """Return a call with other sampling locations, or offsets."""
        return replace(self, tensors=(*self.tensors[:-2], points, self.tensors[-1]))


def coordinate_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def random_call(
    dtype=torch.float32, *, N=2, Q=7, M=3, D=8, L=3, P=4, references=None, levels=None, seed=0
) -> Call:
    """Make a plain call, or a fused one around `references`: 2 for points, 4 for boxes.

    A tenth of the points is outside, some of them far, and some across the border.
    """
    generator = torch.Generator().manual_seed(seed)
    level_shapes = (levels or LEVELS)[:L]
    L = len(level_shapes)
    S = sum(height * width for height, width in level_shapes)
    wide = coordinate_dtype(dtype)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def uniform(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    value, logits = normal(N, S, M, D).to(dtype), normal(N, Q, M, L, P).to(wide)
    grad_output = normal(N, Q, M * D).to(dtype)
    if references is None:
        locations = (1.3 * uniform(N, Q, M, L, P, 2) - 0.15).to(wide)
        weights = logits.flatten(3).softmax(-1).view_as(logits)
        return Call((value, locations, weights), level_shapes, grad_output)
    offsets = (2 * normal(N, Q, M, L, P, 2)).to(wide)
    reference_points = uniform(N, Q, L, references).to(wide)
    return Call((value, reference_points, offsets, logits), level_shapes, grad_output)


def points_like(points: Tensor, kind: str, level_shapes, *, seed=1) -> Tensor:
    """Draw locations of one kind; "mixed" adds infinities and NaN to ordinary ones."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([(w, h) for h, w in level_shapes], dtype=points.dtype)[:, None]
    uniform = torch.rand(points.shape, generator=generator).to(points.dtype)
    match kind:
        case "inside":
            return 0.1 + 0.8 * uniform
        case "lattice":  # whole pixels, from -2 to two past the end
            return ((uniform * (sizes + 4) - 2).floor() + 0.5) / sizes
        case "border":  # the level's edge, and half a pixel and one beyond
            steps = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]).to(points.dtype)
            edge = (uniform > 0.5).to(points.dtype)
            step = steps[torch.randint(5, points.shape, generator=generator)]
            return edge + step / sizes
        case "far":
            factor = 10.0 ** torch.randint(0, 30, points.shape, generator=generator)
            is_near = torch.rand(points.shape[:-1], generator=generator)[..., None] < 0.5
            return torch.where(is_near, uniform, (uniform - 0.5) * factor)
        case "mixed":
            odd = torch.tensor([math.nan, math.inf, -math.inf, 3e38]).to(points.dtype)
            chosen = odd[torch.randint(4, points.shape, generator=generator)]
            return torch.where(torch.rand(points.shape, generator=generator) < 0.2, chosen, uniform)
        case _:
            raise ValueError(kind)


def truth_of(call: Call) -> Truth:
    """Compute output and gradients from the definition."""
    value, *others = call.tensors
    compute = fused_truth if call.is_fused else plain_truth
    return compute(value, call.level_shapes, *others, call.grad_output)


def assert_as_exact_as_the_reference(*calls: Call) -> None:
    """Assert that errors are at most twice those of the reference, or one unit in the last place.

    Errors are relative to the magnitude of the terms of a number (`Truth.scales`), so that large
    numbers do not hide errors of small ones. The factor of two applies to root mean squares. The
    largest errors of two equally exact operators differ by as much by chance, because rounding
    errors have long tails; their factor is four.
    """
    judged = [_judge(call) for call in calls]
    for name in judged[0]:
        native, reference, unit = (
            np.concatenate([getattr(each[name], part) for each in judged])
            for part in ("native", "reference", "unit")
        )
        if not native.size:
            continue
        excess = (native / np.maximum(4 * reference.max(), unit)).max()
        assert excess <= 1, f"{name}: the largest error is {excess:.3g} times the allowed one"
        above_rounding = np.where(native <= unit, 0, native)
        excess = _root_mean_square(above_rounding) / (2 * _root_mean_square(reference) or 1)
        assert excess <= 1, f"{name}: errors are {excess:.3g} times the allowed ones"


def _root_mean_square(numbers: np.ndarray) -> float:
    return float(np.sqrt(np.square(numbers).mean()))


@dataclass(frozen=True)
class _Errors:
    """Errors of all comparable elements, relative to their scales."""

    native: np.ndarray
    reference: np.ndarray
    unit: np.ndarray  # unit in the last place


def _judge(call: Call) -> dict[str, _Errors]:
    """Return the errors by result: the output, and the gradient of each tensor."""
    truth = truth_of(call)
    references = ("reference_points",) if call.is_fused else ()
    results = zip(
        ("output", "value", *references, "points", "weights"),
        call.run_with_gradients("native"),
        call.run_with_gradients("reference"),
        (truth.output, *truth.gradients),
        truth.scales,
        strict=True,
    )
    judged = {}
    for name, native, reference, exact, scale in results:
        assert native.shape == exact.shape, name
        assert native.dtype == reference.dtype, name
        counts = truth.counts(exact)
        is_made_of_nothing = counts & (scale == 0)
        for tensor in (native, reference):
            assert (errors(tensor, exact)[is_made_of_nothing] == 0).all(), name
        counts = counts & ~is_made_of_nothing
        judged[name] = _Errors(
            *(
                error[counts] / scale[counts]
                for error in (
                    errors(native, exact),
                    errors(reference, exact),
                    unit_in_the_last_place(exact, native.dtype),
                )
            )
        )
    return judged
