"""Context managers of a workflow: PyTorch's global state, and the process group of a launcher."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from deformable_detr import distributed


@contextmanager
def kept_torch_state(device: str) -> Iterator[torch.device]:
    """Restore PyTorch's random state at the end of the block.

    The caller then draws the same random numbers as without the block. Inside the block gradients
    are enabled and inference mode is off, whatever the caller's modes are.

    Args:
        device: as for `distributed.choose_device`.

    Yields:
        The device of this process.
    """
    chosen = distributed.choose_device(device)
    cuda_devices = [chosen] if chosen.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=cuda_devices),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        yield chosen


@contextmanager
def session(device: str, *, timeout_s: float = distributed.TIMEOUT_S) -> Iterator[torch.device]:
    """Keep PyTorch's state as `kept_torch_state` does, and join the process group of a launcher.

    All processes must call it. A process group that the caller has started is used and left
    running.

    Args:
        device: as for `distributed.choose_device`.
        timeout_s: seconds after which a collective operation fails.

    Yields:
        The device of this process.
    """
    with kept_torch_state(device) as chosen:
        joins = not distributed.is_started()
        if joins:
            distributed.start(chosen, timeout_s=timeout_s)
        try:
            yield chosen
        finally:
            if joins:
                distributed.stop()
