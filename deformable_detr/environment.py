"""Package versions and hardware of a run."""

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import torch
import torchvision

from deformable_detr.version import __version__

_CPUINFO = Path("/proc/cpuinfo")
_MEMINFO = Path("/proc/meminfo")
_SHARED_MEMORY = Path("/dev/shm")
_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container


def current_versions() -> dict[str, str]:
    """Return the package versions to store in a checkpoint."""
    return {
        "deformable_detr": __version__,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "python": platform.python_version(),
    }


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of installed packages; "" for one that is missing."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def cpu_name() -> str:
    """Return the name of the processor as reported by the system."""
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def computes_bfloat16(device: torch.device) -> bool:
    """Return whether a device multiplies matrices of bfloat16 faster than those of float32.

    Of CPUs, those with AVX-512 BF16 or AMX do; of GPUs, those since Ampere.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or not _CPUINFO.exists():
        return False
    return bool(re.search(r"^flags\s*:.* (avx512_bf16|amx_bf16)\b", _CPUINFO.read_text(), re.M))


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> tuple[int, int] | None:
    """Return the memory in total and available, at most a container's limit; None if unknown."""
    if not _MEMINFO.exists():
        return None
    pairs = (line.partition(":")[::2] for line in _MEMINFO.read_text().splitlines())
    sizes = {name: int(text.split()[0]) * 1024 for name, text in pairs}
    total, available = sizes["MemTotal"], sizes["MemAvailable"]
    limit = _MEMORY_LIMIT.read_text().strip() if _MEMORY_LIMIT.exists() else "max"
    if limit.isdecimal():
        total = min(total, int(limit))
    return total, min(total, available)


def shared_memory_bytes() -> int | None:
    """Return the free shared memory, through which workers pass images; None if not limited."""
    return shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else None
