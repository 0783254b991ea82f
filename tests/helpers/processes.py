"""Run a function in several processes of one group, as a launcher would start them."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import multiprocessing

from deformable_detr import distributed

_T = TypeVar("_T")


def run_in_processes(
    function: Callable[[Path], _T], folder: Path, *, world_size: int = 2
) -> list[_T]:
    """Call `function(folder)` in each process; return the results by rank.

    Args:
        function: defined in a module, so that a new process can import it.
        folder: passed to the function, and used to return the results.
        world_size: number of processes.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(_work, (function, folder, world_size, port), nprocs=world_size)
    return [_take_result(folder, rank) for rank in range(world_size)]


def _take_result(folder: Path, rank: int) -> Any:
    path = _result(folder, rank)
    result = torch.load(path, weights_only=False)
    path.unlink()  # may be as large as a gigabyte
    return result


def _result(folder: Path, rank: int) -> Path:
    return folder / f"result_{rank}.pth"


def _work(
    rank: int, function: Callable[[Path], object], folder: Path, world_size: int, port: int
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    distributed.start(torch.device("cpu"))
    try:
        torch.save(function(folder), _result(folder, rank))
    finally:
        distributed.stop()
