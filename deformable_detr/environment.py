"""Package versions and hardware of a run."""

import os
import platform
import sys
from pathlib import Path

import torch
import torchvision

from deformable_detr.version import __version__

_CPUINFO = Path("/proc/cpuinfo")


def current_versions() -> dict[str, str]:
    """Return the package versions to store in a checkpoint."""
    return {
        "deformable_detr": __version__,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "python": platform.python_version(),
    }


def cpu_name() -> str:
    """Return the name of the processor as reported by the system."""
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
