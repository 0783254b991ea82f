"""The machine a benchmark runs on, in words, and whether it is idle."""

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from deformable_detr.environment import cpu_name, num_cores

_STAT = Path("/proc/stat")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_BUSY_SHARE = 0.1  # of the cores, above which figures are not to be trusted


@dataclass(frozen=True)
class Machine:
    """What figures depend on.

    Attributes:
        cores: that this process may use.
        caches: sizes as the system writes them, by level, of the first core.
        load_average: over the last minute; None where the system does not tell.
        busy_cores: cores that other programs used, for a second before or, in a report, all the
            while; None likewise.
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
        """That the machine is not idle, if so."""
        busy = self.load_average if self.busy_cores is None else self.busy_cores
        if busy is None or busy <= _BUSY_SHARE * self.cores:
            return None
        return (
            f"other programs keep {busy:.1f} of {self.cores} cores busy: times by the wall clock "
            "will be too long, and ratios less certain"
        )


def describe_machine(device: str) -> Machine:
    """Look at this machine, for a second."""
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
    """Whether memory comes from glibc, whose settings the two allocators differ in."""
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
    """Watches, from when it is made, how much others compute."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._at_begin = _others_seconds()

    def busy_cores(self) -> float | None:
        """Cores that they have used since; None where the system does not tell."""
        now = _others_seconds()
        if now is None or self._at_begin is None:
            return None
        return max(0.0, now - self._at_begin) / (time.monotonic() - self._begun)


def _others_seconds() -> float | None:
    """CPU time of all programs but this one and the children it has waited for."""
    if not _STAT.exists():
        return None
    # proc(5): user, nice, system, idle, iowait, irq, softirq, steal, ...; guest time is in user.
    user, nice, system, _, _, irq, softirq, steal = map(int, _STAT.read_text().split()[1:9])
    ticks = user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])
