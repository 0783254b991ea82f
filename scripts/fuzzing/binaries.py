"""Hostile photos, checkpoints and arrays."""

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image

from deformable_detr.engine.checkpoints.sealed_file import write_file
from fuzzing.edits import BYTE_EDITS, RECORD_EDITS, damaged, drawn, edited
from fuzzing.sound import PHOTO_SIZE, Sound
from fuzzing.texts import Info

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "TGA", "ICO", "PCX", "JPEG2000")
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F", "LAB", "HSV")


def picture(kind: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    """Encode a sound photo; in RGB if the format does not have the mode."""
    width, height = PHOTO_SIZE
    pixels = np.random.default_rng(1).integers(0, 255, (height, width, 3), dtype=np.uint8)
    image, data = Image.fromarray(pixels), io.BytesIO()
    try:
        as_gray = mode in ("I", "I;16", "F")
        converted = image.convert("L").convert(mode) if as_gray else image.convert(mode)
        converted.save(data, kind, **options)
    except (OSError, ValueError, KeyError):
        data = io.BytesIO()
        image.save(data, kind)
    return data.getvalue()


def _png(width: int, height: int, data: bytes, *, bits: int = 8, color: int = 2) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    head = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return picture("JPEG", exif=exif.tobytes())


PHOTOS: tuple[tuple[str, Callable[[], bytes]], ...] = (
    ("text.jpg", lambda: b"not a photo\n"),
    ("empty.png", lambda: b""),
    ("page.jpg", lambda: b"<html>" * 1000),
    ("post.jpg", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n"),
    ("vector.png", lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
    ("bomb.png", lambda: _png(30_000, 30_000, bytes(10_000_000))),
    ("huge.png", lambda: _png(2**31 - 1, 2**31 - 1, b"")),
    ("wide.png", lambda: _png(200_000_000, 1, b"")),
    ("strip.png", lambda: _png(20_000, 1, bytes(60_001))),
    ("tower.png", lambda: _png(1, 20_000, bytes(80_000))),
    ("none.png", lambda: _png(0, 0, b"")),
    ("dot.png", lambda: _png(1, 1, bytes(4))),
    ("bits.png", lambda: _png(8, 8, bytes(200), bits=3)),
    ("color.png", lambda: _png(8, 8, bytes(200), color=5)),
    ("bomb.gif", lambda: b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\xf0\0\0" + bytes(20)),
    ("bomb.bmp", lambda: picture("BMP")[:18] + struct.pack("<ii", 60_000, 60_000) + bytes(90)),
    ("bomb.ppm", lambda: b"P6 100000 100000 255\n"),
    ("turn0.jpg", lambda: _exif(0)),
    ("turn6.jpg", lambda: _exif(6)),
    ("turn9.jpg", lambda: _exif(9)),
    ("turned.jpg", lambda: _exif(65_535)),
    ("cut.jpg", lambda: picture("JPEG")[:-200]),
    ("cut.png", lambda: picture("PNG")[:-200]),
    ("cut.tif", lambda: picture("TIFF")[:200]),
    ("wrong.jpg", lambda: picture("PNG")),
    ("no_suffix", lambda: picture("PNG")),
    ("icc.jpg", lambda: picture("JPEG", icc_profile=b"\xff" * 3000)),
    ("profile.png", lambda: picture("PNG", exif=b"Exif\0\0" + b"\xff" * 300)),
    ("pages.tif", lambda: picture("TIFF", save_all=True, append_images=[Image.new("L", (9, 9))])),
    ("frames.gif", lambda: picture("GIF", save_all=True, append_images=[Image.new("L", (9, 9))])),
)
SPECIAL = ("pipe", "folder", "link", "link_out", "loop", "dangling", "device")


def write_photo(seed: int, fixed: int | None, sound: Sound, folder: Path) -> Info:
    """Write a photo: a fixed one, one of any format and mode with damaged bytes, or no file."""
    images = folder / "images"
    images.mkdir()
    if fixed is None:
        kind, mode, edits, is_damaged = drawn(
            st.tuples(st.sampled_from(FORMATS), st.sampled_from(MODES), BYTE_EDITS, st.booleans()),
            seed,
        )
        content = picture(kind, mode)
        name = f"drawn.{'jpg' if kind == 'JPEG' else kind.lower()[:4]}"
        (images / name).write_bytes(damaged(content, edits) if is_damaged else content)
    elif fixed % (len(PHOTOS) + len(SPECIAL)) < len(PHOTOS):
        name, content_of = PHOTOS[fixed % (len(PHOTOS) + len(SPECIAL))]
        (images / name).write_bytes(content_of())
    else:
        name = _write_special(fixed % (len(PHOTOS) + len(SPECIAL)) - len(PHOTOS), sound, images)
    return {"photo": name, "names": [name]}


def _write_special(number: int, sound: Sound, images: Path) -> str:
    name = f"{SPECIAL[number]}.png"
    path = images / name
    match SPECIAL[number]:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "loop":
            path.symlink_to(path)
        case "dangling":
            path.symlink_to("none")
        case "device":
            path.symlink_to("/dev/zero")
        case "link":
            (images / "target.dat").write_bytes(picture())
            path.symlink_to("target.dat")
        case _:
            path.symlink_to(sound.photos / "1.png")
    return name


class _Command:
    """Object whose unpickling would run a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def _shared(content: dict[str, Any]) -> dict[str, Any]:
    value: list[Any] = ["x"]
    for _ in range(30):
        value = [value, value]
    return {**content, "config": {**content["config"], "x": value}}


def _setting(content: dict[str, Any], part: str, key: str, value: Any) -> dict[str, Any]:
    model = {**content["config"]["model"]}
    model[part] = {**model[part], key: value} if part else value
    model = {**model, key: value} if not part else model
    return {**content, "config": {**content["config"], "model": model}}


def _weights(content: dict[str, Any], change: Callable[[torch.Tensor], Any]) -> dict[str, Any]:
    return {**content, "model": {key: change(value) for key, value in content["model"].items()}}


CONTENTS: tuple[Callable[[dict[str, Any]], Any], ...] = (
    _shared,
    lambda content: _setting(content, "encoder", "num_layers", 10**6),
    lambda content: _setting(content, "decoder", "num_layers", 10**6),
    lambda content: _setting(content, "encoder", "ffn_dim", 10**9),
    lambda content: _setting(content, "queries", "num_queries", 10**9),
    lambda content: _setting(content, "attention", "num_points", 10**9),
    lambda content: _setting(content, "backbone", "name", "\x1b[2J" * 1000),
    lambda content: _setting(content, "backbone", "kind", "resnet"),
    lambda content: {**content, "config": {**content["config"], "data": {"eval_size": 60_000}}},
    lambda content: {**content, "label_space": [{"id": n, "name": "x"} for n in range(60_000)]},
    lambda content: {**content, "label_space": [{"id": 2**80, "name": "\x1b[2J"}] * 2},
    lambda content: {**content, "label_space": [{"id": 3, "name": None}, {"id": 7, "name": 7}]},
    lambda content: {**content, "step": -1},
    lambda content: {**content, "format_version": "\x1b[2J" * 10_000},
    lambda content: {**content, "ema": {"\x1b[2J": torch.zeros(1)}},
    lambda content: _weights(content, lambda weight: weight.double()),
    lambda content: _weights(content, lambda weight: weight.half()),
    lambda content: _weights(content, lambda weight: weight * float("nan")),
    lambda content: _weights(content, lambda weight: weight.float() * 1e30),
    lambda content: _weights(content, lambda weight: weight.bool()),
    lambda content: _weights(content, lambda weight: weight.to(torch.complex64)),
    lambda content: _weights(content, lambda weight: weight.to("meta")),
    lambda content: _weights(content, lambda weight: weight.to_sparse()),
    lambda content: _weights(content, lambda weight: weight.flatten()),
    lambda content: _weights(content, lambda weight: torch.zeros(1).expand(10**6, 10**6)),
    lambda content: _weights(content, lambda weight: weight.tolist()),
    lambda content: {"state_dict": content["model"]},
    lambda content: {"model": content["model"], "args": _Command()},
    lambda content: {**content, "optimizer": _Command()},
    lambda content: {f"\x1b[2J{number}": 1 for number in range(1000)},
    lambda content: OrderedDict(content["model"]),
    lambda content: [content],
    lambda content: None,
    lambda content: content["model"].get("backbone", {}),
)


def _safetensors(header: bytes, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if size is None else size) + header


def _inflating() -> bytes:
    """Return a small archive whose tensor takes 3 GB."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("x/data.pkl", pickle.dumps({"model": {}}))
        archive.writestr("x/version", "3\n")
        with archive.open("x/data/0", "w", force_zip64=True) as member:
            for _ in range(192):
                member.write(bytes(1 << 24))
    return data.getvalue()


RAW: tuple[tuple[str, Callable[[], bytes]], ...] = (
    ("hostile.pth", lambda: b""),
    ("hostile.pth", lambda: b"PK\x03\x04"),
    ("hostile.pth", lambda: pickle.dumps(_Command())),
    ("hostile.pth", lambda: b"\x80\x02" + b"(" * 100_000 + b"."),
    ("hostile.pth", lambda: picture()),
    ("hostile.pth", _inflating),
    ("hostile.safetensors", lambda: b""),
    ("hostile.safetensors", lambda: _safetensors(b"{}")),
    ("hostile.safetensors", lambda: _safetensors(b"{}", 2**60)),
    ("hostile.safetensors", lambda: _safetensors(b"[" * 10_000)),
    ("hostile.safetensors", lambda: _safetensors(json.dumps({"\x1b[2J" * 9000: 1}).encode())),
    (
        "hostile.safetensors",
        lambda: _safetensors(
            json.dumps(
                {"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
            ).encode()
        ),
    ),
)


def write_checkpoint(seed: int, fixed: int | None, sound: Sound, folder: Path) -> Info:
    """Write a checkpoint: its bytes or its content is changed; half of them have a true hash."""
    name, path = "hostile.pth", folder / "hostile.pth"
    # Sound weights may give predictions that are not finite, or have other categories.
    others = ["1.png", "annotations.json", "the loss of step"]
    if fixed is not None and fixed % (len(RAW) + len(CONTENTS)) < len(RAW):
        name, content_of = RAW[fixed % (len(RAW) + len(CONTENTS))]
        (folder / name).write_bytes(content_of())
        return {"checkpoint": name, "names": [name, *others]}
    if fixed is None and seed % 3 == 0:
        path.write_bytes(damaged(sound.checkpoint.read_bytes(), drawn(BYTE_EDITS, seed)))
        return {"checkpoint": name, "names": [name, *others]}
    content = torch.load(sound.checkpoint, weights_only=True)
    if fixed is not None:
        content = CONTENTS[fixed % (len(RAW) + len(CONTENTS)) - len(RAW)](content)
    else:
        content = edited(content, drawn(RECORD_EDITS, seed))
    if seed % 2:
        torch.save(content, path)
    else:
        write_file(path, content)
    return {"checkpoint": name, "names": [name, *others]}


ARRAYS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(
            ["u1", "i1", "u2", "i2", "i4", "i8", "f2", "f4", "f8", ">u2", ">f4", "?", "c8", "U3"]
        ),
        "shape": st.lists(
            st.sampled_from([0, 1, 2, 3, 4, 5, 40, 48, 1000, 20_000]), max_size=5
        ).filter(lambda shape: np.prod(shape or [1]) <= 4_000_000),
        "fill": st.sampled_from(["0", "1", "0.5", "255", "-1", "nan", "inf", "1e30", "noise"]),
        "layout": st.sampled_from(["C", "F", "reversed", "step", "read-only", "tensor", "image"]),
    }
)


def write_array(seed: int, fixed: int | None, sound: Sound, folder: Path) -> Info:
    """Describe an array; the worker builds it."""
    if fixed is None:
        return {"array": drawn(ARRAYS, seed), "names": ["image", "array", "tensor"]}
    shapes = ([40, 48], [40, 48, 1], [40, 48, 3], [40, 48, 4], [3, 40, 48], [1, 1, 3], [])
    dtypes = ("u1", "f4", "u2", "?")
    description = {
        "dtype": dtypes[fixed % len(dtypes)],
        "shape": shapes[fixed // len(dtypes) % len(shapes)],
        "fill": "noise",
        "layout": "C",
    }
    return {"array": description, "names": ["image", "array", "tensor"]}
