"""Exponential moving average (EMA) of a model's weights, which often scores a higher AP."""

import copy
from collections.abc import Iterator, Mapping
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class ExponentialMovingAverage:
    """Copy of a model that holds the moving average of its weights.

    The decay of step t is min(decay, (1 + t) / (10 + t)), so that the average forgets the
    initial weights quickly and only then becomes slow.

    Args:
        model: the model to average; it is copied.
        decay: share of the average that is kept per step, in [0, 1), after the first steps.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = decay

    def decay_at(self, step: int) -> float:
        """Return the decay of the update that follows `step` earlier ones."""
        return min(self._decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, model: nn.Module, *, step: int) -> None:
        """Move the average towards the weights of `model`, after `step` earlier updates."""
        averaged, current = [], []
        for average, newest in zip(_tensors(self.model), _tensors(model), strict=True):
            if average.is_floating_point():
                averaged.append(average)
                current.append(newest)
            else:
                average.copy_(newest)
        get_ema_multi_avg_fn(self.decay_at(step))(averaged, current, step)

    def load(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load a saved average, or a model's weights if no average was saved."""
        self.model.load_state_dict(dict(state_dict))


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())
