import re
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.image_formats import png, png_chunk, tiff
from PIL import Image

import deformable_detr
from deformable_detr.photos import as_photo, photo_suffixes, read_photo

SIZE = (16, 32)  # (height, width)
LEFT, RIGHT = (204, 102, 51), (102, 153, 204)  # colors of the two halves, of the web's palette
GRAYS = (51, 204)
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB")
MODES += ("HSV", "I", "I;16", "I;16B", "I;16L", "I;16N", "F")
# What Pillow writes; other versions may write more.
WRITTEN = {
    ".png": {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"},
    ".tif": set(MODES) - {"La", "RGBa", "HSV", "I;16N"},
    ".jpg": {"1", "L", "RGB", "RGBX", "CMYK", "YCbCr"},
    ".webp": {"L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"},
}
TOLERANCE = 6  # of lossy files, and of color models
DEPTH = "must have 8 or 16 bits per channel"


def two_halves(left: object, right: object, dtype: str = "uint8") -> np.ndarray:
    pixels = np.zeros((*SIZE, np.size(left)), dtype)
    pixels[:, : SIZE[1] // 2], pixels[:, SIZE[1] // 2 :] = left, right
    return pixels


def image_of(mode: str) -> Image.Image:
    """Return the two halves in a mode of Pillow."""
    if mode in ("I", "F"):
        return Image.fromarray(two_halves(*GRAYS, dtype="float32")[..., 0] * 257).convert(mode)
    if mode.startswith("I;16"):
        order = ">" if mode.endswith("B") else "<"
        pixels = two_halves(*GRAYS).astype(f"{order}u2") * 257
        return Image.frombytes(mode, SIZE[::-1], pixels.astype(f"{order}u2").tobytes())
    if mode == "1":
        return Image.fromarray(two_halves(0, 255)[..., 0]).convert("1")
    if mode in ("L", "LA", "La"):
        gray = Image.fromarray(two_halves(*GRAYS)[..., 0])
        return gray if mode == "L" else gray.convert("LA").convert(mode)
    rgb = Image.fromarray(two_halves(LEFT, RIGHT))
    steps = {"PA": ("P", "PA"), "RGBa": ("RGBA", "RGBa")}.get(mode, (mode,))
    for step in steps:
        rgb = rgb.convert(step)
    return rgb


def halves_of(photo: Image.Image) -> np.ndarray:
    """Return the median color of either half, (2, 3)."""
    assert (photo.mode, photo.size) == ("RGB", SIZE[::-1])
    pixels = np.asarray(photo).astype(int)
    return np.stack([np.median(half, axis=(0, 1)) for half in np.split(pixels, 2, axis=1)])


def shown(mode: str) -> np.ndarray:
    """Return the colors of either half that a viewer shows."""
    if mode == "1":
        return np.array([[0] * 3, [255] * 3])
    if mode in ("L", "LA", "La") or mode.startswith("I"):
        return np.array([[gray] * 3 for gray in GRAYS])
    return np.array([LEFT, RIGHT])


@pytest.mark.parametrize("suffix", sorted(WRITTEN))
def test_every_mode_that_pillow_writes_is_shown_or_refused(tmp_path: Path, suffix: str) -> None:
    written = set()
    for mode in MODES:
        path = tmp_path / f"{mode.replace(';', '_')}{suffix}"
        image = image_of(mode)
        try:
            image.save(path)
        except (OSError, ValueError, KeyError):
            continue
        if suffix == ".webp" and mode.startswith(("I", "F")):
            continue  # Pillow writes white: the file does not hold the picture
        written.add(mode)
        if mode in ("I", "F") and suffix == ".tif":
            message = f"image .*{path.name} {DEPTH}, unsigned, got mode {mode} of 32 bits"
            with pytest.raises(ValueError, match=message):
                read_photo(path)
        else:
            assert abs(halves_of(read_photo(path)) - shown(mode)).max() <= TOLERANCE, mode

    assert written >= WRITTEN[suffix]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_in_memory_is_shown_or_refused(mode: str) -> None:
    if mode == "F":
        with pytest.raises(ValueError, match=f"image {DEPTH}, unsigned, got mode F; save it with"):
            as_photo(image_of(mode))
    else:
        assert abs(halves_of(as_photo(image_of(mode))) - shown(mode)).max() <= TOLERANCE


GRAY_16 = two_halves(*GRAYS).astype("uint16") * 257
COLOR_16 = two_halves(LEFT, RIGHT).astype("uint16") * 257
OPAQUE_16 = np.full((*SIZE, 1), 65535, "uint16")


def rows(pixels: np.ndarray, kind: str) -> bytes:
    return pixels.astype(kind).tobytes()


def rows_of_12_bits(pixels: np.ndarray) -> bytes:
    """Return rows in which two values share three bytes."""
    first, second = pixels.reshape(-1, 2).astype(int).T
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1)
    return packed.astype("u1").tobytes()


@pytest.mark.parametrize(
    ("name", "content", "mode"),
    [
        ("gray.png", png(GRAY_16), "L"),
        ("gray and alpha.png", png(np.concatenate([GRAY_16, OPAQUE_16], 2)), "L"),
        ("color.png", png(COLOR_16), "RGB"),
        ("color and alpha.png", png(np.concatenate([COLOR_16, OPAQUE_16], 2)), "RGB"),
        *(
            (f"{name} {order}.tif", tiff(data, SIZE, order=order, **tags), mode)
            for order in "<>"
            for name, data, mode, tags in [
                ("gray", rows(GRAY_16, f"{order}u2"), "L", {"bits": [16], "photometric": 1}),
                (
                    "color",
                    rows(COLOR_16, f"{order}u2"),
                    "RGB",
                    {"bits": [16] * 3, "photometric": 2},
                ),
                (
                    "color and unknown",
                    rows(np.concatenate([COLOR_16, OPAQUE_16 * 0], 2), f"{order}u2"),
                    "RGB",
                    {"bits": [16] * 4, "photometric": 2, "extra": [0]},
                ),
                (
                    "0 is white",
                    rows(255 - two_halves(*GRAYS), "u1"),
                    "L",
                    {"bits": [8], "photometric": 0},
                ),
                (
                    "palette",
                    rows(two_halves(7, 9), "u1"),
                    "RGB",
                    {
                        "bits": [8],
                        "photometric": 3,
                        "colors": [
                            {7: LEFT, 9: RIGHT}.get(index, (0, 0, 0))[channel] * 257
                            for channel in range(3)
                            for index in range(256)
                        ],
                    },
                ),
            ]
        ),
        (
            "0 is white, 16 bits.tif",
            tiff(rows(65535 - GRAY_16, "<u2"), SIZE, bits=[16], photometric=0),
            "L",
        ),
        (
            "12 bits.tif",
            tiff(rows_of_12_bits(GRAY_16 // 16), SIZE, bits=[12], photometric=1),
            "L",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_depths_and_byte_orders_are_shown(
    tmp_path: Path, name: str, content: bytes, mode: str
) -> None:
    (tmp_path / name).write_bytes(content)

    assert abs(halves_of(read_photo(tmp_path / name)) - shown(mode)).max() <= 1


@pytest.mark.parametrize(
    ("bits", "sample_format", "kind"),
    [(8, 2, "i1"), (16, 2, "<i2"), (32, 1, "<u4"), (32, 3, "<f4")],
)
def test_depths_without_a_known_white_are_refused(
    tmp_path: Path, bits: int, sample_format: int, kind: str
) -> None:
    path = tmp_path / "a.tif"
    options = {"bits": [bits], "photometric": 1, "sample_format": sample_format}
    path.write_bytes(tiff(rows(two_halves(1, 2), kind), SIZE, **options))

    with pytest.raises(ValueError, match=rf"image .*a.tif {DEPTH}.* of {bits} bits; save it with"):
        read_photo(path)


def test_values_beyond_16_bits_are_refused() -> None:
    with pytest.raises(ValueError, match=rf"{DEPTH}, unsigned, got mode I, values 0 to 65536"):
        as_photo(Image.fromarray(np.array([[0, 65536]], np.int32)))


@pytest.mark.parametrize("mode", ["LA", "La", "P", "PA", "RGBA", "RGBa"])
def test_transparent_pixels_lie_on_white(mode: str) -> None:
    multiplied = {"La": "LA", "RGBa": "RGBA"}
    image = image_of("RGBA" if mode == "P" else multiplied.get(mode, mode))
    image.putalpha(Image.fromarray(two_halves(255, 0)[..., 0]))
    if mode == "P":
        image = image.quantize()

    left, right = halves_of(as_photo(image.convert(mode) if mode in multiplied else image))
    assert abs(left - shown(mode)[0]).max() <= TOLERANCE
    assert right.tolist() == [255] * 3


@pytest.mark.parametrize(
    ("pixels", "color"),
    [
        (two_halves(*GRAYS), struct.pack(">H", GRAYS[1])),
        (two_halves(LEFT, RIGHT), struct.pack(">3H", *RIGHT)),
        (GRAY_16, struct.pack(">H", GRAYS[1] * 257)),
    ],
    ids=["gray", "color", "gray of 16 bits"],
)
def test_a_transparent_color_lies_on_white(
    tmp_path: Path, pixels: np.ndarray, color: bytes
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(pixels, before=png_chunk(b"tRNS", color)))

    left, right = halves_of(read_photo(path))
    assert left.tolist() == shown("L" if pixels.shape[2] == 1 else "RGB")[0].tolist()
    assert right.tolist() == [255] * 3


def test_a_transparent_color_of_16_bits_hides_no_other_color(tmp_path: Path) -> None:
    """Pillow reduces the pixels to their high bytes, and would compare low bytes with them."""
    path = tmp_path / "a.png"
    color = png_chunk(b"tRNS", struct.pack(">3H", *(256 + value for value in LEFT)))
    path.write_bytes(png(two_halves(LEFT, RIGHT, dtype="uint16") * 257, before=color))
    assert halves_of(read_photo(path)).tolist() == [[*LEFT], [*RIGHT]]


@pytest.mark.parametrize("suffix", [".gif", ".png", ".tif", ".webp"])
def test_the_first_frame_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    path = tmp_path / f"frames{suffix}"
    later = Image.new("RGB", SIZE[::-1], "white")
    image_of("RGB").save(path, save_all=True, append_images=[later, later])

    assert abs(halves_of(read_photo(path)) - shown("RGB")).max() <= TOLERANCE
    named = [f"image {path} has 3 pages; only the first is read"]
    assert caplog.messages == (named if suffix == ".tif" else [])


def test_no_file_reaches_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    image_of("RGB").save(path, "EPS")
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("Ghostscript"))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("Ghostscript"))

    with pytest.raises(ValueError, match=r"a.jpg must be a readable image, got: none of the form"):
        read_photo(path)


def test_only_one_module_opens_images() -> None:
    package = Path(deformable_detr.__file__).parent
    opening = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"\bImage\.(open|OPEN)\b|exif_transpose", path.read_text(encoding="utf-8"))
    ]
    assert opening == ["photos.py"]


def test_suffixes_are_those_of_the_formats() -> None:
    assert {".jfif", ".jp2", ".mpo", ".tiff", ".webp", ".png"} <= set(photo_suffixes())
    assert not {".eps", ".pdf", ".h5", ".mpg", ".ico"} & set(photo_suffixes())


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # of Pillow
@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"garbage"])
def test_damaged_exif_data_leave_the_pixels(tmp_path: Path, exif: bytes) -> None:
    path = tmp_path / "a.jpg"
    image_of("RGB").save(path, exif=exif, quality=100)

    assert abs(halves_of(read_photo(path)) - shown("RGB")).max() <= TOLERANCE


