"""Operators and their gradients in NumPy's widest floats, directly from the definition.

They are independent of PyTorch, and exact enough to measure the errors of float64 back-ends.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch

# Location gradients are discontinuous at whole pixel coordinates: closer samples are not compared.
LATTICE_MARGIN_PX = 1e-4


@dataclass(frozen=True)
class Truth:
    """Output and gradients of a call, in the order of its tensors."""

    output: np.ndarray
    gradients: tuple[np.ndarray, ...]
    is_on_lattice: np.ndarray  # (N, Q, M, L, P) samples whose location gradient is ambiguous
    # For the output and the gradients: the sum of the magnitudes of all terms of a number, to which
    # its rounding errors are proportional.
    scales: tuple[np.ndarray, ...]

    def counts(self, exact: np.ndarray) -> np.ndarray:
        """Return a mask of the elements that can be compared, without ambiguous gradients."""
        is_fused = len(self.gradients) == 4
        if exact is self.gradients[2 if is_fused else 1]:
            return np.broadcast_to(~self.is_on_lattice[..., None], exact.shape)
        if is_fused and exact is self.gradients[1]:
            return np.broadcast_to(~self.is_on_lattice.any((2, 4))[..., None], exact.shape)
        return np.ones(exact.shape, bool)


def wide(tensor):
    return tensor.detach().double().numpy().astype(np.longdouble)


def plain_truth(value, level_shapes, locations, weights, grad_output):
    """Compute the truth of `ms_deform_attn`."""
    arguments = (wide(value), level_shapes, wide(locations), wide(weights), wide(grad_output))
    output, gradients, is_on_lattice = _sampled(*arguments)
    output_scale, scales, _ = _sampled(*arguments, magnitudes=True)
    return Truth(output, gradients, is_on_lattice, (output_scale, *scales))


def fused_truth(value, level_shapes, references, offsets, logits, grad_output):
    """Compute the truth of `ms_deform_attn_fused`.

    The gradients are those of value, references, offsets and logits.
    """
    references, offsets, logits = wide(references), wide(offsets), wide(logits)
    joint = logits.reshape(*logits.shape[:3], -1)
    weights = np.exp(joint - joint.max(-1, keepdims=True))
    weights = (weights / weights.sum(-1, keepdims=True)).reshape(logits.shape)

    spread = references[:, :, None, :, None]  # (N, Q, 1, L, 1, 2 or 4)
    if references.shape[-1] == 2:
        sizes = np.array([(w, h) for h, w in level_shapes], dtype=np.longdouble)
        unit = np.broadcast_to(1 / sizes[:, None], offsets.shape)
    else:
        unit = np.broadcast_to(spread[..., 2:] / 2 / offsets.shape[4], offsets.shape)
    with np.errstate(invalid="ignore"):  # infinity times zero is NaN, outside like infinity
        locations = spread[..., :2] + offsets * unit
    is_finite = np.isfinite(locations).all(-1, keepdims=True)
    unit, steps = np.where(is_finite, unit, 0), np.where(is_finite, offsets, 0)

    def chained(grad_value, grad_locations, grad_weights, sign):
        """Chain the plain operator's gradients; `sign` is 1 for magnitudes, which never cancel."""
        grad_references = grad_locations.sum((2, 4))
        if references.shape[-1] == 4:
            lever = steps / 2 / offsets.shape[4]
            lever = np.abs(lever) if sign > 0 else lever
            grad_sizes = (grad_locations * lever).sum((2, 4))
            grad_references = np.concatenate((grad_references, grad_sizes), -1)
        inner = (weights * grad_weights).sum((3, 4), keepdims=True)
        grad_logits = weights * (grad_weights + sign * inner)
        slopes = np.abs(unit) if sign > 0 else unit
        return grad_value, grad_references, grad_locations * slopes, grad_logits

    arguments = (wide(value), level_shapes, locations, weights, wide(grad_output))
    output, gradients, is_on_lattice = _sampled(*arguments)
    output_scale, scales, _ = _sampled(*arguments, magnitudes=True)
    return Truth(
        output,
        chained(*gradients, sign=-1),
        is_on_lattice,
        (output_scale, *chained(*scales, sign=1)),
    )


def _sampled(value, level_shapes, locations, weights, grad_output, *, magnitudes=False):
    """Compute output, gradients of value, locations and weights, and a mask of lattice samples.

    With `magnitudes`, each term is taken in full, without its sign, and times the size of its
    level: in proportion to it, rounding of a coordinate moves the sample, even to the next cell.
    """
    margin, around = (LATTICE_MARGIN_PX, 1) if magnitudes else (0, 0)
    if magnitudes:
        value, weights, grad_output = np.abs(value), np.abs(weights), np.abs(grad_output)
    N, _, M, D = value.shape
    Q = locations.shape[1]
    images, heads = np.arange(N)[:, None, None, None], np.arange(M)[:, None]
    grad_output = grad_output.reshape(N, Q, M, 1, D)
    output = np.zeros((N, Q, M, D), np.longdouble)
    grad_value, grad_weights = np.zeros_like(value), np.zeros_like(weights)
    grad_locations = np.zeros_like(locations)
    is_on_lattice = np.zeros(weights.shape, bool)
    start = 0
    for level, (height, width) in enumerate(level_shapes):
        size = np.array([width, height], np.longdouble)
        pixels = locations[:, :, :, level] * size - 0.5  # (N, Q, M, P, 2)
        is_inside = ((pixels > -1 - margin) & (pixels < size + margin)).all(-1)  # False for NaN
        with np.errstate(invalid="ignore"):
            is_near = np.abs(pixels - np.rint(pixels)) < LATTICE_MARGIN_PX
        is_on_lattice[:, :, :, level] = is_near.any(-1)
        pixels = np.where(is_inside[..., None], pixels, 0)
        low = np.floor(pixels).astype(int)
        weight = weights[:, :, :, level] * (max(height, width) if magnitudes else 1)
        for corner in itertools.product(range(-around, 2 + around), repeat=2):
            cell = low + corner
            share = 1 - np.abs(pixels - cell)  # of x and of y
            slope = np.where(np.array(corner) == 1, 1, -1)
            if magnitudes:
                share, slope = np.ones_like(share), np.ones_like(slope)
            is_cell = is_inside & ((cell >= 0) & (cell < size)).all(-1)
            column, row = np.moveaxis(np.where(is_cell[..., None], cell, 0), -1, 0)
            index = (images, start + row * width + column, heads)
            if height * width == 0:
                continue
            seen = np.where(is_cell[..., None], value[index], 0)  # (N, Q, M, P, D)
            area = np.where(is_cell, share.prod(-1), 0)
            output += (seen * (weight * area)[..., None]).sum(3)
            dots = (seen * grad_output).sum(-1)
            grad_weights[:, :, :, level] += dots * area * (max(height, width) if magnitudes else 1)
            toward = dots[..., None] * weight[..., None] * slope * share[..., ::-1] * size
            grad_locations[:, :, :, level] += toward
            np.add.at(grad_value, index, grad_output * (weight * area)[..., None])
        start += height * width
    return output.reshape(N, Q, M * D), (grad_value, grad_locations, grad_weights), is_on_lattice


def errors(actual: torch.Tensor, exact: np.ndarray) -> np.ndarray:
    """Return the absolute error of each element."""
    return np.abs(wide(actual) - exact)


def unit_in_the_last_place(exact: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Return the spacing of a dtype's numbers at each exact result."""
    info = torch.finfo(dtype)
    magnitude = np.maximum(np.abs(exact), info.tiny)
    return np.exp2(np.floor(np.log2(magnitude))) * info.eps
