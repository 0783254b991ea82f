"""TransformedDataset: a data set as the model takes it, augmentation and all."""

from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from deformable_detr.data.samplers import SampleKey, derive_seed
from deformable_detr.data.transforms import Transform, to_model_input
from deformable_detr.structures import Sample, Target


class SampleSource(Protocol):
    """What `CocoDataset` offers here."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...

    def describe(self, index: int, /) -> str:
        """The image, for people."""


class TransformedDataset(Dataset[tuple[Tensor, Target]]):
    """Samples after their transform, as (3, h, w) normalised image and target.

    A sample's augmentation is drawn from (seed, epoch, index), whichever process makes it.

    Args:
        source: the samples on disk.
        transform: what happens to each.
        seed: of the run.
        repeats: how often each sample counts in an epoch, each time augmented differently;
            for few and large photos that are trained on in random crops.
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
        generator = torch.Generator().manual_seed(derive_seed(self._seed, key.epoch, key.index))
        sample = self._source[key.index % len(self._source)]
        return to_model_input(self._transform(sample, generator))

    def describe(self, index: int) -> str:
        """The image that a sample is made of, for people."""
        return self._source.describe(index % len(self._source))
