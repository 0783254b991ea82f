"""Gradient checkpointing: a layer's inner activations are computed twice rather than kept."""

from collections.abc import Callable

from torch import Tensor
from torch.utils.checkpoint import checkpoint


def call_and_forget(layer: Callable[..., Tensor], *inputs: object) -> Tensor:
    """`layer(*inputs)`, of which the backward pass keeps the inputs alone (Chen et al., 2016).

    The layer runs again in the backward pass, with the same dropout and under the same autocast.
    """
    # The re-entrant variant fails under DDP's no_sync and on inputs that are no tensors.
    return checkpoint(layer, *inputs, use_reentrant=False)
