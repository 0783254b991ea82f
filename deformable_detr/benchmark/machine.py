"""Description of the machine that a benchmark runs on, and whether it is idle."""

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from deformable_detr.environment import cpu_name, num_cores

_STAT = Path("/proc/stat")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_BUSY_SHARE = 0.1  # of the cores; above it, results are unreliable


@dataclass(frozen=True)
class Machine:
    """Hardware and software that the results depend on.

    Attributes:
        cores: number of cores that this process may use.
        caches: cache sizes of the first core by level, in the system's notation.
        load_average: load of the last minute; None if not available on this platform.
        busy_cores: number of cores that other programs used, in the second before or, in a
            report, during the whole run; None if not available on this platform.
    """

    cpu: str
    cores: int
    caches: dict[str, str]
    instruction_set: str
    gpu: str | None
    torch: str
    threads: int
    python: str
    system: str
    c_library: str
    load_average: float | None
    busy_cores: float | None

    @property
    def warning(self) -> str | None:
        """Warning that the machine is not idle, or None."""
        busy = self.load_average if self.busy_cores is None else self.busy_cores
        if busy is None or busy <= _BUSY_SHARE * self.cores:
            return None
        return (
            f"other programs keep {busy:.1f} of {self.cores} cores busy: times by the wall clock "
            "will be too long, and ratios less certain"
        )


def describe_machine(device: str) -> Machine:
    """Describe this machine; takes a second."""
    others = OtherPrograms()
    time.sleep(1)
    return Machine(
        cpu=cpu_name(),
        cores=num_cores(),
        caches=_cache_sizes(),
        instruction_set=torch.backends.cpu.get_cpu_capability(),
        gpu=torch.cuda.get_device_name() if device == "cuda" else None,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        system=platform.platform(),
        c_library=" ".join(platform.libc_ver()).strip(),
        load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        busy_cores=others.busy_cores(),
    )


def has_glibc() -> bool:
    """Return whether memory comes from glibc, whose settings distinguish the two allocators."""
    return platform.libc_ver()[0] == "glibc"


def _cache_sizes() -> dict[str, str]:
    sizes = {}
    for folder in sorted(_CACHES.glob("index*")):
        level, kind, size = (
            (folder / name).read_text().strip() for name in ("level", "type", "size")
        )
        if kind != "Instruction":
            sizes[f"L{level}"] = size
    return sizes


class OtherPrograms:
    """Monitor of the CPU use of other programs since its construction."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._at_begin = _others_seconds()

    def busy_cores(self) -> float | None:
        """Return the cores used by others since then; None if not available on this platform."""
        now = _others_seconds()
        if now is None or self._at_begin is None:
            return None
        return max(0.0, now - self._at_begin) / (time.monotonic() - self._begun)


def _others_seconds() -> float | None:
    """Return the CPU time of all programs except this one and its finished children."""
    if not _STAT.exists():
        return None
    # proc(5): user, nice, system, idle, iowait, irq, softirq, steal, ...; guest time is in user.
    user, nice, system, _, _, irq, softirq, steal = map(int, _STAT.read_text().split()[1:9])
    ticks = user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])
