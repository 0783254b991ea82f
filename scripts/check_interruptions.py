#!/usr/bin/env python
"""Interrupt every command that writes, and compare its result with that of an undisturbed one.

Each command runs on small generated material: undisturbed, then several times with SIGKILL or
Ctrl-C at a random moment, with a full disk, and with a limit on the size of a file. After each
interruption the inputs and foreign files must be unchanged, everything in the output must be
readable or be a hidden temporary file, and the output of the command must have no traceback. A
second start must succeed and end with the content of the undisturbed one. Prints a table; the exit
code is 1 if a check fails.

Usage: python scripts/check_interruptions.py --out FOLDER [--commands train,predict] [--trials 3]
Needs Linux. A full disk needs the right to mount in a new namespace (`unshare -rm`); without it, it
is left out and said so.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from deformable_detr.engine.checkpoints.checkpoint import load_checkpoint
from deformable_detr.workflows.training import train

WAYS = ("kill", "Ctrl-C", "full disk", "file size")
EARLIEST = 0.5  # of the duration; before, PyTorch is imported
FOREIGN = "notes of the user.txt"
TIMEOUT_S = 300.0
# Exit codes after Ctrl-C: saved, ended, and ended by the signal itself, 130 in a shell too:
# it came while Python was exiting, after all work.
INTERRUPTED = (75, 130, -signal.SIGINT)
COLUMNS = "{:14} {:10} {:>5} {:>5} {:>6}  {}"
SMALL = (
    "model.backbone={kind: timm, name: mobilenetv3_small_050, out_strides: [16]}",
    *("model.neck.num_levels=1", "model.embed_dim=64", "model.attention.num_heads=2"),
    *("model.encoder.num_layers=1", "model.decoder.num_layers=1", "model.queries.num_queries=5"),
    *("data.augmentation.sizes=[48]", "data.augmentation.pre_crop_sizes=[64]"),
    *("data.augmentation.crop_sizes=[32, 48]", "data.eval_size=48", "data.num_workers=1"),
    *("train.total_batch=4", "train.micro_batch=2", "train.log_every=1"),
)


class CheckError(Exception):
    """Failure of a check."""


@dataclass(frozen=True)
class Material:
    """Inputs of the commands: images with annotations, and a finished run of two steps."""

    folder: Path

    @property
    def images(self) -> Path:
        """Folder of the images."""
        return self.folder / "images"

    @property
    def annotations(self) -> Path:
        """COCO annotation file."""
        return self.folder / "annotations.json"

    @property
    def run(self) -> Path:
        """Run folder."""
        return self.folder / "run"

    @property
    def checkpoint(self) -> Path:
        """Checkpoint of the run."""
        return self.run / "last.pth"

    def settings(self) -> list[str]:
        """Return the settings of a small run on the images."""
        places = [
            f"data.{split}.{key}={path}"
            for split in ("train", "val")
            for key, path in (("images", self.images), ("annotations", self.annotations))
        ]
        return [*SMALL, *places]

    @classmethod
    def write(cls, folder: Path, *, num_images: int = 24) -> "Material":
        """Write it; the same content each time."""
        material = cls(folder)
        material.images.mkdir(parents=True)
        draws = np.random.default_rng(0)
        content: dict[str, Any] = {"images": [], "annotations": []}
        content["categories"] = [{"id": 1, "name": "thing"}]
        for number in range(1, num_images + 1):
            height, width = ((96, 128), (128, 96))[number % 2]
            pixels = draws.integers(0, 256, (height, width, 3), dtype=np.uint8)
            name = f"{number:03d}.png"
            Image.fromarray(pixels).save(material.images / name)
            content["images"].append(
                {"id": number, "file_name": name, "height": height, "width": width}
            )
            box = {"bbox": [8, 8, 40, 32], "area": 1280, "iscrowd": 0, "category_id": 1}
            content["annotations"].append({"id": number, "image_id": number, **box})
        material.annotations.write_text(json.dumps(content))
        settings = [*material.settings(), "data.num_workers=0", "train.max_steps=2"]
        train(overrides=settings, run_dir=material.run, device="cpu")
        return material


@dataclass(frozen=True)
class Command:
    """A command that writes.

    Attributes:
        arguments: its arguments, by the folder that it may write to.
        again: arguments that a second start needs besides.
        outputs: paths of its results in the folder.
    """

    arguments: Callable[[Material, Path], Sequence[str | Path]]
    outputs: tuple[str, ...]
    again: tuple[str, ...] = ()


def _train(material: Material, out: Path) -> list[str | Path]:
    start: list[str | Path] = ["train", "--config", "deformable_detr_r50", "--device", "cpu"]
    return [*start, "--run-dir", out / "run", *material.settings()]


def _detector(material: Material) -> list[str | Path]:
    return ["--checkpoint", material.checkpoint, "--device", "cpu"]


COMMANDS = {
    "train": Command(
        lambda material, out: [
            *_train(material, out),
            *("train.max_steps=12", "train.checkpoint_every=1", "train.eval_every_epochs=1"),
            *("--resume", "auto"),
        ],
        ("run/last.pth", "run/best.pth"),
    ),
    "overfit": Command(
        lambda material, out: [*_train(material, out), "--overfit", "2"],
        ("run/last.pth",),
        again=("--overwrite",),
    ),
    "evaluate-only": Command(
        lambda material, out: [
            *_train(material, out),
            *("--evaluate-only", "--finetune-from", material.checkpoint),
        ],
        ("run/results.json",),
    ),
    "evaluate": Command(
        lambda material, out: [
            *("evaluate", *_detector(material), "--images", material.images),
            *("--annotations", material.annotations, "--out", out / "results.json"),
            *("--pictures", out / "pictures"),
        ],
        ("results.json", "pictures"),
    ),
    "predict": Command(
        lambda material, out: [
            *("predict", material.images, *_detector(material), "--out", out / "found"),
            *("--threshold", "0", "--batch-size", "2"),
        ],
        ("found",),
    ),
    "explain": Command(
        lambda material, out: [
            *("explain", material.images / "001.png", *_detector(material)),
            *("--out", out / "pictures"),
        ],
        ("pictures",),
    ),
    "convert": Command(
        lambda material, out: [
            *("convert", material.checkpoint, out / "native.pth", "--to", "native"),
        ],
        ("native.pth",),
    ),
    "report": Command(lambda _, out: ["report", out / "run"], ("run/report.html",)),
}


@dataclass(frozen=True)
class Place:
    """Folder that a command may write to, with a foreign file and what the command continues."""

    name: str
    material: Material
    out: Path

    def prepare(self) -> None:
        """Empty it, but for what the user has there."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True)
        (self.out / FOREIGN).write_text("mine")
        if self.name == "report":
            shutil.copytree(self.material.run, self.out / "run")
            for file in ("report.html", "best_detections.npz"):
                (self.out / "run" / file).unlink(missing_ok=True)

    def command(self, *, again: bool = False) -> list[str]:
        """Return the command line."""
        command = COMMANDS[self.name]
        more = command.again if again and (self.out / "run").is_dir() else ()
        arguments = [*command.arguments(self.material, self.out), *more]
        return [sys.executable, "-m", "deformable_detr", *map(str, arguments)]

    def content(self) -> dict[str, Any]:
        """Return the content of the results, without times in them."""
        found = {}
        for output in COMMANDS[self.name].outputs:
            path = self.out / output
            inside = sorted(one for one in path.rglob("*") if not one.name.startswith("."))
            for file in inside if path.is_dir() else [path]:
                found[str(file.relative_to(self.out))] = _content(file)
        return found