def test_an_upright_rgb_image_is_not_copied() -> None:
    image = Image.new("RGB", (4, 2))
    assert as_photo(image) is image


def test_paths_arrays_and_tensors_of_the_same_image_agree(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)

    for image in (path, str(path), Image.open(path), pixels, tensor, tensor / 255):
        assert np.array_equal(np.asarray(as_photo(image)), pixels)
    between = torch.full((3, 1, 1), 0.999)  # 254.7 of 255
    assert as_photo(between).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (3, "image must be a path, a Pillow image, an array or a tensor, got int"),
        (np.zeros((3, 4, 5), np.uint8), r"1, 3 or 4 channels, got uint8 of shape \(3, 4, 5\)"),
        (np.zeros((4, 4, 3), np.int64), "got int64 of shape"),
        (torch.zeros(5, 4, 3), r"\(channels, height, width\) with 1, 3 or 4 .* torch.float32"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "got torch.int64"),
        (torch.full((3, 4, 4), 2.0), r"floating image tensor must be in \[0, 1\], got \[2, 2\]"),
        (torch.full((3, 4, 4), float("nan")), r"got \[nan, nan\]"),
        (torch.zeros(3, 0, 4), r"got torch.float32 of shape \(3, 0, 4\)"),
    ],
)
def test_invalid_images_are_refused(image: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_photo(image)  # type: ignore[arg-type]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"image .*none.jpg must exist"):
        read_photo(tmp_path / "none.jpg")


def test_a_file_that_is_not_an_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")

    with pytest.raises(ValueError, match=r"image .*text.jpg must be a readable image"):
        read_photo(tmp_path / "text.jpg")


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:4000])

    with pytest.raises(ValueError, match=r"image .*cut.png must be a readable image"):
        read_photo(path)


def test_each_value_of_16_bits_is_the_same_gray_in_a_file_an_array_and_a_tensor(
    tmp_path: Path,
) -> None:
    values = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    path = tmp_path / "a.png"
    Image.fromarray(values).save(path)
    expected = values.astype(np.int64) * 255 // 65535
    for image in (path, values, values.astype(">u2"), torch.from_numpy(values)):
        photo = as_photo(image)
        assert all((np.asarray(photo)[..., channel] == expected).all() for channel in range(3))
