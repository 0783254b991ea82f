"""Folder of a trial: what is in it before, and the content of the results after."""

import hashlib
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file

from deformable_detr.engine.checkpoints.checkpoint import load_checkpoint
from interruptions.commands import COMMANDS, Command
from interruptions.material import Material

FOREIGN = "notes of the user.txt"
LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--redirects", "3")


class CheckError(Exception):
    """Failure of a check."""


@dataclass(frozen=True)
class Place:
    """Folder that a command may write to, with a foreign file and what the command continues.

    Attributes:
        name: name of the command.
        material: its inputs.
        out: the folder.
    """

    name: str
    material: Material
    out: Path

    @property
    def command(self) -> Command:
        """The command."""
        return COMMANDS[self.name]

    @property
    def logs(self) -> Path:
        """Folder for what processes of torchrun print."""
        return self.out.with_name("logs")

    def prepare(self) -> None:
        """Empty it, but for what the user has there."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True)
        (self.out / FOREIGN).write_text("mine")
        if self.command.on_run:
            shutil.copytree(self.material.run, self.out / "run")
            for file in ("report.html", "best_detections.npz"):
                (self.out / "run" / file).unlink(missing_ok=True)

    def command_line(self, *, again: bool = False) -> list[str]:
        """Return the command line of a first or a second start."""
        command, processes = self.command, self.command.processes
        if again and command.processes_again is not None:
            processes = command.processes_again
        launcher: list[str] = []
        if processes > 1:
            launcher = [*LAUNCHER, "--log-dir", str(self.logs), f"--nproc-per-node={processes}"]
        more = command.again if again and (self.out / "run").is_dir() else ()
        arguments = map(str, [*command.arguments(self.material, self.out), *more])
        return [sys.executable, *launcher, "-m", "deformable_detr", *arguments]

    def content(self) -> dict[str, str]:
        """Return the content of the results, without times in them."""
        found = {}
        for output in self.command.outputs:
            path = self.out / output
            for file in path.rglob("*") if path.is_dir() else [path]:
                if not file.name.startswith(".") and (file.is_symlink() or not file.is_dir()):
                    found[str(file.relative_to(self.out))] = _content(file)
        return found

    def processes_said(self) -> str | None:
        """Return what processes of torchrun have printed since the last call; None without it."""
        if self.command.processes == 1:
            return None
        files = sorted(self.logs.rglob("std*.log"))
        text = "".join(file.read_text(errors="replace") for file in files)
        shutil.rmtree(self.logs, ignore_errors=True)
        return text


def _content(file: Path) -> str:
    if file.is_symlink():
        return f"a link to {file.readlink()}"
    if not file.is_file():
        raise CheckError(f"{file} is missing")
    if file.suffix == ".html":  # has times and durations
        return "a page" if file.read_text().rstrip().endswith("</html>") else "a cut page"
    if file.suffix in (".pth", ".safetensors"):  # metadata of the latter has no order
        is_torch = file.suffix == ".pth"
        content = torch.load(file, weights_only=True)["model"] if is_torch else load_file(file)
        digest = hashlib.sha256()
        for name, value in sorted(content.items()):
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
            _read(file, inner)
        except Exception as error:
            raise CheckError(f"{inner} cannot be read: {error}") from error


def _read(file: Path, inner: Path) -> Any:
    match file.suffix:
        case ".json":
            return json.loads(file.read_text())
        case ".jsonl":  # the last line may be cut off
            return [json.loads(line) for line in file.read_text().split("\n")[:-1]]
        case ".png" | ".jpg":
            with Image.open(file) as image:
                return image.load()
        case ".pth" if inner.parts[0] == "run":
            return load_checkpoint(file)
        case ".pth":
            return torch.load(file, weights_only=True)
        case ".safetensors":
            return load_file(file)
        case ".html" if not file.read_text().rstrip().endswith("</html>"):
            raise ValueError("cut off")
        case _:
            return None
