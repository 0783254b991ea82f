"""Peak memory of a call, above the memory in use before it."""

import gc
from collections.abc import Callable
from pathlib import Path

import torch

from deformable_detr.engine.memory import resident_bytes, return_freed_memory

_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): resets the peak resident set size to the current one


def peak_extra_megabytes(call: Callable[[], object], *, device: str) -> float | None:
    """Measure the peak memory of a call above the memory before it, in 10^6 bytes.

    Outputs are included. On a CPU, this is the resident set of a process that has not made such a
    call before: buffers that the call keeps for the next one are included, code that is loaded
    from files is not. None if not available on this platform.
    """
    gc.collect()
    if device == "cuda":
        return _peak_on_gpu(call)
    return_freed_memory()  # reusing it would not be measured
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
