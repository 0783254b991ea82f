"""Distributed training; the only module that imports torch.distributed.

All functions are safe, mostly no-ops, in a single process. A launcher (torchrun) sets RANK,
LOCAL_RANK and WORLD_SIZE, and the number of restarts in TORCHELASTIC_RESTART_COUNT; nothing else is
read from the environment.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from deformable_detr.messages import in_brief

_T = TypeVar("_T")
TIMEOUT_S = 1800.0  # PyTorch's, for gloo


def choose_device(name: str = "auto") -> torch.device:
    """Choose the device of this process.

    Args:
        name: "auto" is the GPU of this process's local rank, else Apple's MPS, else the CPU;
            "cuda" is the GPU of the local rank; otherwise cpu, cuda:<index> or mps.

    Raises:
        ValueError: the name is not a device name.
        RuntimeError: the device is not available.
    """
    if not isinstance(name, str):
        raise ValueError(f"device must be a name such as auto, cpu or cuda:1, got {in_brief(name)}")
    if name == "auto":
        if torch.cuda.is_available():
            name = "cuda"
        else:
            name = "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps") or str(device) != name:
            raise RuntimeError("of another kind, or of a large index, which PyTorch wraps")
    except RuntimeError as error:
        raise ValueError(
            f"device must be auto, cpu, cuda, cuda:<index> or mps, got {in_brief(name)}"
        ) from error
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise RuntimeError("device mps is not available here; choose auto or cpu")
    if device.type != "cuda":
        return device
    index = local_rank() if device.index is None else device.index
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        raise RuntimeError(
            f"device cuda:{index} is not available here, PyTorch sees {count} GPUs; "
            "choose auto or cpu, or start fewer processes"
        )
    return torch.device("cuda", index)


def start(device: torch.device, *, timeout_s: float = TIMEOUT_S) -> None:
    """Join the process group if a launcher started this process; else do nothing.

    On a GPU the group uses NCCL for CUDA tensors and gloo for CPU tensors.

    Args:
        device: device of this process.
        timeout_s: seconds that a collective operation waits for other processes before it fails.
    """
    if "RANK" not in os.environ:
        return
    if device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"device must be cpu or cuda under a launcher, got {device.type}; "
            "start a single process without torchrun"
        )
    store, rank, world_size = next(rendezvous("env://"))
    # After a restart torchrun's store still holds the addresses of the former processes.
    store = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
    )


def stop() -> None:
    """Leave the process group that `start` joined."""
    if is_started():
        dist.destroy_process_group()


def is_started() -> bool:
    """Return whether this process has joined a process group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return the rank of this process."""
    return dist.get_rank() if is_started() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if is_started() else 1


def local_rank() -> int:
    """Return the rank of this process among those of its machine, as set by the launcher."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """Return whether this is rank 0, the only process that writes files and prints."""
    return rank() == 0


def barrier() -> None:
    """Wait until all processes have called this."""
    if is_started():
        dist.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """Run the block in one process per machine before the others, as for a download."""
    if local_rank() != 0:
        barrier()
    try:
        yield
    finally:
        if local_rank() == 0:
            barrier()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Return the sum of `tensor` over all processes; shape and dtype must be the same in all."""
    if not is_started():
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def all_gather_objects(value: _T) -> list[_T]:
    """Gather a picklable `value` from all processes, in the order of ranks, over the CPU."""
    if not is_started():
        return [value]
    gathered: list[_T | None] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered  # type: ignore[return-value]  # all elements have been set


def from_main(compute: Callable[[], _T]) -> _T:
    """Compute a picklable value on rank 0 only, and return it on every process.

    Raises:
        Exception: the one that `compute` raised, on every process.
    """
    outcome: tuple[_T | None, Exception | None] = (None, None)
    if is_main():
        try:
            outcome = (compute(), None)
        except Exception as error:
            outcome = (None, error)
    value, failure = all_gather_objects(outcome)[0]
    if is_main():
        failure = outcome[1]  # with its traceback and its cause
    if failure is not None:
        raise failure
    return value  # type: ignore[return-value]  # rank 0 has set it


class Board:
    """Board of short texts that processes of a started group exchange without waiting.

    It uses the key-value store of the rendezvous over a separate connection, so that a thread may
    use it while the main thread waits.

    Args:
        name: namespace of the keys.
    """

    def __init__(self, name: str) -> None:
        self._store = dist.distributed_c10d._get_default_store().clone()
        self._name = name

    def write(self, key: str, text: str) -> None:
        """Write a text, replacing an earlier one; no effect if the store is gone."""
        with suppress(RuntimeError):
            self._store.set(f"{self._name}/{key}", text)

    def read(self, key: str) -> str | None:
        """Return the text; None if there is none, or the store is gone."""
        with suppress(RuntimeError):
            if self._store.check([f"{self._name}/{key}"]):
                return str(self._store.get(f"{self._name}/{key}").decode())
        return None


def wrap_ddp(model: nn.Module) -> nn.Module:
    """Wrap a model in DistributedDataParallel; return the model itself in a single process.

    Every parameter must get a gradient in every step: unused parameters are not searched for.
    """
    if not is_started():
        return model
    return DistributedDataParallel(model, find_unused_parameters=False)


@torch.no_grad()
def average_statistics(model: nn.Module) -> None:
    """Set the running statistics of batch norms to their mean over all processes.

    Each process updates its own by its own images; afterwards all hold the same, which have seen
    the images of all. Statistics of norms in eval mode do not change and are left alone.

    Args:
        model: the model, in the mode of the step; every process must call.
    """
    found = [
        statistic
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
        for statistic in module.buffers(recurse=False)
    ]
    if not is_started() or not found:
        return
    total = all_reduce_sum(torch.cat([statistic.flatten().double() for statistic in found]))
    means = (total / world_size()).split([statistic.numel() for statistic in found])
    for statistic, mean in zip(found, means, strict=True):
        is_counter = not statistic.is_floating_point()
        statistic.copy_((mean.round() if is_counter else mean).view_as(statistic))


def gradient_sync(model: nn.Module, *, enabled: bool) -> AbstractContextManager[None]:
    """Return a context in which backward averages gradients over processes only if `enabled`."""
    if enabled or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()
