from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deformable_detr.photos import as_photo, read_photo, to_rgb

ORIENTATION = 0x0112  # EXIF tag
TURN_CLOCKWISE = 6  # stored rotated by 90 degrees


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "F"])
def test_every_mode_becomes_rgb_of_the_same_size(mode: str) -> None:
    photo = to_rgb(Image.new("RGB", (5, 3), "white").convert("L").convert(mode))

    assert photo.mode == "RGB"
    assert photo.size == (5, 3)
    assert min(photo.getpixel((2, 1))) >= 250


@pytest.mark.parametrize(("dtype", "white"), [(np.uint16, 65535), (np.int32, 65535)])
def test_16_bit_gray_values_are_scaled(dtype: type, white: int) -> None:
    photo = to_rgb(Image.fromarray(np.array([[0, white // 2, white]], dtype=dtype)))

    assert [photo.getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (127,) * 3, (255,) * 3]


def test_a_palette_with_transparency_is_read(tmp_path: Path) -> None:
    path = tmp_path / "palette.png"
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(path, transparency=b"\x80\x40")

    assert read_photo(path).getpixel((0, 0)) == (10, 20, 30)


def test_the_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[ORIENTATION] = TURN_CLOCKWISE
    image.save(tmp_path / "turned.png", exif=exif)

    path = tmp_path / "turned.png"

    for photo in (read_photo(path), as_photo(Image.open(path))):
        assert photo.size == (2, 4)
        assert photo.getpixel((1, 0)) == (255, 255, 255)


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


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (3, "image must be a path, a Pillow image, an array or a tensor, got int"),
        (np.zeros((4, 4), np.uint8), r"uint8 of shape \(height, width, 3\), got uint8 of shape"),
        (np.zeros((4, 4, 3), np.float32), "got float32 of shape"),
        (torch.zeros(4, 4, 3), r"of shape \(3, height, width\), got torch.float32 of shape"),
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
