"""Several processes as one: the only file that talks to torch.distributed.

Every function works, and does the obvious, in a single process. A launcher (torchrun) says
through RANK, LOCAL_RANK and WORLD_SIZE who is who, and through TORCHELASTIC_RESTART_COUNT how often
they were restarted; nothing else is read from the environment.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

_T = TypeVar("_T")
TIMEOUT_S = 1800.0  # PyTorch's, for gloo


def choose_device(name: str = "auto") -> torch.device:
    """The device this process should use.

    Args:
        name: "auto" is the GPU of this process's local rank, else Apple's MPS, else the CPU;
            "cuda" is the GPU of the local rank; anything else as PyTorch names devices.

    Raises:
        ValueError: no device has that name.
        RuntimeError: this machine lacks the device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            name = "cuda"
        else:
            name = "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"device must be auto, cpu, cuda, cuda:<index> or mps, got {name!r}"
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
    """Join the other processes where a launcher started this one; else do nothing.

    On a GPU one group serves both sides: NCCL for its tensors, gloo for those on the CPU.

    Args:
        device: of this process.
        timeout_s: how long an operation waits for other processes before it is an error.
    """
    if "RANK" not in os.environ:
        return
    if device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"device must be cpu or cuda under a launcher, got {device.type}; "
            "start a single process without torchrun"
        )
    store, rank, world_size = next(rendezvous("env://"))
    # torchrun's store still has the addresses of the processes that it has restarted.
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
    """Leave the group that `start` joined."""
    if is_started():
        dist.destroy_process_group()


def is_started() -> bool:
    """Whether this process has joined a group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process among all, 0 first."""
    return dist.get_rank() if is_started() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if is_started() else 1


def local_rank() -> int:
    """The number of this process among those of its machine, as the launcher says."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """Whether this is the one process that writes files and talks to people."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process is here."""
    if is_started():
        dist.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """Let one process of each machine run the block before the others, as for a download."""
    if local_rank() != 0:
        barrier()
    try:
        yield
    finally:
        if local_rank() == 0:
            barrier()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of every process's `tensor`, which must have one shape and dtype."""
    if not is_started():
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def all_gather_objects(value: _T) -> list[_T]:
    """Every process's picklable `value`, in the order of ranks; travels through the CPU."""
    if not is_started():
        return [value]
    gathered: list[_T | None] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered  # type: ignore[return-value]  # every place has been filled


class Board:
    """Short texts that processes leave for each other without waiting, once they have started.

    It is the store through which they have found each other, by a connection of its own, so that
    a thread may use it while the main thread waits for something else.

    Args:
        name: of this use; others do not see its texts.
    """

    def __init__(self, name: str) -> None:
        self._store = dist.distributed_c10d._get_default_store().clone()
        self._name = name

    def write(self, key: str, text: str) -> None:
        """Leave a text, in place of an earlier one; without effect where the store is gone."""
        with suppress(RuntimeError):
            self._store.set(f"{self._name}/{key}", text)

    def read(self, key: str) -> str | None:
        """The text; None where there is none, or the store is gone."""
        with suppress(RuntimeError):
            if self._store.check([f"{self._name}/{key}"]):
                return str(self._store.get(f"{self._name}/{key}").decode())
        return None


def wrap_ddp(model: nn.Module) -> nn.Module:
    """The model with its gradients averaged over processes; the model itself where alone.

    Every parameter must get a gradient in every step: nothing searches for unused ones.
    """
    if not is_started():
        return model
    return DistributedDataParallel(model, find_unused_parameters=False)


def gradient_sync(model: nn.Module, *, enabled: bool) -> AbstractContextManager[None]:
    """A context in which backward does, or does not yet, average gradients over processes."""
    if enabled or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()
