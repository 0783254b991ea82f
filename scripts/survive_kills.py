#!/usr/bin/env python
"""Kill a training run repeatedly, and compare it with an undisturbed one.

Runs a command under torchrun twice: undisturbed, and with SIGKILL to a worker, all workers or the
launcher, during start-up, in a step and while a checkpoint is being written. After each kill the
newest checkpoint must load. At the end both runs must have bitwise equal weights, moving averages,
optimizer moments and losses. Prints a table; the exit code is 1 if a check fails.

Usage: python scripts/survive_kills.py --out FOLDER --kills 20 -- --config NAME KEY=VALUE...
Needs Linux, and a run of at least about six steps per kill. Arguments after -- are those of
`deformable-detr train`.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deformable_detr.engine.checkpoints.checkpoint import Checkpoint, load_checkpoint
from deformable_detr.engine.metrics import read_records
from deformable_detr.engine.run.folder import RunFolder
from deformable_detr.files import partial_path

VICTIMS = ("a worker", "all workers", "the launcher")
MOMENTS = ("in a step", "while writing", "in its start")
MEASURED = ("train", "evaluation")  # kinds of records that must not differ
START_S = 10.0  # duration of "in its start"
TIMEOUT_S = 300.0
COLUMNS = "{:>3}  {:12}  {:13}  {:>4}  {:>5}  {}"


class SurvivalError(Exception):
    """Failure of a check: the run has not survived."""


@dataclass(frozen=True)
class Run:
    """Training command under torchrun, which continues the run in its folder."""

    files: RunFolder
    processes: int
    arguments: list[str]

    def start(self, *, max_restarts: int) -> subprocess.Popen[bytes]:
        """Start the launcher; its output goes to a file beside the run folder."""
        self.files.path.parent.mkdir(parents=True, exist_ok=True)
        launcher = ["torch.distributed.run", "--standalone", f"--max-restarts={max_restarts}"]
        launcher += [f"--nproc-per-node={self.processes}", "-m", "deformable_detr"]
        command = ["train", "--run-dir", str(self.files.path), "--resume", "auto", *self.arguments]
        # Record each step: a mean over several steps would depend on the time of a restart.
        command += ["train.log_every=1"]
        with self.files.path.with_suffix(".log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *launcher, *command], stdout=log, stderr=log
            )

    def recorded_step(self) -> int:
        """Return the newest step in the metrics file; 0 if there is none."""
        if not self.files.metrics.is_file():
            return 0
        lines = self.files.metrics.read_text().split("\n")[:-1]  # the last may be unfinished
        return json.loads(lines[-1])["step"] if lines else 0

    def saved_step(self) -> int:
        """Return the step of the newest checkpoint; 0 if there is none."""
        try:
            return load_checkpoint(self.files.last).step
        except FileNotFoundError:
            return 0
        except ValueError as error:
            raise SurvivalError(str(error)) from error

    def is_writing(self) -> bool:
        """Return whether a checkpoint is being written."""
        return partial_path(self.files.last).exists()


def parent_of(pid: int) -> int | None:
    """Return the parent of a process; None if the process has ended."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state == "Z" else int(parent)


def children_of(pid: int) -> set[int]:
    """Return the running children of a process."""
    pids = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
    return {child for child in pids if parent_of(child) == pid}


def wait_until(condition: Callable[[], bool], what: str, *, poll_s: float = 0.02) -> float:
    """Wait until the condition holds; return the seconds waited."""
    begin = time.monotonic()
    while not condition():
        if time.monotonic() > begin + TIMEOUT_S:
            raise SurvivalError(f"there was no {what} within {TIMEOUT_S:g} s")
        time.sleep(poll_s)
    return time.monotonic() - begin


