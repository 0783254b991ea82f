"""TransformedDataset: augmented samples as model inputs."""

from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from deformable_detr.data.samplers import SampleKey, derive_seed
from deformable_detr.data.transforms import Transform, to_model_input
from deformable_detr.structures import Sample, Target


class SampleSource(Protocol):
    """Interface of `CocoDataset` that `TransformedDataset` needs."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...

    def describe(self, index: int, /) -> str:
        """Return the id and the path of an image, for messages."""


class TransformedDataset(Dataset[tuple[Tensor, Target]]):
    """Dataset of transformed samples: (channels, h, w) normalized image and target.

    The augmentation of a sample depends on (seed, epoch, index) only, not on the process.

    Args:
        source: samples on disk.
        transform: transform applied to each sample.
        seed: seed of the run.
        repeats: number of times that each sample is used per epoch, each time with another
            augmentation; meant for few, large images and random crops.
    """

    def __init__(
        self,
        source: SampleSource,
        transform: Transform,
        *,
        seed: int,
        repeats: int = 1,
    ) -> None:
        if repeats < 1:
            raise ValueError(f"repeats must be at least 1, got {repeats}")
        self._source = source
        self._transform = transform
        self._seed = seed
        self._repeats = repeats

    def __len__(self) -> int:
        return len(self._source) * self._repeats

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, Target]:
        seed = derive_seed("augmentation", self._seed, key.epoch, key.index)
        generator = torch.Generator().manual_seed(seed)
        sample = self._source[key.index % len(self._source)]
        return to_model_input(self._transform(sample, generator))

    def describe(self, index: int) -> str:
        """Return the id and the path of a sample's image, for messages."""
        return self._source.describe(index % len(self._source))