def _content(file: Path) -> str:
    if not file.is_file():
        raise CheckError(f"{file} is missing")
    if file.suffix == ".html":  # has times and durations
        return "a page" if file.read_text().rstrip().endswith("</html>") else "a cut page"
    if file.suffix == ".pth":
        content = torch.load(file, weights_only=True)
        parts = content["model"]
        digest = hashlib.sha256()
        for name, value in parts.items():
            digest.update(name.encode() + value.contiguous().numpy().tobytes())
        return digest.hexdigest()
    return hashlib.sha256(file.read_bytes()).hexdigest()


def tree(folder: Path) -> dict[str, str]:
    """Return the hashes of all files of a folder by path."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def require_readable(folder: Path) -> None:
    """Raise unless each file is readable, or a hidden temporary file."""
    for file in sorted(folder.rglob("*")):
        inner = file.relative_to(folder)
        if not file.is_file() or any(part.endswith(".partial") for part in inner.parts):
            continue
        try:
            match file.suffix:
                case ".json":
                    json.loads(file.read_text())
                case ".jsonl":  # the last line may be cut off
                    for line in file.read_text().split("\n")[:-1]:
                        json.loads(line)
                case ".png" | ".jpg":
                    with Image.open(file) as image:
                        image.load()
                case ".pth" if inner.parts[0] == "run":
                    load_checkpoint(file)
                case ".pth":
                    torch.load(file, weights_only=True)
                case ".html" if not file.read_text().rstrip().endswith("</html>"):
                    raise ValueError("cut off")
        except Exception as error:
            raise CheckError(f"{inner} cannot be read: {error}") from error


@dataclass(frozen=True)
class Ended:
    """End of a process: its exit code, output and duration in seconds."""

    code: int
    text: str
    took: float


def run(
    command: Sequence[str], *, signal_at: tuple[int, float] | None = None, **options: Any
) -> Ended:
    """Run a command; send it a signal after some seconds."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    begin = time.monotonic()
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
        **options,
    ) as process:
        try:
            if signal_at is not None:
                number, after = signal_at
                try:
                    process.wait(after)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, number)  # as a terminal does
            text, _ = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise CheckError(f"no end within {TIMEOUT_S:g} s") from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return Ended(process.returncode, text, time.monotonic() - begin)


