"""Samplers whose order is the same for any number of processes and after any restart.

A sampler yields micro-batches, the samples of one forward pass of one process. An optimizer step
uses `total_batch` samples: `total_batch / micro_batch` micro-batches, distributed over the
processes; some may get one more than others. Each sample is requested by a `SampleKey`, and its
augmentation depends on that key only.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor
from torch.utils.data import Sampler

from deformable_detr.structures import Size


@dataclass(frozen=True)
class SampleKey:
    """Key of sample `index`, modulo the number of samples, as augmented in `epoch`."""

    epoch: int
    index: int


def derive_seed(use: Literal["order", "augmentation", "dropout", "repeats"], *parts: int) -> int:
    """Derive a seed for `torch.Generator`, in 0..2**64 - 1.

    Seeds of two uses, or of two tuples of any lengths, are unrelated: (1, 0) is not (1,).

    Args:
        use: purpose of the random numbers.
        parts: what they depend on, such as seed and epoch.
    """
    content = ",".join([use, *map(str, parts)])
    return int.from_bytes(hashlib.sha256(content.encode("ascii")).digest()[:8], "little")


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Split of a step's samples over processes and their forward passes.

    Attributes:
        total_batch: samples per step, over all processes.
        micro_batch: samples per forward pass of one process.
        rank: rank of this process.
        world_size: number of processes.
    """

    total_batch: int
    micro_batch: int
    rank: int
    world_size: int

    def __post_init__(self) -> None:
        _require_positive(total_batch=self.total_batch, micro_batch=self.micro_batch)
        _require_rank(self.rank, self.world_size)
        if self.total_batch % self.micro_batch != 0:
            raise ValueError(
                "total_batch must be a multiple of micro_batch, "
                f"got {self.total_batch} and {self.micro_batch}"
            )
        if self.world_size > self.total_batch // self.micro_batch:
            raise ValueError(
                "total_batch must have a micro-batch for each process, "
                f"got {self.total_batch} samples in micro-batches of {self.micro_batch} "
                f"for {self.world_size} processes; choose a smaller micro_batch, or fewer processes"
            )

    @property
    def micro_batches_per_step(self) -> int:
        """Number of micro-batches of this process per step."""
        return len(range(self.rank, self.total_batch // self.micro_batch, self.world_size))


class StepSampler(Sampler[list[SampleKey]]):
    """Base class of the training samplers.

    Attributes:
        steps_per_epoch: optimizer steps of a whole epoch.
        micro_batches_per_step: number of micro-batches of this process per step.
    """

    steps_per_epoch: int

    def __init__(self, num_samples: int, plan: BatchPlan) -> None:
        _require_positive(num_samples=num_samples)
        self.micro_batches_per_step = plan.micro_batches_per_step
        self._num_samples = num_samples
        self._plan = plan
        self._epoch = 0
        self._first_step = 0

    def set_epoch(self, epoch: int) -> None:
        """Use the order of `epoch` from now on, starting at its first step."""
        self._epoch = epoch
        self._first_step = 0

    def start_at(self, step: int) -> None:
        """Skip the first `step` steps of the epoch, which are done already."""
        if not 0 <= step <= self.steps_per_epoch:
            raise ValueError(
                f"step must be in 0..{self.steps_per_epoch}, the steps of an epoch, got {step}"
            )
        self._first_step = step

    def __len__(self) -> int:
        return (self.steps_per_epoch - self._first_step) * self.micro_batches_per_step

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order = self._order_of_rank()
        size = self._plan.micro_batch
        begin = self._first_step * self.micro_batches_per_step
        for position in range(begin, self.steps_per_epoch * self.micro_batches_per_step):
            chunk = order[position * size : (position + 1) * size]
            yield [SampleKey(self._epoch, index) for index in chunk.tolist()]

    @abstractmethod
    def _order_of_rank(self) -> Tensor:
        """Return this rank's samples of the whole epoch, one micro-batch after another."""


class MicroBatchSampler(StepSampler):
    """Sampler of global batches: one permutation per (seed, epoch), split over the ranks.

    Micro-batch i of a global batch goes to rank i % world_size, so the micro-batches of a step
    are the same for any world_size, though some ranks may get one more than others. An incomplete
    last global batch is dropped for this epoch; a dataset smaller than one global batch is
    repeated to fill it.

    With repeat factors, a sample of factor r is in the epoch floor(r) times, and once more with
    probability r - floor(r), drawn per (seed, epoch). The steps per epoch are those of the sum of
    all factors, the expected number of samples; the permutation is cut or filled up to it. Copy c
    of sample i of N has the index i + c N.

    Args:
        num_samples: size of the dataset.
        plan: split of a step's samples.
        seed: seed of the run.
        factors: (num_samples,) repeat factors, at least 1; None if each sample is used once.
    """

    def __init__(
        self,
        num_samples: int,
        plan: BatchPlan,
        *,
        seed: int,
        factors: npt.NDArray[np.float64] | None = None,
    ) -> None:
        super().__init__(num_samples, plan)
        if factors is not None and (len(factors) != num_samples or factors.min() < 1):
            raise ValueError(f"factors must be {num_samples} numbers of at least 1")
        expected = num_samples if factors is None else round(float(factors.sum()))
        self.steps_per_epoch = max(expected // plan.total_batch, 1)
        self._seed = seed
        self._factors = None if factors is None else torch.from_numpy(factors)

    def _order_of_rank(self) -> Tensor:
        order = self._order_of_epoch()
        plan = self._plan
        order = _fill_up(order, self.steps_per_epoch * plan.total_batch)
        steps = self._arrange(order.view(self.steps_per_epoch, plan.total_batch))
        micro_batches = steps.reshape(self.steps_per_epoch, -1, plan.micro_batch)
        return micro_batches[:, plan.rank :: plan.world_size].flatten()

    def _order_of_epoch(self) -> Tensor:
        """Return the samples of the epoch in random order, each as often as its factor says."""
        seed = derive_seed("order", self._seed, self._epoch)
        if self._factors is None:
            return _shuffled(self._num_samples, seed)
        generator = Generator().manual_seed(derive_seed("repeats", self._seed, self._epoch))
        chance = torch.rand(self._num_samples, dtype=torch.float64, generator=generator)
        counts = (self._factors + chance).floor().long()
        samples = torch.arange(self._num_samples).repeat_interleave(counts)
        firsts = (counts.cumsum(0) - counts).repeat_interleave(counts)
        copies = torch.arange(len(samples)) - firsts
        # An index of its own for each copy, modulo the number of samples: another augmentation.
        samples = samples + copies * self._num_samples
        return samples[_shuffled(len(samples), seed)]

    def _arrange(self, steps: Tensor) -> Tensor:
        """Reorder the (steps, total_batch) samples within each step, before they are split."""
        return steps


class BucketSampler(MicroBatchSampler):
    """Variant of `MicroBatchSampler` that groups similar aspect ratios in a micro-batch.

    Each step has the same samples as in `MicroBatchSampler`. They are sorted by height / width
    before they are split into micro-batches, so that there is less padding and wide images rarely
    share a batch with tall ones. Neighboring micro-batches go to different processes, so their
    forward passes take about the same time.

    Args:
        aspect_ratios: height / width of each sample's image.
        plan: split of a step's samples.
        seed: seed of the run.
        factors: as for `MicroBatchSampler`.
    """

    def __init__(
        self,
        aspect_ratios: Sequence[float] | npt.NDArray[np.float64],
        plan: BatchPlan,
        *,
        seed: int,
        factors: npt.NDArray[np.float64] | None = None,
    ) -> None:
        super().__init__(len(aspect_ratios), plan, seed=seed, factors=factors)
        self._aspect_ratios = torch.as_tensor(aspect_ratios, dtype=torch.float64)

    def _arrange(self, steps: Tensor) -> Tensor:
        by_shape = self._aspect_ratios[steps % self._num_samples].argsort(dim=1, stable=True)
        return steps.gather(1, by_shape)


class DistributedOrderSampler(StepSampler):
    """Sampler with the order of the official code, to compare runs; depends on world_size.

    The permutation is seeded by the epoch alone and padded from its beginning to a multiple of
    world_size; each rank takes a contiguous part of it. An incomplete last batch is dropped.

    Args:
        num_samples: size of the dataset.
        plan: split of a step's samples.

    Raises:
        ValueError: ranks would get different numbers of samples, or none.
    """

    def __init__(self, num_samples: int, plan: BatchPlan) -> None:
        super().__init__(num_samples, plan)
        total_batch, micro_batch, world_size = plan.total_batch, plan.micro_batch, plan.world_size
        if total_batch % (micro_batch * world_size) != 0:
            raise ValueError(
                "total_batch must be a multiple of micro_batch * world_size in the official order, "
                f"got {total_batch}, {micro_batch} and {world_size}"
            )
        self._samples_per_rank = -(-num_samples // world_size)
        self.steps_per_epoch = self._samples_per_rank * world_size // total_batch
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"total_batch must be at most the {num_samples} samples of the data set, "
                f"got {total_batch}"
            )

    def _order_of_rank(self) -> Tensor:
        world_size = self._plan.world_size
        order = _shuffled(self._num_samples, self._epoch)
        order = _fill_up(order, self._samples_per_rank * world_size)
        return order.view(world_size, self._samples_per_rank)[self._plan.rank]


class EvaluationSampler(Sampler[list[SampleKey]]):
    """Sampler of batches without padding that yields each sample once.

    Only samples of one size form a batch, in the order of the data set, as padding would change
    the detections. Batches are sorted by their first sample, and batch i goes to rank
    i % world_size. They are the same for any world_size; the number of batches may differ by one
    between ranks.

    Args:
        sizes: (height, width) of each sample as the model sees it; also an (N, 2) array.
        batch_size: maximum number of samples per batch.
        rank: rank of this process.
        world_size: number of processes.
        done: samples that are left out, where they are all of a batch.
    """

    def __init__(
        self,
        sizes: Sequence[Size] | npt.NDArray[np.int64],
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        done: Set[int] = frozenset(),
    ) -> None:
        _require_positive(batch_size=batch_size)
        _require_rank(rank, world_size)
        if not len(sizes):
            raise ValueError("sizes must be those of at least one sample, got none")
        _, group = np.unique(np.array(sizes, dtype=np.int64), axis=0, return_inverse=True)
        order = np.argsort(group.reshape(-1), kind="stable")
        starts = np.flatnonzero(np.diff(group.reshape(-1)[order], prepend=-1))
        lengths = np.diff(starts, append=len(order))
        within = np.arange(len(order)) - np.repeat(starts, lengths)
        firsts = np.flatnonzero(within % batch_size == 0)
        ends = np.append(firsts[1:], len(order))
        is_left = np.ones(len(order), dtype=np.bool_)
        is_left[list(done)] = False
        has_left = np.add.reduceat(is_left[order].astype(np.int64), firsts) > 0
        firsts, ends = firsts[has_left], ends[has_left]
        own = np.argsort(order[firsts], kind="stable")[rank::world_size]
        self._order, self._firsts, self._ends = order, firsts[own], ends[own]

    def __len__(self) -> int:
        return len(self._firsts)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for first, end in zip(self._firsts.tolist(), self._ends.tolist(), strict=True):
            yield [SampleKey(0, index) for index in self._order[first:end].tolist()]


def _shuffled(num_samples: int, seed: int) -> Tensor:
    return torch.randperm(num_samples, generator=Generator().manual_seed(seed))


def _fill_up(order: Tensor, length: int) -> Tensor:
    """Repeat `order` and cut it to `length` numbers."""
    return order.repeat(-(-length // len(order)))[:length]


def _require_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _require_rank(rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in 0..world_size - 1, got {rank} of {world_size}")
