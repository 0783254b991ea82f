"""A worker process that is replaced when it dies or takes too long, and verdicts."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzzing.sound import Sound

MOST_S = 10.0  # of processor time
MOST_WAIT_S = 60.0  # of time without an answer: the input hangs
MOST_MB = 2048.0
START_S = 300.0
PROGRAM = ("-m", "fuzzing.worker")


@dataclass
class Verdict:
    """Outcome of an input."""

    index: int
    kind: str
    problems: list[str] = field(default_factory=list)
    works: bool = False
    seconds: float = 0.0
    peak_mb: float = 0.0
    text: str = ""


class Worker:
    """A process that tries inputs; started at the first one, and after each that ended it."""

    def __init__(
        self, sound: Sound, *, program: Sequence[str] = PROGRAM, wait_s: float = MOST_WAIT_S
    ) -> None:
        self._command = [sys.executable, *program, str(sound.folder.resolve())]
        self._place = sound.folder
        self._wait_s = wait_s
        self._process: subprocess.Popen[str] | None = None

    def try_input(self, info: dict[str, Any]) -> dict[str, Any]:
        """Return the worker's answer; of one that hangs or dies, a problem."""
        if self._process is None:
            self._start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        process.stdin.write(json.dumps(info) + "\n")
        process.stdin.flush()
        return self._answer(self._wait_s)

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None

    def _start(self) -> None:
        scripts = Path(__file__).parents[1]
        paths = [str(scripts), str(scripts.parent), os.environ.get("PYTHONPATH", "")]
        with (self._place / "worker.log").open("a") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self._place,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            )
        if not self._answer(START_S).get("ready"):
            raise RuntimeError(f"worker did not start: {(self._place / 'worker.log').read_text()}")

    def _answer(self, wait_s: float) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        begin = time.monotonic()
        ready, _, _ = select.select([process.stdout], [], [], wait_s)
        line = process.stdout.readline() if ready else ""
        if line:
            return json.loads(line)
        seconds = time.monotonic() - begin
        self.stop()
        what = "the worker died" if ready else f"no end after {seconds:.0f} s"
        return {"problems": [what], "steps": {}, "texts": [], "seconds": seconds, "peak_mb": 0.0}


def judge(index: int, kind: str, answer: dict[str, Any]) -> Verdict:
    """Return the verdict on a worker's answer."""
    problems = list(answer["problems"])
    if answer["seconds"] > MOST_S and "no end" not in "".join(problems):
        problems.append(f"took {answer['seconds']:.1f} s of processor time")
    if answer["peak_mb"] > MOST_MB:
        problems.append(f"took {answer['peak_mb']:.0f} MB")
    return Verdict(
        index,
        kind,
        problems,
        works=all(answer["steps"].values()),
        seconds=answer["seconds"],
        peak_mb=answer["peak_mb"],
        text=(answer["texts"] or [""])[0],
    )


def contents(*folders: Path) -> dict[Path, bytes]:
    """Read all files below the folders."""
    paths = (path for folder in folders for path in sorted(folder.rglob("*")))
    return {path: path.read_bytes() for path in paths if path.is_file()}


def restored(before: dict[Path, bytes], *folders: Path) -> list[str]:
    """Make the files below the folders bitwise what they were; name those that were not."""
    after = contents(*folders)
    names = sorted(before.keys() | after.keys())
    changed = [path for path in names if before.get(path) != after.get(path)]
    for path in changed:
        if path in before:
            path.write_bytes(before[path])
        else:
            path.unlink()
    return [f"changed: {path}" for path in changed]
