"""The surroundings of a workflow: the other processes of a launcher, and PyTorch's global state."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from deformable_detr import distributed


@contextmanager
def kept_torch_state(device: str) -> Iterator[torch.device]:
    """Leave PyTorch's global state as it was found, whatever the block does.

    Random numbers that the caller draws afterwards are those that it would have drawn without the
    block. Gradient and inference mode of the caller do not reach into it.

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
    """Join the processes of a launcher, too; all of them must call.

    A process group that the caller has started is used, and left running.

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
