"""An exponential moving average of a model's weights, which often detects better than they do."""

import copy
from collections.abc import Iterator, Mapping
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class ExponentialMovingAverage:
    """A second model whose weights follow those of the first.

    The decay of step t is min(decay, (1 + t) / (10 + t)), so that the average forgets the
    initial weights quickly and only then becomes slow.

    Args:
        model: the model to follow; it is copied.
        decay: share of the average that one step keeps, in [0, 1), once warm.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = decay

    def decay_at(self, step: int) -> float:
        """The decay of the update that follows `step` earlier ones."""
        return min(self._decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, model: nn.Module, *, step: int) -> None:
        """Move the average towards the weights that `step` earlier steps and one more made."""
        averaged, current = [], []
        for average, followed in zip(_tensors(self.model), _tensors(model), strict=True):
            if average.is_floating_point():
                averaged.append(average)
                current.append(followed)
            else:
                average.copy_(followed)
        get_ema_multi_avg_fn(self.decay_at(step))(averaged, current, step)

    def load(self, state_dict: Mapping[str, Tensor]) -> None:
        """Continue from a saved average, or from a model's weights where there was none."""
        self.model.load_state_dict(dict(state_dict))


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())
