"""Foreign text in what commands print: escaped and cut where it enters a message.

The last check, which escapes whatever is printed, is off, so that each source must do it.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.coco_files import CocoFiles, write_coco_set
from helpers.command_line import CommandLine
from helpers.small_run import SMALL_RUN, data_settings
from helpers.tiny_checkpoint import write_checkpoint

from deformable_detr.cli import main, terminal
from deformable_detr.engine.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from deformable_detr.labels import LabelSpace

BAD = "a\x1b[31m\nINJECTED\u202e\udcff\x07[bold]"  # also legal in the name of a file
LONG = BAD + "x" * 1_000_000
MOST_CHARACTERS = 12_000  # of all that a command prints; a metrics table has 4,000


@pytest.fixture(autouse=True)
def _without_last_check(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Print as a program that uses the package would, on the handler that commands install."""
    for module in (main, terminal):
        monkeypatch.setattr(module, "in_lines", lambda message: message)
    monkeypatch.setattr(terminal, "PrintableFormatter", logging.Formatter)
    root = logging.getLogger()
    handlers, level, root.handlers = root.handlers, root.level, []
    yield
    root.handlers = handlers
    root.setLevel(level)


def require_harmless(run: CommandLine, *arguments: str | Path) -> str:
    """Run a command; require that its output is short, and holds no foreign control character."""
    outcome = run(*arguments)
    text = outcome.out + outcome.err
    lines = text.split("\n")
    assert [line for line in lines if not line.isprintable()] == []
    assert [line for line in lines if line.startswith("INJECTED")] == []
    assert "Traceback" not in text
    assert len(text) < MOST_CHARACTERS
    return text


