"""Implementations bound to their inputs, ready to be called."""

import torch
from torch import Tensor

from deformable_detr.benchmark.ops.implementations import REFERENCE, Implementation
from deformable_detr.benchmark.ops.workload import SEED, Direction, Workload
from deformable_detr.benchmark.timing import Call


class BoundImplementation:
    """Implementation with a workload in the implementation's dtype.

    Forward runs without a graph. Backward computes the gradients of value and of both tensors
    that depend on the queries; it is timed separately, on a graph that was recorded before.
    """

    def __init__(self, implementation: Implementation, workload: Workload) -> None:
        self.implementation, self.workload = implementation, workload
        self._function = implementation.function
        shape = workload.shape
        value = workload.value.to(implementation.dtype)
        between: tuple[object, ...] = (shape.level_shapes,)
        if implementation.is_fused:
            between = (*between, workload.reference_points)
            points, weights = workload.sampling_offsets, workload.attention_logits
        else:
            points, weights = workload.sampling_locations, workload.attention_weights
        self._constants = (value, *between, points, weights)
        self._leaves = [tensor.detach().requires_grad_() for tensor in (value, points, weights)]
        self._variables = (self._leaves[0], *between, *self._leaves[1:])
        gradient = torch.randn(
            (shape.N, shape.num_queries, shape.M * shape.D),
            generator=torch.Generator().manual_seed(SEED + 1),
        )
        self._grad_output = gradient.to(value.device, value.dtype)

    def forward(self) -> Tensor:
        """Return the output, (N, Q, M * D)."""
        with torch.no_grad():
            return self._function(*self._constants)

    def record(self) -> Call:
        """Run forward; return a call that runs backward once."""
        output = self._function(*self._variables)
        return lambda: torch.autograd.grad(output, self._leaves, self._grad_output)

    def prepare(self, direction: Direction, calls: int) -> list[Call]:
        """Prepare calls in one direction; see `Task.prepare`.

        One extra call is made first, untimed, because the previous implementation leaves the heap
        and the caches in another state.
        """
        if direction == "backward":
            self.record()()
            # One graph per call, which frees it, as in training.
            return [self.record() for _ in range(calls)]
        self.forward()
        return [self.forward] * calls


def check_agreement(implementations: list[BoundImplementation]) -> None:
    """Raise if an implementation does not agree with the reference.

    Raises:
        RuntimeError: an output differs from the reference by more than rounding errors.
    """
    reference = next(bound for bound in implementations if bound.implementation.name == REFERENCE)
    expected = reference.forward().float()
    sides = [size for level in reference.workload.shape.level_shapes for size in level]
    # Coordinates are rounded to float32 of the level's size; neighbors differ by a few units.
    coordinate_error = torch.finfo(torch.float32).eps * max(sides)
    largest_value = float(reference.workload.value.abs().max())
    for bound in implementations:
        output_error = torch.finfo(bound.implementation.dtype).eps * float(expected.abs().max())
        limit = 4 * (coordinate_error * largest_value + output_error)
        difference = float((bound.forward().float() - expected).abs().max())
        if not difference <= limit:  # true for NaN too
            raise RuntimeError(
                f"{bound.implementation.name} must agree with the reference to {limit:.2g}, "
                f"got a difference of {difference:.2g}; do not use it"
            )
