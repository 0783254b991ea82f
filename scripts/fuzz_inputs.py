#!/usr/bin/env python
"""Try hostile inputs: each works, or is refused in one line that names it.

From a seed come annotation files, results files, configs, overrides, checkpoints, photos, file
names and arrays: half of them written by hand, half by hypothesis. A worker process, which has
imported the package, gives each to everything that takes it. Wrong are a traceback, a message that
is no short printable line or does not name the input, training, evaluation and prediction that
differ, more than 10 s of processor time or 2 GB of memory, a hang, and a change of the photos or of
the run they are tried with. `--commands` tries the first ones as whole commands: exit code 0, 1 or
2, no traceback, and one line that begins with "error:" if it is 2.

Prints each failure with its index, which `--only` repeats, and a table by kind. The exit code is 1
if there is one. Needs Linux.

Usage: python scripts/fuzz_inputs.py [--seed 0] [--inputs 500] [--commands 10] [--only INDEX]
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fuzzing.binaries import write_array, write_checkpoint, write_photo
from fuzzing.pool import Verdict, Worker, contents, judge, restored
from fuzzing.sound import Sound, write_sound
from fuzzing.texts import (
    write_annotations,
    write_config,
    write_name,
    write_override,
    write_results,
)

KINDS: dict[str, Callable[[int, int | None, Sound, Path], dict[str, Any]]] = {
    "annotations": write_annotations,
    "results": write_results,
    "config": write_config,
    "override": write_override,
    "checkpoint": write_checkpoint,
    "photo": write_photo,
    "name": write_name,
    "array": write_array,
}
COMMAND_S = 120.0
SHOWN, SHOWN_PROBLEMS = 300, 3  # characters of a problem, problems of an input


def write_input(seed: int, index: int, sound: Sound, folder: Path) -> dict[str, Any]:
    """Write an input to a new folder; return what the worker needs to know of it."""
    folder.mkdir(parents=True)
    kind, number = list(KINDS)[index % len(KINDS)], index // len(KINDS)
    # By hand and drawn in turn; another seed begins at another place of the list.
    fixed = number // 2 + 17 * seed if number % 2 == 0 else None
    info = KINDS[kind](1_000_003 * seed + index, fixed, sound, folder)
    return {"kind": kind, "folder": str(folder), **info}


def try_inputs(
    seed: int,
    indices: Sequence[int],
    sound: Sound,
    worker: Worker,
    folder: Path,
    *,
    verbose: bool = False,
) -> list[Verdict]:
    """Try inputs in a worker."""
    verdicts = []
    for index in indices:
        info = write_input(seed, index, sound, folder / str(index))
        before = contents(sound.photos, sound.runs)
        verdict = judge(index, info["kind"], worker.try_input(info))
        verdict.problems += restored(before, sound.photos, sound.runs)
        print_problems(verdict)
        if verbose:
            print(f"{verdict.kind} {index}: {(verdict.text or 'works')!a}")
        verdicts.append(verdict)
    return verdicts


def print_problems(verdict: Verdict) -> None:
    """Print the first problems of an input at once: the search may be ended before its table."""
    for problem in verdict.problems[:SHOWN_PROBLEMS]:
        print(f"FAILED {verdict.kind}, --only {verdict.index}: {problem[:SHOWN]!a}", flush=True)


def command_of(info: dict[str, Any], sound: Sound) -> list[str] | None:
    """Return the arguments of the command line for an input; None for an array."""
    folder, data = Path(info["folder"]), []
    for part in ("train", "val"):
        data += [
            f"data.{part}.images={sound.photos}",
            f"data.{part}.annotations={sound.annotations}",
        ]
    cpu = ["--device", "cpu"]
    images = ["--images", str(sound.photos)]
    train = ["train", "--run-dir", str(folder / "command"), *cpu, "--config"]
    match info["kind"]:
        case "annotations":
            file = ["--annotations", str(folder / "hostile.json")]
            return ["evaluate", "--checkpoint", str(sound.checkpoint), *images, *file, *cpu]
        case "results":
            file = ["--results", str(folder / "hostile.json")]
            return ["evaluate", *file, "--annotations", str(sound.annotations)]
        case "config":
            return [*train, str(folder / "config.yaml"), *data, "train.max_steps=1"]
        case "override" if not {"\0", "\ud800"} & set(info["override"]):
            text = info["override"][:100_000]  # the system allows 128 kB
            return [*train, str(sound.config), *data, "--", text]
        case "checkpoint":
            file = ["--checkpoint", str(folder / info["checkpoint"]), "--out", str(folder / "out")]
            return ["predict", *file, *cpu, str(sound.photos / "1.png")]
        case "photo":
            file = ["--checkpoint", str(sound.checkpoint), "--out", str(folder / "out")]
            return ["predict", *file, *cpu, str(folder / "images" / info["photo"])]
        case "name":
            places = ["--images", str(folder / "images")]
            file = ["--annotations", str(folder / "named.json")]
            return ["evaluate", "--checkpoint", str(sound.checkpoint), *places, *file, *cpu]
    return None


def try_command(index: int, info: dict[str, Any], sound: Sound) -> Verdict | None:
    """Run the command for an input; None if there is none."""
    arguments = command_of(info, sound)
    if arguments is None:
        return None
    verdict, begin = Verdict(index, f"command {arguments[0]}"), time.monotonic()
    before = contents(sound.photos, sound.runs)
    try:
        ran = subprocess.run(
            [sys.executable, "-m", "deformable_detr", *arguments],
            cwd=info["folder"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        verdict.problems.append(f"no end after {COMMAND_S:g} s")
    else:
        verdict.works = ran.returncode == 0
        verdict.problems += wrong_with(ran.returncode, ran.stderr.decode("utf-8", "replace"))
    verdict.seconds = time.monotonic() - begin
    verdict.problems += restored(before, sound.photos, sound.runs)
    return verdict


def wrong_with(code: int, printed: str) -> list[str]:
    """Return what is wrong with the exit code and the error output of a command."""
    problems = [] if code in (0, 1, 2) else [f"exit code {code}"]
    lines = [line for line in printed.replace("\r", "\n").split("\n") if line]
    if "Traceback" in printed:
        problems.append(f"traceback: {lines[-1]}")
    strange = [line for line in lines if not line.isprintable() or len(line) > 2100]
    if strange:
        problems.append(f"no short printable line: {strange[0][:SHOWN]!a}")
    errors = sum(line.startswith("error: ") for line in lines)
    if code == 2 and errors != 1:
        problems.append(f"must have one line of error, got {printed[-SHOWN:]!a}")
    return problems


def print_table(verdicts: Sequence[Verdict]) -> None:
    """Print a row per kind."""
    columns = "{:20}  {:>6}  {:>6}  {:>7}  {:>6}  {:>9}  {:>8}"
    print(columns.format("kind", "inputs", "works", "refused", "failed", "slowest s", "most MB"))
    for kind in dict.fromkeys(one.kind for one in verdicts):
        own = [one for one in verdicts if one.kind == kind]
        failed = sum(bool(one.problems) for one in own)
        works = sum(one.works and not one.problems for one in own)
        slowest, largest = max(one.seconds for one in own), max(one.peak_mb for one in own)
        counts = (len(own), works, len(own) - works - failed, failed)
        print(columns.format(kind, *counts, f"{slowest:.1f}", f"{largest:.0f}"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the inputs; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inputs", type=int, default=500)
    parser.add_argument("--commands", type=int, default=0, metavar="K")
    parser.add_argument("--only", type=int, action="append", metavar="INDEX")
    parser.add_argument("--folder", type=Path, help="keep the inputs in this new folder")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        place = options.folder or Path(temporary) / "fuzz"
        sound = write_sound(place.resolve() / "sound")
        before = contents(sound.photos, sound.runs)
        indices = options.only or range(options.inputs)
        worker = Worker(sound)
        try:
            inputs = place.resolve() / "inputs"
            is_replay = bool(options.only)  # shows refusals, too
            verdicts = try_inputs(options.seed, indices, sound, worker, inputs, verbose=is_replay)
        finally:
            worker.stop()
        tried = 0
        for index in options.only or itertools.count():
            if tried == options.commands:
                break
            folder = place.resolve() / "commands" / str(index)
            verdict = try_command(index, write_input(options.seed, index, sound, folder), sound)
            if verdict is not None:
                print_problems(verdict)
                verdicts.append(verdict)
                tried += 1
        print_table(verdicts)
        changed = restored(before, sound.photos, sound.runs)
        pwned = [str(path) for path in place.rglob("pwned")]
    for one in [*changed, *(f"code of a file was run: {path}" for path in pwned)]:
        print(f"FAILED {one}")
    return int(bool(changed or pwned or any(one.problems for one in verdicts)))


if __name__ == "__main__":
    sys.exit(main())
