"""Hostile annotation files, results files, configs, overrides and file names."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from fuzzing.edits import BYTE_EDITS, RECORD_EDITS, VALUES, as_json, damaged, drawn, edited
from fuzzing.sound import Sound, annotations, results

Info = dict[str, Any]  # what the worker needs besides the kind
DEEP = 100_000


def _with(part: str, key: str, value: Any, record: Any = None) -> bytes:
    record = annotations() if record is None else record
    (record[part] if part else record)[0][key] = value
    return as_json(record)


def _many(part: str, count: int) -> bytes:
    record = annotations()
    record[part] = [{**record[part][0], "id": number + 1} for number in range(count)]
    return as_json(record)


_HUGE = "1" + "0" * 5000
ANNOTATION_FILES: tuple[Callable[[], bytes], ...] = (
    lambda: b"",
    lambda: b"\0" * 1000,
    lambda: b"[" * DEEP,
    lambda: b'{"a":' * DEEP,
    lambda: b"\xef\xbb\xbf" + as_json(annotations()),
    lambda: json.dumps(annotations()).encode("utf-16"),
    lambda: as_json(annotations())[:-30],
    lambda: b"<annotation><object/></annotation>",
    lambda: b"names: [a]\npath: x\n",
    lambda: as_json(annotations()).replace(b"12.5", b"1e999"),
    lambda: as_json(annotations()).replace(b"12.5", _HUGE.encode()),
    lambda: as_json(annotations()).replace(b"12.5", b"NaN"),
    lambda: as_json(annotations()).replace(b'"id": 1,', f'"id": {_HUGE},'.encode()),
    lambda: as_json(annotations()).replace(b'"iscrowd": 0', b'"iscrowd": 0, "iscrowd": 1'),
    lambda: as_json(annotations()).replace(b"cat", b"c\xff\xfet"),
    lambda: _with("categories", "name", "\x1b]0;x\x07" + "n" * 100_000),
    lambda: _with("categories", "name", "\ud800\u202e\0"),
    lambda: _with("categories", "id", 2**70),
    lambda: _with("annotations", "segmentation", [[[1]]]),
    lambda: _with("annotations", "segmentation", {"counts": "\x01" * 100, "size": [10**9, 10**9]}),
    lambda: _with("annotations", "bbox", [1, 2, 3, "4"]),
    lambda: _with("annotations", "bbox", [1e308, 1e308, 1e308, 1e308]),
    lambda: _with("images", "width", 10**12),
    lambda: _with("images", "width", -1),
    lambda: _many("categories", 20_000),
    lambda: _many("annotations", 50_000),
    lambda: as_json({"images": [], "annotations": [], "categories": []}),
    lambda: as_json([annotations()]),
    lambda: b"null",
)
_RESULTS: tuple[Callable[[], bytes], ...] = (
    lambda: b"",
    lambda: b"{}",
    lambda: b"[]",
    lambda: b"[" * DEEP,
    lambda: as_json(results()).replace(b"0.25", _HUGE.encode()),
    lambda: as_json(results()).replace(b"0.25", b"NaN"),
    lambda: as_json(results()).replace(b"0.25", b'"0.25"'),
    lambda: as_json(results())[:-5],
    lambda: _with("", "file_name", "../../etc/passwd", results()),
    lambda: _with("", "file_name", "\x1b[2J\ud800", results()),
    lambda: _with("", "image_id", 2**70, results()),
    lambda: _with("", "bbox", [1, 2, -3, 4], results()),
    lambda: as_json(results() * 20_000),
    lambda: as_json({"annotations": results()}),
)


def _bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, levels)
    ]
    return "\n".join(lines)


CONFIGS = (
    "",
    "\0",
    "\t- a",
    "&a [*a]",
    "a: &a {b: *a}",
    _bomb(9),
    "[" * 20_000,
    "{a: " * 3000,
    "base: config.yaml",
    "base: ../../../../etc/passwd",
    "base: /dev/zero",
    "!!python/object/apply:os.system ['touch pwned']",
    "train: !!python/name:os.system",
    f"train: {{seed: {_HUGE}}}",
    "train: {seed: 0x" + "f" * 5000 + "}",
    "train: {epochs: 1:00:00}",
    "train: {epochs: 2001-12-14}",
    "train: {total_batch: 1e400}",
    "? [a, b]\n: c",
    "? {a: b}\n: c",
    "<<: [{a: 1}, 2]",
    "model: &m {embed_dim: 64}\ntrain: *m",
    "model: {embed_dim: 100000000}",
    "epochs: 3",
    "names: [a, b]\nnc: 2\ntrain: images",
    '"\\e[2J": 1',
    "\u202etrain: 1",
    "train: {epochs: 1, epochs: 2}",
    "--- a\n--- b",
    "%YAML 9.9\n---\na: 1",
    "a" * 1_000_000,
    "12",
    "x: " + "1" * 1_000_000,
)
OVERRIDES = (
    "",
    "=",
    "a",
    "=1",
    ".=1",
    "train..epochs=1",
    "train.epochs.x=1",
    "train=1",
    "train.epochs=",
    "train.epochs=[",
    "train.epochs=&a [*a]",
    "train.epochs=" + _HUGE,
    "train.epochs=nan",
    "epochs=3",
    "data.train=x.json",
    "train.epochs=!!python/object/apply:os.system ['touch pwned']",
    "train.\x1b[2J=1",
    "data.train.images=\ud800",
    "data.train.images=a\0b",
    "data.train.images=" + "x" * 200_000,
    "." * 100_000 + "=1",
    "model.backbone={kind: timm, name: '\x1b[2J'}",
    "model.backbone=" + _bomb(9).replace("\n", "\\n"),
)
FILE_NAMES: tuple[Any, ...] = (
    "../1.png",
    "../../../../etc/passwd",
    "/etc/passwd",
    "/dev/zero",
    "a/../../1.png",
    "~/1.png",
    "C:\\1.png",
    "\\\\host\\share\\1.png",
    "http://localhost/1.png",
    "",
    ".",
    "/",
    "1.png/",
    "1.png\0.jpg",
    "\x1b[2J.png",
    "\u202egnp.1",
    "a\nb.png",
    "\ud800.png",
    "\udcff.png",
    "n" * 300 + ".png",
    "n/" * 3000 + "1.png",
    "pipe",
    "folder",
    "link",
    "link_out",
    "loop",
    "dangling",
    None,
    7,
    ["1.png"],
)


def write_annotations(seed: int, fixed: int | None, sound: Sound, folder: Path) -> Info:
    """Write an annotation file; every third drawn one has damaged bytes."""
    if fixed is not None:
        content = ANNOTATION_FILES[fixed % len(ANNOTATION_FILES)]()
    elif seed % 3 == 0:
        content = damaged(as_json(annotations()), drawn(BYTE_EDITS, seed))
    else:
        content = as_json(edited(annotations(), drawn(RECORD_EDITS, seed)))
    (folder / "hostile.json").write_bytes(content)
    return {"names": ["hostile.json"]}


def write_results(seed: int, fixed: int | None, sound: Sound, folder: Path) -> Info:
    """Write a results file; every third drawn one has damaged bytes."""
    if fixed is not None:
        content = _RESULTS[fixed % len(_RESULTS)]()
    elif seed % 3 == 0:
        content = damaged(as_json(results()), drawn(BYTE_EDITS, seed))
    else:
        content = as_json(edited(results(), drawn(RECORD_EDITS, seed)))
    (folder / "hostile.json").write_bytes(content)
    return {"names": ["hostile.json"]}


def write_config(seed: int, fixed: int | None, sound: Sound, folder: Path) -> Info:
    """Write a config file; every third drawn one has damaged bytes."""
    text = sound.config.read_bytes()
    if fixed is not None:
        content = CONFIGS[fixed % len(CONFIGS)].encode()
    elif seed % 3 == 0:
        content = damaged(text, drawn(BYTE_EDITS, seed))
    else:
        record = edited(yaml.safe_load(text), drawn(RECORD_EDITS, seed))
        content = yaml.dump(record).encode("utf-8", "surrogatepass")
    (folder / "config.yaml").write_bytes(content)
    return {"names": ["config.yaml"]}


def write_override(seed: int, fixed: int | None, sound: Sound, folder: Path) -> Info:
    """Choose an override of a setting."""
    if fixed is not None:
        text = OVERRIDES[fixed % len(OVERRIDES)]
    else:
        keys = sorted(_dotted(yaml.safe_load(sound.config.read_text())))
        key, value = drawn(st.tuples(st.sampled_from(keys), VALUES), seed)
        shown = value if isinstance(value, str) else json.dumps(value)
        text = f"{key}={shown}"
    key = text.partition("=")[0]
    return {"override": text, "names": [key, key.split(".")[0], "override"]}


def write_name(seed: int, fixed: int | None, sound: Sound, folder: Path) -> Info:
    """Write annotations of one photo with a hostile name, beside pipes, folders and links."""
    images = folder / "images"
    (images / "folder").mkdir(parents=True)
    (images / "1.png").write_bytes((sound.photos / "1.png").read_bytes())
    os.mkfifo(images / "pipe")
    (images / "link").symlink_to("1.png")
    (images / "link_out").symlink_to(sound.photos / "2.png")
    (images / "loop").symlink_to("loop")
    (images / "dangling").symlink_to("none")
    name = FILE_NAMES[fixed % len(FILE_NAMES)] if fixed is not None else drawn(st.text(), seed)
    record = annotations()
    record["images"] = [{**record["images"][0], "file_name": name}]
    record["annotations"] = [{**record["annotations"][0], "image_id": 1}]
    (folder / "named.json").write_bytes(as_json(record))
    return {"names": ["named.json", *([name] if isinstance(name, str) and name else [])]}


def _dotted(settings: dict[str, Any], prefix: str = "") -> set[str]:
    found = set()
    for key, value in settings.items():
        found.add(prefix + key)
        if isinstance(value, dict):
            found |= _dotted(value, f"{prefix}{key}.")
    return found
