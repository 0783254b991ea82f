"""Train configs with several seeds for the same number of steps, and print a table of results.

For each config and seed, run the command line: train, evaluate on the validation set, and, for the
first seed, resume for some more steps and detect on a validation image. Each run writes a line of
JSON; runs in the file are not repeated, so an interrupted comparison continues. Needs the data sets
of the configs, such as those of `deformable-detr data`; 60 steps of each with 3 seeds take half an
hour on one idle core.

A config may have settings of its own, in the same argument: "quickstart model.denoising={}".

With `--vary`, each config is trained with each value of a setting, in turns, and the mean AP50 of
each value is compared with that of the first. The difference may be at most the standard deviation
over the seeds of the first, or 0.02 if that is larger. The exit code is 1 if it is larger, or if
the loss of a run did not fall.

Usage: .venv/bin/python scripts/compare_configs.py [--steps 60] [--seeds 0 1 2] [CONFIG ...]
           [--set KEY=VALUE ...] [--vary KEY=VALUE,VALUE] [--parallel 2]

Low precision: compare_configs.py quickstart --steps 200 --vary train.precision=float32,bfloat16
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from deformable_detr.benchmark.multiply_adds import count_multiply_adds
from deformable_detr.builders import build_model
from deformable_detr.config.loading import load_config

CONFIGS = (
    "quickstart",
    *(f"backbones/{kind}" for kind in ("dcn_v1", "dcn_v2", "ac_block", "diverse_branch")),
    *(f"backbones/{kind}" for kind in ("deform_kernel", "deform_kernel_dcn")),
    *(f"necks/{kind}" for kind in ("asff", "deform_kernel")),
    "mimicking",
)
RECORDS = 10  # of the loss per run; the first and the last are compared
MORE_STEPS = 10  # after resuming
COLUMNS = (
    "config",
    "parameters",
    "G multiply-adds",
    "loss, first and last tenth",
    "AP",
    "AP50",
    "AP75",
    "CPU s",
)
MIN_TOLERANCE = 0.02  # of AP50; smaller differences mean nothing on 25 tiles
Record = dict[str, Any]
Variant = tuple[str, tuple[str, ...]]  # config and settings


def main() -> None:
    """Run the missing runs, then print the table."""
    arguments = _parse()
    file = arguments.out / "runs.jsonl"
    arguments.out.mkdir(parents=True, exist_ok=True)
    done = {_key(record): record for record in read_records(file)}
    variants: list[Variant] = [
        (config, (*arguments.set, *own, *varied))
        for config, *own in (one.split() for one in arguments.configs)
        for varied in _varied(arguments.vary)
    ]
    writing = threading.Lock()

    def run_and_keep(key: tuple[str, int, int, tuple[str, ...]]) -> None:
        record = run(*key, arguments.out, resumes=key[1] == arguments.seeds[0])
        with writing, file.open("a", encoding="utf-8") as lines:
            done[key] = record
            lines.write(json.dumps(record) + "\n")

    missing = [
        key
        for seed in arguments.seeds  # outer loop, so that partial results are comparable
        for config, settings in variants
        if (key := (config, seed, arguments.steps, settings)) not in done
    ]
    with ThreadPoolExecutor(arguments.parallel) as pool:
        for ended in [pool.submit(run_and_keep, key) for key in missing]:
            ended.result()
    records = [
        done[config, seed, arguments.steps, settings]
        for config, settings in variants
        for seed in arguments.seeds
    ]
    print("\n".join(table(records)))
    missed = list(differences(records)) if arguments.vary else []
    risen = [
        f"{record['config']} seed {record['seed']}"
        for record in records
        if not record["last_loss"] < record["first_loss"]
    ]
    if risen:
        sys.exit(f"error: the loss must fall in every run, got none in {', '.join(risen)}")
    if missed:
        sys.exit("\n".join(missed))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="*", default=CONFIGS, metavar="CONFIG")
    parser.add_argument("--steps", type=int, default=60, help="training steps per run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="override settings of all configs",
    )
    parser.add_argument(
        "--vary",
        metavar="KEY=VALUE,VALUE",
        help="train with each value of a setting, and compare with the first value",
    )
    parser.add_argument("--parallel", type=int, default=1, help="runs at once, of one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    arguments = parser.parse_args()
    if arguments.vary and len(arguments.seeds) < 2:
        parser.error("--seeds must be at least two numbers, as their spread is needed")
    return arguments


def _varied(vary: str | None) -> list[tuple[str, ...]]:
    """Return the added settings of each variant."""
    if vary is None:
        return [()]
    key, _, values = vary.partition("=")
    return [(f"{key}={value}",) for value in values.split(",")]


def _variant(record: Record) -> Variant:
    return record["config"], tuple(record.get("settings", ()))  # which older files lack


def _key(record: Record) -> tuple[str, int, int, tuple[str, ...]]:
    config, settings = _variant(record)
    return config, record["seed"], record["steps"], settings


def read_records(file: Path) -> list[Record]:
    """Read the records of a file, [] if it does not exist; an incomplete last line is removed."""
    if not file.exists():
        return []
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def run(
    config: str, seed: int, steps: int, settings: Sequence[str], out: Path, *, resumes: bool
) -> Record:
    """Train and evaluate; if `resumes`, also resume and detect on a validation image."""
    suffix = f"_{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]}" if settings else ""
    folder = out / f"{config.replace('/', '_')}_{steps}_{seed}{suffix}"
    train = [
        *("train", "--config", config, "--run-dir", str(folder), *settings, f"train.seed={seed}"),
        "train.eval_every_epochs=1000000",  # at the end only
        f"train.log_every={max(1, steps // RECORDS)}",
    ]
    cpu_seconds = _command(*train, "--overwrite", f"train.max_steps={steps}")
    losses = [record["total"] for record in _metrics(folder, "train")]
    (measured,) = _metrics(folder, "evaluation")
    record = {
        **{"config": config, "seed": seed, "steps": steps, "settings": list(settings)},
        **{"first_loss": losses[0], "last_loss": losses[-1]},
        **{name: measured[name] for name in ("AP", "AP50", "AP75", "AR100")},
        "cpu_seconds": round(cpu_seconds, 1),
    }
    if resumes:
        _command(*train, "--resume", f"train.max_steps={steps + MORE_STEPS}")
        record["resumed_loss"] = _metrics(folder, "train")[-1]["total"]
        checkpoint, pictures = str(folder / "last.pth"), folder / "predictions"
        photo = min(load_config(config, settings).data.val.images.iterdir())
        _command("predict", "--checkpoint", checkpoint, "--out", str(pictures), str(photo))
        found = json.loads((pictures / "detections.json").read_text(encoding="utf-8"))
        record["detections"] = len(found)
    return record


def _command(*arguments: str) -> float:
    """Run `deformable-detr` in one thread; return its CPU time, or raise with its output.

    Other programs hardly affect CPU time.
    """
    print("deformable-detr", *arguments, file=sys.stderr, flush=True)
    call = [sys.executable, "-m", "deformable_detr", *arguments]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            call,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise RuntimeError(f"{output.read()}\nexit code {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def _metrics(folder: Path, kind: str) -> list[Record]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def table(records: Sequence[Record]) -> list[str]:
    """Return a Markdown table with one row per config: means over seeds, with ranges of AP."""
    rows = [
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
    ]
    shared = set.intersection(*(set(_variant(record)[1]) for record in records))
    for (config, settings), own in _by_variant(records).items():
        name = " ".join([config, *(setting for setting in settings if setting not in shared)])
        first, last, seconds = (
            [record[name] for record in own] for name in ("first_loss", "last_loss", "cpu_seconds")
        )
        scores = [_spread([record[name] for record in own]) for name in ("AP", "AP50", "AP75")]
        rows.append(
            f"| `{name}` | {_size(config, settings)} | "
            f"{statistics.mean(first):.2f}, {statistics.mean(last):.2f} | "
            f"{' | '.join(scores)} | {statistics.mean(seconds):.0f} |"
        )
    return rows


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _by_variant(records: Sequence[Record]) -> dict[Variant, list[Record]]:
    grouped: dict[Variant, list[Record]] = {}
    for record in records:
        grouped.setdefault(_variant(record), []).append(record)
    return grouped


def differences(records: Sequence[Record]) -> Iterator[str]:
    """Yield a line for each variant whose mean AP50 differs too much from its config's first."""
    first: dict[str, list[float]] = {}
    for (config, settings), own in _by_variant(records).items():
        ap50 = [record["AP50"] for record in own]
        baseline = first.setdefault(config, ap50)
        difference = statistics.mean(ap50) - statistics.mean(baseline)
        tolerance = max(MIN_TOLERANCE, statistics.stdev(baseline))
        if not abs(difference) <= tolerance:  # true for NaN too
            yield (
                f"error: AP50 of {config} must be within {tolerance:.3f} of the first's with "
                f"{settings[-1]}, got a difference of {difference:+.3f}"
            )


def _size(config: str, overrides: Sequence[str]) -> str:
    """Return two cells: parameters for one class, and multiply-adds of a validation image."""
    settings = load_config(config, overrides)
    model = build_model(settings, num_classes=1, load_backbone_weights=False)
    model.mimicking = None
    parameters = sum(parameter.numel() for parameter in model.parameters())
    side = settings.data.eval_size
    return f"{parameters:,} | {count_multiply_adds(model, height=side, width=side) / 1e9:.3f}"


if __name__ == "__main__":
    main()
