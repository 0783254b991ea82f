"""Compare detectors trained on few images, at equal processor time or after equal steps.

An arm is a detector with settings in one argument: "preset", trained as `train --data` does, or
"faster_rcnn", torchvision's with the same backbone, images and augmentation, whose setting `lr` is
its learning rate. Runs use one thread. With `--minutes`, each arm first runs some steps to measure
their time, and then trains for as many as take that long; evaluations and the start do not count.

Each run writes a line of JSON; runs in the file are not repeated, so an interrupted comparison
continues. Choose settings on images held out of the training set, not on the validation set.

Usage: .venv/bin/python scripts/compare_few_images.py --data DIR [--minutes 3 10] [--steps 250]
           [--seeds 0 1 2] [--out FILE] ARM [ARM ...]

Example: compare_few_images.py --data photos --minutes 3 preset "faster_rcnn lr=0.005"
"""

import argparse
import json
import multiprocessing
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from compare_configs import read_records
from few_images.measured import Run, Trainer, steps_in

Record = dict[str, Any]
COLUMNS = ("detector", "length", "seeds", "steps", "CPU s", "AP", "AP50", "AP75")


def main() -> None:
    """Run the missing runs, then print the table."""
    arguments = _parse()
    data = str(arguments.data.resolve())
    lengths = [("minutes", one) for one in arguments.minutes]
    lengths += [("steps", one) for one in arguments.steps]
    wanted = [
        {"data": data, "arm": arm, "seed": seed, kind: length}
        for kind, length in lengths
        for seed in arguments.seeds
        for arm in arguments.arms
    ]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    records = []
    for key in wanted:
        found = _find(read_records(arguments.out), key)
        if found is None:
            try:
                found = key | in_own_process(key)
            except RuntimeError as error:  # the loss became infinite, for example
                sys.exit(f"error: {key['arm']}, seed {key['seed']}: {error}")
            with arguments.out.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(found) + "\n")
            print(json.dumps(found), file=sys.stderr, flush=True)
        records.append(found)
    print("\n".join(table(records)))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arms", nargs="+", metavar="ARM", help='such as "faster_rcnn lr=0.005"')
    parser.add_argument("--data", type=Path, required=True, help="folder for train --data")
    parser.add_argument("--minutes", type=float, nargs="*", default=[], help="processor time")
    parser.add_argument("--steps", type=int, nargs="*", default=[], help="training steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/few_images.jsonl"))
    arguments = parser.parse_args()
    if not arguments.minutes and not arguments.steps:
        parser.error("--minutes or --steps must be given, got neither")
    if min([*arguments.steps, 2]) < 2:
        parser.error("--steps must be at least 2, of which the time is measured")
    unknown = [arm for arm in arguments.arms if arm.split()[0] not in ("preset", "faster_rcnn")]
    if unknown:
        parser.error(f"ARM must begin with preset or faster_rcnn, got {unknown[0]!r}")
    return arguments


def _find(records: Sequence[Record], key: Record) -> Record | None:
    """Return the record of a run, by all that was asked of it."""
    asked = ("data", "arm", "seed", "minutes" if "minutes" in key else "steps")
    same = [one for one in records if all(one.get(name) == key[name] for name in asked)]
    return next((one for one in same if ("minutes" in one) == ("minutes" in key)), None)


def in_own_process(key: Record) -> Record:
    """Run in a new process, so that its memory and its random numbers are its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(run, key).result()


def run(key: Record) -> Record:
    """Train and evaluate; return what was measured."""
    torch.set_num_threads(1)
    name, *settings = shlex.split(key["arm"])
    train = _trainer(name)

    def trained(steps: int) -> Run:
        with tempfile.TemporaryDirectory() as folder:
            own = Path(folder) / "run"
            return train(Path(key["data"]), settings, seed=key["seed"], steps=steps, folder=own)

    steps = key["steps"] if "steps" in key else steps_in(key["minutes"], trained)
    start = time.process_time()
    result = trained(steps)
    return {
        "steps": steps,
        **{metric: round(value, 4) for metric, value in result.metrics.items()},
        "training_seconds": round(steps * result.step_seconds, 1),
        "all_seconds": round(time.process_time() - start, 1),
    }


def _trainer(name: str) -> Trainer:
    """Return the function that trains a detector; only then are its modules imported."""
    if name == "preset":
        from few_images.preset import train_preset

        return train_preset
    from few_images.faster_rcnn import train_faster_rcnn

    return train_faster_rcnn


def table(records: Sequence[Record]) -> list[str]:
    """Return a Markdown table with a row per arm and length: means over seeds, with ranges."""
    rows = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    groups: dict[tuple[str, str], list[Record]] = {}
    for one in records:
        length = f"{one['minutes']:g} min" if "minutes" in one else f"{one['steps']:,} steps"
        groups.setdefault((length, one["arm"]), []).append(one)
    for (length, arm), own in groups.items():
        mean = partial(_mean, own)
        scores = [_spread([one[name] for one in own]) for name in ("AP", "AP50", "AP75")]
        rows.append(
            f"| {arm} | {length} | {len(own)} | {mean('steps'):.0f} | "
            f"{mean('training_seconds'):.0f} | {' | '.join(scores)} |"
        )
    return rows


def _mean(records: Sequence[Record], name: str) -> float:
    return statistics.mean(one[name] for one in records)


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
