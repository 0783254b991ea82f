"""No operator whose result depends on chance."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# cuBLAS is deterministic with workspaces of its own only: NVIDIA, "Results reproducibility".
_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Within it, PyTorch and our operators take their deterministic kernels, or raise an error.

    To be entered before the process computes anything on a GPU. On a CPU two runs are equal
    bitwise without it, given the same number of threads.

    Args:
        enabled: else nothing changes.
    """
    if not enabled:
        yield
        return
    os.environ.setdefault(*_WORKSPACE)
    before = torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False  # which chooses kernels by their speed of the moment
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = benchmark
