"""Limits of images: checked by the header, for files and for images in memory alike."""

import io
import os
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.image_formats import PNG_SIGNATURE, png, png_chunk, tiff
from PIL import Image

from deformable_detr.photos import as_photo, decode, num_pages, open_image, read_photo
from deformable_detr.pixels.limits import (
    DEFAULT_MAX_PIXELS,
    MAX_PIXELS_VARIABLE,
    MOST_SCANS,
    require_pixels,
)

PIXELS = np.zeros((2, 3, 3), np.uint8)
TOO_MANY = "must have at most 67108864 pixels, got 30000 x 30000 (height x width); cut or reduce it"
REMEDY = "or set the environment variable DEFORMABLE_DETR_MAX_PIXELS to 900000000 or more"


def huge_png(side: int = 30000) -> bytes:
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return PNG_SIGNATURE + head + png(PIXELS)[8 + len(head) :]


def huge_gif(side: int = 9000) -> bytes:
    """Return a small screen with a large frame, of which the background replaces all."""
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "GIF")
    content = bytearray(file.getvalue())
    frame = content.index(b",", 13 + 3 * 2 ** ((content[10] & 7) + 1))
    content[frame + 5 : frame + 9] = struct.pack("<HH", side, side)
    return bytes(content)


def huge_tile() -> bytes:
    """Return a TIFF file of a few pixels in a tile of many."""
    tags = {256: 3, 257: 2, 258: 8, 259: 1, 262: 1, 277: 1}
    tags |= {322: 30000, 323: 30000, 324: 8, 325: 6}
    entries = [struct.pack("<HHIHxx", tag, 3, 1, value) for tag, value in tags.items()]
    directory = struct.pack("<H", len(tags)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + 6) + bytes(6) + directory


def broadcast(shape: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(np.zeros((), np.uint8), shape)


@pytest.mark.parametrize(
    ("name", "make"), [("a.png", huge_png), ("a.gif", huge_gif), ("a.tif", huge_tile)]
)
def test_large_files_are_refused_before_they_are_decoded(
    tmp_path: Path, name: str, make: Callable[[], bytes], recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / name
    path.write_bytes(make())
    before = Image.MAX_IMAGE_PIXELS

    with pytest.raises(ValueError, match="must have at most") as caught:
        read_photo(path)

    expected = f"image {path} {TOO_MANY}, {REMEDY}"
    if name == "a.gif":
        expected = expected.replace("30000", "9000").replace("900000000", "81000000")
    assert str(caught.value) == expected
    assert not [one for one in recwarn if "bomb" in str(one.message)]
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    ("image", "name"),
    [
        (broadcast((30000, 30000, 3)), "image array"),
        (broadcast((30000, 30000)), "image array"),
        (torch.zeros(()).expand(3, 30000, 30000), "image tensor"),
    ],
)
def test_large_arrays_are_refused_before_they_are_converted(image: object, name: str) -> None:
    with pytest.raises(ValueError, match="must have at most") as caught:
        as_photo(image)  # type: ignore[arg-type]
    assert str(caught.value) == f"{name} {TOO_MANY}, {REMEDY}"


def test_a_file_whose_frame_pillow_refuses_is_refused_as_others(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    path.write_bytes(huge_gif(30000))
    with pytest.raises(ValueError, match="must have at most 67108864 pixels, got more than twice"):
        read_photo(path)


def test_large_pillow_images_are_refused_before_they_are_decoded() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lazy = Image.open(io.BytesIO(huge_png(9000)))
    with pytest.raises(ValueError, match=r"^image must have at most 67108864 pixels, got 9000 x"):
        as_photo(lazy)


@pytest.mark.parametrize("suffix", [".png", ".gif", ".tif", ".webp", ".jpg", ".bmp"])
def test_the_limit_is_that_of_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """Pillow's own limit, which TIFF files meet once more as they are decoded, is no obstacle."""
    path = tmp_path / f"a{suffix}"
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, "1200")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_photo(path).size == (40, 30)
    assert Image.MAX_IMAGE_PIXELS == 100

    monkeypatch.setenv(MAX_PIXELS_VARIABLE, "1199")
    with pytest.raises(ValueError, match=r"at most 1199 pixels, got 30 x 40 .* to 1200 or more"):
        read_photo(path)


def test_a_format_that_takes_more_memory_has_a_lower_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.jp2"
    Image.new("L", (64, 64)).save(path)
    side = 4097  # a quarter of the pixels are 4096 * 4096
    content = path.read_bytes().replace(struct.pack(">II", 64, 64), struct.pack(">II", side, side))
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"at most {DEFAULT_MAX_PIXELS // 4} pixels of a JPEG2000"):
        read_photo(path)
    require_pixels(2**12, 2**13, "AVIF")  # half of them
    with pytest.raises(ValueError, match=f"at most {DEFAULT_MAX_PIXELS // 2} pixels of an? AVIF"):
        require_pixels(2**12, 2**13 + 1, "AVIF")


@pytest.mark.parametrize("value", ["0", "-5", "1e9", "x" * 5000, "9" * 30])
def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, value)
    with pytest.raises(ValueError, match=f"variable {MAX_PIXELS_VARIABLE} must be a pos") as caught:
        as_photo(PIXELS)
    assert len(str(caught.value)) < 250


