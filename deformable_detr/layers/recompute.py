"""Gradient checkpointing: a layer's activations are recomputed rather than stored."""

from collections.abc import Callable

from torch import Tensor
from torch.utils.checkpoint import checkpoint


def call_and_forget(layer: Callable[..., Tensor], *inputs: object) -> Tensor:
    """Return `layer(*inputs)`, with only the inputs stored for backward (Chen et al., 2016).

    The layer runs again in the backward pass, with the same dropout and under the same autocast.
    """
    # The re-entrant variant fails under DDP's no_sync and for inputs that are not tensors.
    return checkpoint(layer, *inputs, use_reentrant=False)
