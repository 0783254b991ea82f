"""Does training in low precision cost AP? The quickstart's recipe, several seeds of each precision.

Usage, at the root of the checkout, after scripts/quickstart.sh has fetched photos and weights:

    .venv/bin/python scripts/compare_precision.py [--steps 200] [--seeds 0 1 2]

Runs take turns, so that a machine that slows down slows all. A run that is finished is not done
again. Exit code 1 if the mean AP50 is further from that of float32 than 0.02 and than the standard
deviation of the float32 seeds.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

from deformable_detr.engine.metrics import read_records

LEAST_TOLERANCE = 0.02  # of AP50: less says nothing on 25 tiles


def main() -> int:
    """Train what is missing, print a table and the verdict."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--precision", choices=["bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--out", type=Path, default=Path("runs/compare_precision"))
    options = parser.parse_args()
    if len(options.seeds) < 2:
        parser.error("--seeds must be at least two numbers, as their spread is needed")

    compared = ("float32", options.precision)
    ap50: dict[str, list[float]] = {precision: [] for precision in compared}
    for seed in options.seeds:
        for precision in compared:
            folder = options.out / f"{precision}_seed_{seed}_steps_{options.steps}"
            record = train(folder, precision=precision, seed=seed, steps=options.steps)
            ap50[precision].append(record["AP50"])
            print(
                f"{precision:9} seed {seed}: AP50 {record['AP50']:.3f}, AP {record['AP']:.3f}",
                flush=True,
            )
    for precision, values in ap50.items():
        print(f"{precision:9} mean AP50 {mean(values):.3f}, standard deviation {stdev(values):.3f}")
    tolerance = max(LEAST_TOLERANCE, stdev(ap50["float32"]))
    difference = mean(ap50[options.precision]) - mean(ap50["float32"])
    passes = abs(difference) <= tolerance
    print(f"difference {difference:+.3f}, allowed {tolerance:.3f}: {'ok' if passes else 'MISSED'}")
    return 0 if passes else 1


def train(folder: Path, *, precision: str, seed: int, steps: int) -> dict[str, float]:
    """The evaluation at the end of a run, which is trained if it has not been."""
    record = evaluation_at(folder / "metrics.jsonl", steps)
    if record is None:
        command = [sys.executable, "-m", "deformable_detr", "train", "--config", "quickstart"]
        settings = [
            f"train.precision={precision}",
            f"train.seed={seed}",
            f"train.max_steps={steps}",
        ]
        subprocess.run([*command, "--run-dir", folder, "--overwrite", *settings], check=True)
        record = evaluation_at(folder / "metrics.jsonl", steps)
    assert record is not None  # a run ends with an evaluation
    return record


def evaluation_at(metrics: Path, step: int) -> dict[str, float] | None:
    """What a run was evaluated to after so many steps; None before."""
    records = read_records(metrics) if metrics.exists() else []
    found = [one for one in records if one["kind"] == "evaluation" and one["step"] == step]
    return found[-1] if found else None


if __name__ == "__main__":
    sys.exit(main())
