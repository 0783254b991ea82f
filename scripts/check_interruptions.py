#!/usr/bin/env python
"""Interrupt every command that writes, and compare its result with that of an undisturbed one.

Each command runs on small generated material: undisturbed, then several times with SIGKILL or
Ctrl-C at a random moment after it has begun to write, with a full disk, and with a limit on the
size of a file. `x2` are two processes of torchrun, all of which are killed; `x2, x1` is continued
by one process. After each interruption the inputs and foreign files must be unchanged, everything
in the output must be readable or be a hidden temporary file, no process may be left, and what the
command prints must have no traceback. A second start must succeed and end with the content of the
undisturbed one. An interruption that came after the end of the command shows nothing, and is
counted apart.

Prints a row per trial, and a table in Markdown: of each command and way, the number of trials, and
after a + those that came after the end. The exit code is 1 if a check fails.

Usage: python scripts/check_interruptions.py --out FOLDER [--commands "train;predict"] [--trials 3]
Needs Linux. A full disk needs the right to mount in a new namespace (`unshare -rm`); without it, it
is left out and said so. `data` downloads wheels with pip first.
"""

import argparse
import random
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from interruptions.commands import COMMANDS
from interruptions.material import Material
from interruptions.place import FOREIGN, CheckError, Place, require_readable, tree
from interruptions.ways import (
    SIGNALS,
    TIMEOUT_S,
    WAYS,
    Ended,
    Written,
    can_mount,
    interrupt,
    start,
    state_of,
)

# Exit codes after Ctrl-C: saved, ended, and ended by the signal itself, 130 in a shell too:
# it came while Python was exiting, after all work.
INTERRUPTED = (75, 130, -signal.SIGINT)
FAILED = {"Ctrl-C": INTERRUPTED, "full disk": (2,), "file size": (2,)}
LAUNCHER_FAILED = 1  # torchrun's own, for any exit codes of its processes
COLUMNS = "{:26} {:10} {:>5} {:>5} {:>6}  {}"
CONTINUES, LATE, FAILURE = "continues", "came after the end", "FAILED"


def check_trial(place: Place, way: str, ended: Ended, inputs: dict[str, str]) -> None:
    """Raise if an interrupted command has harmed something or has a traceback."""
    said = place.processes_said()
    text = ended.text if said is None else said  # torchrun has a traceback of its own
    if "Traceback" in text:
        raise CheckError(f"traceback: {text[-1000:]}")
    codes = FAILED.get(way) if said is None else (LAUNCHER_FAILED,)
    if way != "kill" and codes is not None and ended.code not in (0, *codes):
        raise CheckError(f"exit code {ended.code}: {ended.text[-300:]}")
    if way == "full disk" and ended.code != 0 and str(place.out) not in text:
        raise CheckError(f"the error names no file: {text[-300:]}")
    if tree(place.material.folder) != inputs:
        raise CheckError("an input has changed")
    if (place.out / FOREIGN).read_text() != "mine":
        raise CheckError("a foreign file has changed")
    require_readable(place.out)


def check_second_start(place: Place, expected: dict[str, str]) -> None:
    """Raise unless a second start succeeds, with the content of the undisturbed one."""
    again = start(place.command_line(again=True), place.out)
    text = place.processes_said() or again.text
    if again.code != 0 or "Traceback" in text:
        raise CheckError(f"second start, exit code {again.code}: {text[-1000:]}")
    content = place.content()
    keys = sorted({*content, *expected})
    if wrong := [key for key in keys if content.get(key) != expected.get(key)]:
        raise CheckError(f"other content: {', '.join(wrong)}")


def came_late(place: Place, names: set[str], expected: dict[str, str]) -> bool:
    """Return whether all was done before the interruption: no file is missing, none temporary."""
    return set(tree(place.out)) == names and place.content() == expected


def check_command(
    place: Place, ways: Sequence[str], trials: int, seed: int
) -> Counter[tuple[str, str]]:
    """Check one command; print a row per trial, and count the verdicts by way."""
    place.material.complete_for(place.name)
    inputs = tree(place.material.folder)
    place.prepare()
    before = state_of(place.out)
    reference = start(place.command_line(), place.out)
    if reference.code != 0:
        said = place.processes_said() or reference.text
        raise SystemExit(f"{place.name} fails undisturbed: {said}")
    names, expected = set(tree(place.out)), place.content()
    written = Written.since(before, place.out)
    place.processes_said()
    verdicts: Counter[tuple[str, str]] = Counter()
    half = (trials + 1) // 2
    numbers = [trials if way in SIGNALS else half for way in ways]
    plan = [
        (way, trial) for way, number in zip(ways, numbers, strict=True) for trial in range(number)
    ]
    for way, trial in plan:
        draws = random.Random(f"{seed} {place.name} {way} {trial}")
        place.prepare()
        ended, verdict, why = Ended(0, "", TIMEOUT_S), CONTINUES, ""
        try:
            ended = interrupt(place, way, reference, written, draws)
            check_trial(place, way, ended, inputs)
            if came_late(place, names, expected):
                verdict = LATE
            else:
                check_second_start(place, expected)
        except CheckError as error:
            verdict, why = FAILURE, f": {error}"
        verdicts[way, verdict] += 1
        row = (place.name, way, trial, ended.code, f"{ended.took:.1f}", verdict + why)
        print(COLUMNS.format(*row), flush=True)
    return verdicts


def table(counts: dict[str, Counter[tuple[str, str]]], ways: Sequence[str]) -> str:
    """Return a table in Markdown: trials of each command and way, + those that came late."""
    heading = ["command", *ways, "failed"]
    lines = [heading, ["---"] * len(heading)]
    for name, verdicts in counts.items():
        cells = []
        for way in ways:
            in_time = verdicts[way, CONTINUES] + verdicts[way, FAILURE]
            late = verdicts[way, LATE]
            cells.append(f"{in_time} + {late}" if late else str(in_time))
        num_failed = sum(number for (_, one), number in verdicts.items() if one == FAILURE)
        lines.append([f"`{name}`", *cells, str(num_failed)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for everything; new")
    parser.add_argument("--commands", default=";".join(COMMANDS), help="commands, with semicolons")
    parser.add_argument("--ways", default=";".join(WAYS), help="ways to interrupt, the same way")
    parser.add_argument(
        "--trials", type=int, default=3, help="per command and signal; half as many of other ways"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    names, ways = options.commands.split(";"), options.ways.split(";")
    for given, known in ((names, COMMANDS), (ways, WAYS)):
        if unknown := set(given) - set(known):
            parser.error(f"unknown: {'; '.join(sorted(unknown))}; known: {'; '.join(known)}")
    out = options.out.resolve()
    if "full disk" in ways and not can_mount(out / "mount"):
        print("a full disk is left out: no file system can be mounted here (unshare -rm)")
        ways.remove("full disk")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    material = Material.write(out / "material")
    print(COLUMNS.format("command", "way", "trial", "code", "s", "result"), flush=True)
    counts = {
        name: check_command(
            Place(name, material, out / name.replace(" ", "_") / "out"),
            ways,
            options.trials,
            options.seed,
        )
        for name in names
    }
    print(table(counts, ways))
    total = sum(counts.values(), Counter[tuple[str, str]]())
    failed, late = (
        sum(number for (_, verdict), number in total.items() if verdict == wanted)
        for wanted in (FAILURE, LATE)
    )
    print(f"{failed} of {total.total() - late} trials failed; {late} more came after the end")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
