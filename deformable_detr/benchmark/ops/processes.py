"""Child processes, because allocator settings take effect at process start."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

from pydantic import TypeAdapter

from deformable_detr.benchmark.ops.jobs import Allocator, Job

Result = TypeVar("Result")

# With `python -m`, a checkout in the working directory would shadow the package in use.
_START = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from deformable_detr.benchmark.ops.worker import main; main()"
)
_COMMAND = (sys.executable, "-c", _START, str(Path(__file__).parents[3]))
# Busy waiting of threads would count as CPU time.
_WAIT_ASLEEP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
# Memory is kept: large buffers come from the heap, which is never trimmed.
_KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
}


def environment_of(allocator: Allocator) -> dict[str, str]:
    """Return the environment of a child: ours, with settings of memory and waiting."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if not (name.startswith("MALLOC_") or name == "GLIBC_TUNABLES")
    }
    return ours | _WAIT_ASLEEP | (_KEEP_MEMORY if allocator == "warm" else {})


def run_job(
    job: Job,
    answer: type[Result],
    *,
    allocator: Allocator = "default",
    report: Callable[[str], None],
) -> Result:
    """Run a job in its own process.

    Raises:
        RuntimeError: the process failed; the message has the last line of its error output.
    """
    command = [*_COMMAND, TypeAdapter(Job).dump_json(job).decode()]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as errors,
        subprocess.Popen(
            command,
            env=environment_of(allocator),
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
        ) as process,
    ):
        try:
            result = _follow(process, report)
            code = process.wait()
        except BaseException:
            process.kill()
            raise
        if code != 0 or result is None:
            raise RuntimeError(f"the {job.task} job {_end(code)}: {_last(errors)}")
    return TypeAdapter(answer).validate_python(result)


def _follow(process: "subprocess.Popen[str]", report: Callable[[str], None]) -> object:
    """Report progress, and return the result once it arrives."""
    result = None
    assert process.stdout is not None
    for line in process.stdout:
        message = json.loads(line)
        if "progress" in message:
            report(message["progress"])
        else:
            result = message["result"]
    return result


def _end(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with code {code}"


def _last(errors: IO[str]) -> str:
    errors.seek(0)
    lines = errors.read().split("\n")
    return next((line for line in reversed(lines) if line.strip()), "no error output")