def can_mount(folder: Path) -> bool:
    """Return whether a small file system can be mounted here, in a new namespace."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = f"mount -t tmpfs -o size=100k tmpfs {folder}"
    command = ["unshare", "-rm", "sh", "-c", mount]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def run_on_full_disk(place: Place, room: int) -> Ended:
    """Run a command whose folder has room for some bytes; its content then is in the folder."""
    copy = place.out.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(place.out, copy)
    used = sum(file.stat().st_size for file in copy.rglob("*") if file.is_file())
    size = (used + room) // 1024 + 4
    script = (
        f'mount -t tmpfs -o size={size}k tmpfs "$0" && cp -a "$1/." "$0" && shift && '
        f'{{ "$@"; code=$?; }}; rm -rf "{copy}" && cp -a "$0" "{copy}"; exit $code'
    )
    arguments = [str(place.out), str(copy), *place.command()]
    ended = run(["unshare", "-rm", "sh", "-c", script, *arguments])
    shutil.rmtree(place.out)
    copy.rename(place.out)
    return ended


def _limit_files(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing fails instead
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def interrupt(
    place: Place, way: str, reference: Ended, sizes: list[int], draws: random.Random
) -> Ended:
    """Run the command of a place, and interrupt it in one way."""
    match way:
        case "kill" | "Ctrl-C":
            number = signal.SIGKILL if way == "kill" else signal.SIGINT
            after = reference.took * draws.uniform(EARLIEST, 1.0)
            return run(place.command(), signal_at=(number, after))
        case "full disk":
            return run_on_full_disk(place, int(sum(sizes) * draws.uniform(0.02, 0.9)))
        case _:
            limit = int(max(sizes) * draws.uniform(0.02, 0.9))
            return run(place.command(), preexec_fn=lambda: _limit_files(limit))


def check_trial(place: Place, way: str, ended: Ended, inputs: dict[str, str]) -> None:
    """Raise if an interrupted command has harmed something or has a traceback."""
    if "Traceback" in ended.text:
        raise CheckError(f"traceback: {ended.text[-600:]}")
    if way == "Ctrl-C" and ended.code not in (0, *INTERRUPTED):
        raise CheckError(f"exit code {ended.code}: {ended.text[-300:]}")
    if way in ("full disk", "file size") and ended.code not in (0, 2):
        raise CheckError(f"exit code {ended.code}: {ended.text[-300:]}")
    if way == "full disk" and ended.code == 2 and str(place.out) not in ended.text:
        raise CheckError(f"the error names no file: {ended.text[-300:]}")
    if tree(place.material.folder) != inputs:
        raise CheckError("an input has changed")
    if (place.out / FOREIGN).read_text() != "mine":
        raise CheckError("a foreign file has changed")
    require_readable(place.out)


def check_command(
    name: str, material: Material, folder: Path, ways: Sequence[str], trials: int, seed: int
) -> int:
    """Check one command; print a row per trial, and return the number of failures."""
    place = Place(name, material, folder / "out")
    inputs = tree(material.folder)
    place.prepare()
    reference = run(place.command())
    if reference.code not in (0, 2 if name == "overfit" else 0):
        raise SystemExit(f"{name} fails undisturbed: {reference.text}")
    expected = place.content()
    sizes = [file.stat().st_size for file in place.out.rglob("*") if file.is_file()]
    num_failed = 0
    for way in ways:
        for trial in range(trials):
            draws = random.Random(f"{seed} {name} {way} {trial}")
            place.prepare()
            ended, verdict = Ended(0, "", TIMEOUT_S), "continues"
            try:
                ended = interrupt(place, way, reference, sizes, draws)
                check_trial(place, way, ended, inputs)
                again = run(place.command(again=True))
                if again.code != reference.code or "Traceback" in again.text:
                    raise CheckError(f"second start, exit code {again.code}: {again.text[-600:]}")
                if (content := place.content()) != expected:
                    wrong = sorted(
                        key
                        for key in {*content, *expected}
                        if content.get(key) != expected.get(key)
                    )
                    raise CheckError(f"other content: {', '.join(wrong)}")
            except CheckError as error:
                num_failed += 1
                verdict = f"FAILED: {error}"
            print(
                COLUMNS.format(name, way, trial, ended.code, f"{ended.took:.1f}", verdict),
                flush=True,
            )
    return num_failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for everything; new")
    parser.add_argument("--commands", default=",".join(COMMANDS), help="commands, with commas")
    parser.add_argument("--ways", default=",".join(WAYS), help="ways to interrupt, with commas")
    parser.add_argument("--trials", type=int, default=3, help="per command and way")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    names, ways = options.commands.split(","), options.ways.split(",")
    for given, known in ((names, COMMANDS), (ways, WAYS)):
        if unknown := set(given) - set(known):
            parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    out = options.out.resolve()
    if "full disk" in ways and not can_mount(out / "mount"):
        print("a full disk is left out: no file system can be mounted here (unshare -rm)")
        ways.remove("full disk")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    material = Material.write(out / "material")
    print(COLUMNS.format("command", "way", "trial", "code", "s", "result"), flush=True)
    failures = [
        check_command(name, material, out / name, ways, options.trials, options.seed)
        for name in names
    ]
    print(f"{sum(failures)} of {len(names) * len(ways) * options.trials} trials failed")
    return int(sum(failures) > 0)


if __name__ == "__main__":
    sys.exit(main())
