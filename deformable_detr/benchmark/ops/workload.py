"""Workloads: shapes, inputs, and the minimum work of a call."""

import itertools
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Direction = Literal["forward", "backward"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")

OFFSET_STD_PX = 3.0  # harder on caches than trained offsets, which are smooth across queries
SEED = 0


@dataclass(frozen=True)
class Shape:
    """Size of one call.

    Attributes:
        level_shapes: (height, width) of the L levels.
        Q: number of queries, uniform over the image, as in the decoder; None for one per cell,
            at its center, as in the encoder.
    """

    name: str
    level_shapes: tuple[tuple[int, int], ...]
    Q: int | None = None
    N: int = 1
    M: int = 8
    D: int = 32
    P: int = 4

    @property
    def L(self) -> int:  # noqa: N802 - a dimension letter, as M and D are
        """Number of levels."""
        return len(self.level_shapes)

    @property
    def S(self) -> int:  # noqa: N802
        """Number of cells of all levels."""
        return sum(height * width for height, width in self.level_shapes)

    @property
    def num_queries(self) -> int:
        """Number of queries: Q, or S if Q is None."""
        return self.S if self.Q is None else self.Q

    @property
    def samples(self) -> int:
        """Number of bilinear samples per call."""
        return self.N * self.num_queries * self.M * self.L * self.P

    def flop(self, direction: Direction) -> int:
        """Return the floating-point operations of the weighted sums; a multiply-add counts as two.

        Forward, a sample adds four weighted rows of D. Backward, each of the four rows takes
        part in a dot product and receives a weighted row.
        """
        forward = self.samples * 4 * self.D * 2
        return forward if direction == "forward" else 2 * forward


# An image of 800 x 1066, the size of the paper's recipe, at strides 8, 16, 32 and 64.
ENCODER = Shape("encoder", ((100, 134), (50, 67), (25, 34), (13, 17)))
ENCODER_PAIR = replace(ENCODER, name="encoder, N = 2", N=2)
DECODER = replace(ENCODER, name="decoder", Q=300)


@dataclass(frozen=True)
class Workload:
    """Inputs for both forms of the operator, consistent with each other.

    Attributes:
        value: (N, S, M, D), normally distributed.
        reference_points: (N, Q, L, 2), the same point in every level.
        sampling_offsets: (N, Q, M, L, P, 2) in cells, normally distributed.
        attention_logits: (N, Q, M, L, P), normally distributed.
        sampling_locations: (N, Q, M, L, P, 2), computed from points and offsets.
        attention_weights: (N, Q, M, L, P), softmax of the logits.
        touched_rows: number of rows of D in value that some sample reads, of N * S * M.
    """

    shape: Shape
    value: Tensor
    reference_points: Tensor
    sampling_offsets: Tensor
    attention_logits: Tensor
    sampling_locations: Tensor
    attention_weights: Tensor
    touched_rows: int

    def compulsory_bytes(self, direction: Direction, *, value_bytes: int, is_fused: bool) -> int:
        """Return the bytes moved between memory and cores with infinite caches.

        Forward reads the inputs (of value, the touched rows) and writes the output. Backward reads
        them and the output's gradient, and writes a gradient for each input except the reference
        points: for value, zeros in all rows, then the touched rows again.
        """
        shape = self.shape
        row = shape.D * value_bytes
        output = shape.N * shape.num_queries * shape.M * row
        points = 3 * 4 * shape.samples  # x, y and a weight, float32
        references = 2 * 4 * shape.N * shape.num_queries * shape.L if is_fused else 0
        forward = self.touched_rows * row + points + references + output
        if direction == "forward":
            return forward
        return forward + points + (shape.N * shape.S * shape.M + self.touched_rows) * row


def make_workload(shape: Shape, device: str = "cpu") -> Workload:
    """Create seeded float32 inputs, the same on every device."""
    generator = torch.Generator().manual_seed(SEED)
    points = (shape.N, shape.num_queries, shape.M, shape.L, shape.P)
    if shape.Q is None:
        references = _cell_centers(shape.level_shapes).expand(shape.N, -1, -1)
    else:
        references = torch.rand(shape.N, shape.Q, 2, generator=generator)
    value = torch.randn(shape.N, shape.S, shape.M, shape.D, generator=generator)
    offsets = OFFSET_STD_PX * torch.randn(*points, 2, generator=generator)
    logits = torch.randn(points, generator=generator)
    references = references[:, :, None].expand(-1, -1, shape.L, -1).contiguous().to(device)
    value, offsets, logits = (tensor.to(device) for tensor in (value, offsets, logits))
    locations = locations_of(references, offsets, shape.level_shapes)
    return Workload(
        shape=shape,
        value=value,
        reference_points=references,
        sampling_offsets=offsets,
        attention_logits=logits,
        sampling_locations=locations,
        attention_weights=weights_of(logits),
        touched_rows=_touched_rows(locations, shape.level_shapes),
    )


def locations_of(
    reference_points: Tensor, sampling_offsets: Tensor, level_shapes: tuple[tuple[int, int], ...]
) -> Tensor:
    """Compute sampling locations as in all other implementations.

    The package's own function handles infinities too, which takes time that must not be charged
    to a baseline.
    """
    sizes = sampling_offsets.new_tensor([(width, height) for height, width in level_shapes])
    return reference_points[:, :, None, :, None] + sampling_offsets / sizes[:, None]


def weights_of(attention_logits: Tensor) -> Tensor:
    """Compute attention weights: the softmax over all points of a head."""
    return attention_logits.flatten(3).softmax(-1).view_as(attention_logits)


def _cell_centers(level_shapes: tuple[tuple[int, int], ...]) -> Tensor:
    """Return the (1, S, 2) relative (x, y) of the centers of all cells."""
    grids = []
    for height, width in level_shapes:
        y, x = torch.meshgrid(
            (torch.arange(height) + 0.5) / height,
            (torch.arange(width) + 0.5) / width,
            indexing="ij",
        )
        grids.append(torch.stack((x, y), dim=-1).view(height * width, 2))
    return torch.cat(grids)[None]


def _touched_rows(locations: Tensor, level_shapes: tuple[tuple[int, int], ...]) -> int:
    """Count the rows, of N * S * M, that are a neighbor of some sample."""
    N, Q, M, _, P, _ = locations.shape
    rows = 0
    for level, (height, width) in enumerate(level_shapes):
        pixels = locations[:, :, :, level] * locations.new_tensor((width, height)) - 0.5
        low = pixels.floor().long().transpose(1, 2).reshape(N * M, Q * P, 2)
        touched = torch.zeros(N * M, height * width, dtype=torch.bool, device=locations.device)
        for step in itertools.product((0, 1), repeat=2):
            x, y = (low + low.new_tensor(step)).unbind(-1)
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            image, sample = inside.nonzero(as_tuple=True)
            touched[image, (y * width + x)[image, sample]] = True
        rows += int(touched.sum())
    return rows