def named(folder: Path, name: str) -> Path:
    """Create a folder and return a path with a hostile name in it."""
    place = folder / BAD
    place.mkdir(exist_ok=True)
    return place / name


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CocoFiles:
    return write_coco_set(tmp_path_factory.mktemp("data"), num_images=2)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint with hostile class names, in a folder with a hostile name."""
    file = tmp_path_factory.mktemp("hostile") / "last.pth"
    write_checkpoint(file)
    space = LabelSpace((3, 7, 90), (BAD, LONG, "tree"))
    save_checkpoint(file, replace(load_checkpoint(file), label_space=space))
    return file


CONFIGS = {
    "key": json.dumps({LONG[:1000]: 1, "train": {BAD: 1}}),
    "value": json.dumps({"train": {"epochs": LONG}, "model": {"backbone": {"kind": LONG}}}),
    "number": json.dumps({"train": {"seed": 10**30}}),
    "base": json.dumps({"base": LONG}),
    "not YAML": "a: [" + "\x07",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs(run: CommandLine, tmp_path: Path, name: str) -> None:
    config = named(tmp_path, "c\n.yaml")
    config.write_text(CONFIGS[name])
    require_harmless(run, "train", "--config", config)


@pytest.mark.parametrize(
    "override",
    [f"{BAD}=1", f"train.epochs={LONG}", LONG, f"data.train={LONG}", "a.\x1b=[", "=" + BAD],
)
def test_overrides(run: CommandLine, override: str) -> None:
    require_harmless(run, "train", "--config", "deformable_detr_r50", override)


@pytest.mark.parametrize("option", ["--config", "--device", "--run-dir"])
def test_options_of_train(
    run: CommandLine, tmp_path: Path, data: CocoFiles, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / BAD).write_text("x")
    options = {"--config": "deformable_detr_r50", "--device": "cpu", option: BAD}
    given = [word for pair in options.items() for word in pair]
    require_harmless(run, "train", *given, *SMALL_RUN, *data_settings(data, data))


def _rename_category(record: dict, name: object) -> None:
    record["categories"][0]["name"] = name


ANNOTATIONS: dict[str, Callable[[dict], object]] = {
    "category": lambda record: _rename_category(record, LONG),
    "two categories": lambda record: [one.update(name=LONG) for one in record["categories"]],
    "file name": lambda record: record["images"][0].update(file_name=LONG),
    "missing file": lambda record: record["images"][0].update(file_name=BAD),
    "two images of a name": lambda record: [one.update(file_name=BAD) for one in record["images"]],
    "id of an image": lambda record: record["images"][0].update(id=LONG),
    "key": lambda record: record["annotations"][0].update({LONG: LONG}),
    "box": lambda record: record["annotations"][0].update(bbox=[LONG, 1, 1, 1]),
    "unknown category": lambda record: record["annotations"][0].update(category_id=LONG),
    "lists": lambda record: record.update(images=LONG),
}


@pytest.mark.parametrize(
    ("command", "damage"),
    [
        *(("results", damage) for damage in ANNOTATIONS),
        *(("evaluate", damage) for damage in ("two categories", "missing file", "key")),
        *(("predict", damage) for damage in ("two categories", "missing file", "key")),
        ("overfit", "missing file"),
    ],
)
def test_annotations(
    run: CommandLine, tmp_path: Path, checkpoint: Path, data: CocoFiles, command: str, damage: str
) -> None:
    file = named(tmp_path, "a.json")
    record = data.read()
    ANNOTATIONS[damage](record)
    file.write_text(json.dumps(record))
    results = tmp_path / "results.json"
    results.write_text("[]")
    images = ("--images", data.images)
    require_harmless(
        run,
        *{
            "evaluate": ("evaluate", "--checkpoint", checkpoint, "--annotations", file, *images),
            "results": ("evaluate", "--results", results, "--annotations", file),
            "predict": (
                *("predict", data.images, "--checkpoint", checkpoint, "--annotations", file),
                *("--out", tmp_path / "out"),
            ),
            "overfit": (
                *("train", "--config", "deformable_detr_r50", *SMALL_RUN, "--overfit", "3"),
                *(f"data.train.images={data.images}", f"data.train.annotations={file}"),
                *("--run-dir", tmp_path / "run"),
            ),
        }[command],
    )


@pytest.mark.parametrize("damage", ANNOTATIONS)
def test_data_sets(run: CommandLine, tmp_path: Path, data: CocoFiles, damage: str) -> None:
    file = named(tmp_path, "a.json")
    record = data.read()
    ANNOTATIONS[damage](record)
    file.write_text(json.dumps(record))
    check = ("doctor", "data", file, "--images", data.images)
    require_harmless(run, *check, "--fix", file.with_name("fixed.json"))
    require_harmless(run, *check, "--json")


RESULTS = {
    "file name": {"file_name": LONG, "image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 1]},
    "category": {"image_id": 1, "category_id": LONG, "bbox": [0, 0, 1, 1]},
    "image": {"image_id": LONG, "category_id": 3, "bbox": [0, 0, 1, 1]},
    "box": {"image_id": 1, "category_id": 3, "bbox": LONG},
    "key": {LONG: 1},
}


@pytest.mark.parametrize("name", RESULTS)
def test_results(run: CommandLine, tmp_path: Path, data: CocoFiles, name: str) -> None:
    file = named(tmp_path, "r.json")
    file.write_text(json.dumps([{"score": 0.5} | RESULTS[name]]))
    require_harmless(run, "evaluate", "--results", file, "--annotations", data.annotations)


@pytest.mark.parametrize("content", [b"", b"<a>", b"[" * 100_000, b"{\x1b", b"\xff\xfe\x00"])
def test_files_of_other_formats(
    run: CommandLine, tmp_path: Path, data: CocoFiles, content: bytes
) -> None:
    file = named(tmp_path, "f.json")
    file.write_bytes(content)
    require_harmless(run, "evaluate", "--results", file, "--annotations", data.annotations)
    require_harmless(run, "evaluate", "--results", file, "--annotations", file)
    for name in ("f.pth", "f.safetensors"):
        other = shutil.copy(file, tmp_path / name)
        require_harmless(run, "convert", other, tmp_path / "out")
        require_harmless(run, "doctor", "bundle", other)
        require_harmless(run, "predict", data.images, "--checkpoint", other, "--out", tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        {LONG: torch.zeros(1)},
        {"model": {BAD: torch.zeros(1), LONG: torch.zeros(1)}},
        {"format": LONG, "model": 1},
        {"state_dict": LONG, BAD: 1},
        [LONG],
    ],
)
def test_checkpoint_keys(
    run: CommandLine, tmp_path: Path, data: CocoFiles, content: object
) -> None:
    file = tmp_path / "c.pth"
    torch.save(content, file)
    require_harmless(run, "convert", file, tmp_path / "out")
    require_harmless(run, "doctor", "bundle", file)
    require_harmless(run, "explain", data.images / "0001.png", "--checkpoint", file, "--out", file)
    settings = (*SMALL_RUN, *data_settings(data, data), "--run-dir", tmp_path / "run")
    require_harmless(
        run, "train", "--config", "deformable_detr_r50", *settings, "--finetune-from", file
    )


@pytest.mark.parametrize("part", ["config", "model", "categories"])
def test_parts_of_a_checkpoint(
    run: CommandLine, tmp_path: Path, data: CocoFiles, part: str
) -> None:
    file = tmp_path / "c.pth"
    write_checkpoint(file)
    content = torch.load(file, weights_only=True)
    content[part] = {BAD: LONG, LONG: BAD}
    torch.save(content, file)
    require_harmless(run, "convert", file, tmp_path / "out")
    require_harmless(run, "predict", data.images, "--checkpoint", file, "--out", tmp_path / "p")


def test_class_names_of_a_checkpoint(
    run: CommandLine, tmp_path: Path, data: CocoFiles, hostile: Path, checkpoint: Path
) -> None:
    place = tmp_path
    shutil.copy(data.images / "0001.png", place / f"{BAD}.png")
    (place / "b.jpg").write_bytes(b"\xff\xd8\xff" + BAD.encode("utf-8", "replace"))
    (place / BAD).mkdir()
    given, plain = ("--checkpoint", hostile), ("--checkpoint", checkpoint)
    text = require_harmless(run, "predict", place, *given, "--out", place / "out")
    assert "1 image" in text
    require_harmless(run, "predict", place, *given, "--out", place / "o", "--classes", "cat")
    require_harmless(run, "predict", place / "none\n", *given, "--out", place / "o")
    require_harmless(run, "explain", place / f"{BAD}.png", *plain, "--out", place / "explained")
    require_harmless(run, "explain", place / "b.jpg", *plain, "--out", place / "e2")
    require_harmless(
        run, "explain", place / f"{BAD}.png", *plain, "--out", place / "e3", "--erf", BAD
    )
    require_harmless(run, "convert", hostile, place / f"{BAD}.pth")
    require_harmless(run, "convert", hostile, place / f"{BAD}.pth")
    record = data.read()
    for one, name in zip(record["categories"], (BAD, LONG), strict=True):
        one["name"] = name
    annotations = place / f"{BAD}.json"
    annotations.write_text(json.dumps(record))
    shown = ("--images", data.images, "--annotations", annotations, "--out", place / "r.json")
    require_harmless(run, "evaluate", *given, *shown)
    require_harmless(run, "report", place)
    require_harmless(run, "report", place / "none")
    require_harmless(run, "data", "trees", "--out", place / f"{BAD}.png")
    split = CocoFiles(data.images, annotations)
    settings = (*SMALL_RUN, *data_settings(split, split), "train.max_steps=1", "--device", "cpu")
    train = ("train", "--config", "deformable_detr_r50", *settings, "--run-dir", place / "run")
    require_harmless(run, *train, "--finetune-from", hostile)
    require_harmless(run, *train)
    require_harmless(run, *train, "--resume", "train.seed=5")
