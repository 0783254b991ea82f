"""How much memory training has taken at its peak."""

import re
import sys
from pathlib import Path

import torch

from deformable_detr import distributed
from deformable_detr.engine.run_folder import RunFolder
from deformable_detr.engine.state import TrainState

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

_STATUS = Path("/proc/self/status")
_BYTES_PER_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, getrusage(2)


def peak_memory(device: torch.device) -> dict[str, float]:
    """Peaks of the process that took most, in units of 10^6 bytes; every process must call.

    On a GPU what tensors took (`peak_allocated_mb`) and what PyTorch held for them
    (`peak_reserved_mb`) since the last call. Elsewhere the resident memory of the process
    (`peak_resident_mb`) since it began, without data-loading workers; nothing on Windows.
    """
    if device.type == "cuda":
        peaks = {
            "peak_allocated_mb": torch.cuda.max_memory_allocated(device) / 1e6,
            "peak_reserved_mb": torch.cuda.max_memory_reserved(device) / 1e6,
        }
        torch.cuda.reset_peak_memory_stats(device)
    elif resource is not None:
        peaks = {"peak_resident_mb": _peak_resident_bytes() / 1e6}
    else:
        peaks = {}
    everywhere = distributed.all_gather_objects(peaks)
    return {name: max(one[name] for one in everywhere) for name in peaks}


def resident_bytes(field: str) -> int:
    """What Linux counts of this process's memory, by a name of proc(5), such as "VmHWM", the peak.

    Raises:
        OSError: the system does not tell.
    """
    found = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{_STATUS} must hold {field}, found none")
    return int(found[1]) * 1024


def _peak_resident_bytes() -> int:
    try:
        return resident_bytes("VmHWM")
    except OSError:  # not Linux, where this one would also count the program that started this one
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _BYTES_PER_UNIT


def record_peak_memory(state: TrainState, folder: RunFolder) -> str:
    """Add the peaks of an epoch to the metrics file; a line for people. Every process must call."""
    peaks = peak_memory(state.device)
    folder.record("memory", {"step": state.step, "epoch": state.epoch, **peaks})
    shown = ", ".join(
        f"{name.removeprefix('peak_').removesuffix('_mb')} {megabytes:,.0f} MB"
        for name, megabytes in peaks.items()
    )
    return f"step {state.step}: peak memory {shown or 'unknown'}"