def kill(run: Run, launcher: subprocess.Popen[bytes], victim: str, pick: random.Random) -> str:
    """Kill the victim; wait until orphans have ended or killed workers have been restarted."""
    wait_until(lambda: len(children_of(launcher.pid)) == run.processes, "workers")
    workers = sorted(children_of(launcher.pid))
    if victim == "the launcher":
        launcher.kill()
        launcher.wait()
        took = wait_until(lambda: not any(map(parent_of, workers)), "end of the orphans")
        return f"the orphans ended after {took:.1f} s"
    for pid in [pick.choice(workers)] if victim == "a worker" else workers:
        os.kill(pid, signal.SIGKILL)
    took = wait_until(
        lambda: len(children_of(launcher.pid) - set(workers)) == run.processes, "restart"
    )
    return f"restarted after {took:.1f} s"


def kill_at_random(run: Run, kills: int, pick: random.Random) -> Iterator[tuple[object, ...]]:
    """Yield the rows of the table; the run has ended after the last one."""
    launcher = run.start(max_restarts=kills)
    try:
        for number in range(kills):
            victim = VICTIMS[number % len(VICTIMS)]
            moment = MOMENTS[number] if number < len(MOMENTS) else pick.choice(MOMENTS)
            wait_for(moment, run, pick)
            if launcher.poll() is not None:
                raise SurvivalError(f"the run ended after {number} kills; give it more steps")
            step = run.recorded_step()
            outcome = kill(run, launcher, victim, pick)
            yield number + 1, victim, moment, step, run.saved_step(), outcome
            if launcher.poll() is not None:
                launcher = run.start(max_restarts=kills)
        if launcher.wait() != 0:
            raise SurvivalError(f"the launcher ended with {launcher.returncode}; see the log")
    finally:
        launcher.terminate()
        launcher.wait()


def wait_for(moment: str, run: Run, pick: random.Random) -> None:
    """Wait for a moment of the given kind in the run."""
    if moment == "in its start":
        time.sleep(pick.uniform(0, START_S))
        return
    later = run.recorded_step() + pick.randint(1, 6)
    wait_until(lambda: run.recorded_step() >= later, f"step {later}")
    time.sleep(pick.uniform(0, 0.3))
    if moment == "while writing":
        wait_until(run.is_writing, "checkpoint", poll_s=0)


def compare(reference: RunFolder, survivor: RunFolder) -> str:
    """Summarize the equal content of both runs; raise if they differ."""
    first, second = (dict(tensors(load_checkpoint(files.last))) for files in (reference, survivor))
    differing = [name for name in first.keys() | second if not first[name].equal(second[name])]
    if differing:
        raise SurvivalError(f"{len(differing)} tensors differ, first: {min(differing)}")
    records, others = (
        [record for record in read_records(files.metrics) if record["kind"] in MEASURED]
        for files in (reference, survivor)
    )
    if records != others:
        raise SurvivalError("the records of the runs differ")
    return f"{len(first)} tensors and {len(records)} records of both runs are the same, bit by bit"


def tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, object]]:
    """Yield name and value of all tensors of a checkpoint."""
    yield from ((f"model.{name}", value) for name, value in checkpoint.model.items())
    yield from ((f"ema.{name}", value) for name, value in (checkpoint.ema or {}).items())
    for number, moments in checkpoint.optimizer["state"].items():
        yield from ((f"optimizer.{number}.{name}", value) for name, value in moments.items())


def main() -> int:
    """Run the comparison; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for both runs")
    parser.add_argument("--kills", type=int, default=20, help="number of kills (default: 20)")
    parser.add_argument("--processes", type=int, default=2, help="number of workers (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="seed of victims and moments")
    parser.add_argument(
        "train", nargs="+", metavar="ARGUMENT", help="arguments of deformable-detr train"
    )
    options = parser.parse_args()
    reference, survivor = (
        Run(RunFolder(options.out / name), options.processes, options.train)
        for name in ("reference", "survivor")
    )
    try:
        if reference.start(max_restarts=0).wait() != 0:
            raise SurvivalError(f"the undisturbed run failed; see {options.out}/reference.log")
        print(COLUMNS.format("", "killed", "moment", "step", "saved", ""))
        for row in kill_at_random(survivor, options.kills, random.Random(options.seed)):
            print(COLUMNS.format(*row), flush=True)
        print(compare(reference.files, survivor.files))
    except SurvivalError as failure:
        print(f"failed: {failure}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