def test_many_scans_of_a_jpeg_file_are_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    tables = content.rindex(b"\xff\xc4")
    path = tmp_path / "a.jpg"
    further = MOST_SCANS - content.count(b"\xff\xda")
    path.write_bytes(content[:-2] + content[tables:-2] * further + content[-2:])
    assert read_photo(path).size == (16, 16)
    path.write_bytes(content[:-2] + content[tables:-2] * (further + 1) + content[-2:])
    with pytest.raises(ValueError, match=r"a.jpg must have at most 64 scans, .* save it again"):
        read_photo(path)

    path.write_bytes(content + content[tables:-2] * MOST_SCANS)  # such as an appended video
    assert read_photo(path).size == (16, 16)


def test_pages_of_a_tiff_file_are_counted_to_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    start = tiff(bytes(6), (2, 3), bits=[8], photometric=1)
    pages = b"".join(
        struct.pack("<HI", 0, len(start) + 6 * (number + 1)) for number in range(200_000)
    )
    path.write_bytes(start[:-4] + struct.pack("<I", len(start)) + pages)
    with open_image(path) as image:
        assert num_pages(image) == 1001
    loop = start[:-4] + start[4:8]
    path.write_bytes(loop)
    with open_image(path) as image:
        assert num_pages(image) == 1


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "empty.jpg").touch()
    link = tmp_path / "link.png"
    (tmp_path / "a.png").write_bytes(png(PIXELS))
    link.symlink_to("a.png")
    assert read_photo(link).size == (3, 2)
    for path, found in [
        (pipe, "must be a regular file, found a named pipe"),
        (tmp_path / "zero.jpg", "must be a regular file, found a device"),
        (tmp_path / "empty.jpg", "must be a readable image, got: an empty file"),
        (Path("/proc/self/mem"), "must be a readable image, got: an empty file"),
        (tmp_path, "must be a regular file, found a folder"),
        (Path("https://a.org/b.jpg"), "must be a path, got a URL; download the file first"),
        (Path("a\0.jpg"), "must be a path of a file, got"),
    ]:
        with pytest.raises(ValueError, match=found):
            read_photo(path)
        with pytest.raises(ValueError, match="image 7"):
            decode(path, "image 7", exif="stored")
    with pytest.raises(ValueError, match="image must be a path, got an empty text"):
        as_photo("")


def test_files_are_read_in_several_threads(tmp_path: Path) -> None:
    """The limit of Pillow is one for the process: it is restored, whoever comes first."""
    path = tmp_path / "a.gif"
    Image.fromarray(PIXELS).save(path)
    before = Image.MAX_IMAGE_PIXELS
    threads = [
        threading.Thread(target=lambda: [read_photo(path) for _ in range(20)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert before == Image.MAX_IMAGE_PIXELS


GRAY = np.array([[0, 51, 255]], np.uint8)
COLOR = np.stack([GRAY, 255 - GRAY, GRAY // 2], axis=2)
ON_WHITE = np.concatenate([COLOR, np.array([[[255], [255], [0]]], np.uint8)], axis=2)


def forms() -> Iterator[tuple[object, np.ndarray]]:
    """Yield arrays and tensors, and the (height, width, 3) that a viewer shows of each."""
    gray = GRAY[..., None].repeat(3, axis=2)
    shown = COLOR.copy()
    shown[0, 2] = 255
    for array, wanted in [(GRAY, gray), (GRAY[..., None], gray), (COLOR, COLOR), (ON_WHITE, shown)]:
        wide = array.astype(np.uint16) * 257
        locked = array.copy()
        locked.flags.writeable = False
        yield from (
            (one, wanted)
            for one in (
                array,
                locked,
                wide,
                wide.astype(">u2"),
                array / 255,
                (array / 255).astype(np.float32).astype(">f4"),
                array[::-1, ::-1][::-1, ::-1],
                np.asfortranarray(array),
            )
        )
        tensor = torch.from_numpy(np.moveaxis(array, 2, 0) if array.ndim == 3 else array)
        yield from ((one, wanted) for one in (tensor, tensor / 255, (tensor / 255).double()))


def test_arrays_and_tensors_are_what_a_viewer_shows() -> None:
    count = 0
    for image, wanted in forms():
        photo = as_photo(image)  # type: ignore[arg-type]
        assert photo.mode == "RGB"
        assert np.array_equal(np.asarray(photo), wanted), image
        count += 1
    assert count == 44


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3), object),
        np.zeros((4, 4, 3), complex),
        np.zeros((4, 4), bool),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((4,), np.uint8),
        np.zeros((), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.full((4, 4), np.nan),
        np.full((4, 4, 3), 255.0),
        np.full((4, 4), -0.1, np.float32),
        torch.zeros(4, 4, dtype=torch.complex64),
        torch.zeros(1, 3, 4, 4),
        torch.zeros(3, 4, 4, device="meta"),
        torch.zeros(3, 4, 4).to_sparse(),
        torch.full((4, 4), float("inf")),
        Image.new("RGB", (0, 4)),
        None,
        7,
        b"a.jpg",
        ["a.jpg"],
    ],
    ids=lambda image: f"{type(image).__name__} {getattr(image, 'dtype', '')}",
)
def test_what_is_no_image_is_refused_in_one_line(image: object) -> None:
    with pytest.raises(ValueError, match=r"^(floating )?image .*must be") as caught:
        as_photo(image)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_tensor_without_a_shape_is_refused_in_one_line() -> None:
    image = torch.nested.nested_tensor([torch.zeros(4, 4)], layout=torch.strided)
    with pytest.raises(ValueError, match=r"^image tensor must be dense, got a nested one$"):
        as_photo(image)
