"""The memory that a call takes at its peak, above what was there before it."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch

from deformable_detr.benchmark.machine import has_glibc
from deformable_detr.engine.memory import resident_bytes

_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): the peak resident set size becomes the present one


def peak_extra_megabytes(call: Callable[[], object], *, device: str) -> float | None:
    """Peak memory during a call above that before it, in units of 10^6 bytes; outputs count.

    On a CPU that is the resident set, of a process that has not made such a call before: what the
    call keeps for the next one counts too, but not the code that is loaded for it from files. None
    where the system does not tell.
    """
    gc.collect()
    if device == "cuda":
        return _peak_on_gpu(call)
    if has_glibc():
        # What was freed stays with the process and would be used again, unseen.
        ctypes.CDLL(None).malloc_trim(0)
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK)
        before, code_before = resident_bytes("VmRSS"), resident_bytes("RssFile")
    except OSError:
        return None
    result = call()
    peak, code = resident_bytes("VmHWM"), resident_bytes("RssFile")
    del result
    return (peak - before - (code - code_before)) / 1e6


def _peak_on_gpu(call: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6
