"""Reading of images of 1 to 16 channels, and their way through the transforms."""

import re
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from helpers.coco_files import write_coco_set
from PIL import Image

from deformable_detr.data.channel_images import as_image, read_image
from deformable_detr.data.coco import CocoDataset
from deformable_detr.data.found_photos import find_photos
from deformable_detr.data.geometry import crop, flip_horizontally, resize, rotate_quarter
from deformable_detr.data.transforms import ColorJitter, RandomSoften, normalize
from deformable_detr.pixels.channels import AnyImage, ChannelImage, to_rgb
from deformable_detr.pixels.limits import MAX_PIXELS_VARIABLE
from deformable_detr.structures import Sample

RANDOM = np.random.default_rng(0)
BYTES = RANDOM.integers(0, 256, (12, 10, 16), np.uint8)
WIDE = RANDOM.integers(0, 65536, (12, 10, 16), np.uint16)
FLOATS = RANDOM.random((12, 10, 16))


def values(image: AnyImage) -> npt.NDArray[np.float32]:
    """Return (height, width, channels)."""
    assert isinstance(image, ChannelImage)
    return image.values().permute(1, 2, 0).numpy()


def npy(folder: Path, array: npt.NDArray[np.generic], name: str = "image.npy") -> Path:
    np.save(folder / name, array)
    return folder / name


@pytest.mark.parametrize("channels", [1, 2, 4, 16])
@pytest.mark.parametrize(
    ("array", "white"),
    [(BYTES, 255), (WIDE, 65535), (WIDE.astype(">u2"), 65535)]
    + [(FLOATS.astype(kind), 1) for kind in (np.float16, np.float32, np.float64)],
    ids=["uint8", "uint16", "big-endian", "float16", "float32", "float64"],
)
def test_an_array_is_read_without_loss(
    tmp_path: Path, array: npt.NDArray[np.generic], white: int, channels: int
) -> None:
    part = array[..., :channels]
    expected = part.astype(np.float64) / white
    for given in (npy(tmp_path, part), part, npy(tmp_path, np.asfortranarray(part), "f.npy")):
        found = values(as_image(given, channels=channels))
        np.testing.assert_allclose(found, expected, rtol=0, atol=6e-8)


def test_one_channel_may_be_an_array_of_two_dimensions(tmp_path: Path) -> None:
    flat = BYTES[..., 0]
    for given in (npy(tmp_path, flat), flat, torch.from_numpy(flat), torch.from_numpy(flat)[None]):
        assert np.array_equal(values(as_image(given, channels=1))[..., 0] * 255, flat)


def test_a_tensor_has_its_channels_first() -> None:
    tensor = torch.from_numpy(FLOATS[..., :5]).permute(2, 0, 1)
    np.testing.assert_allclose(values(as_image(tensor, channels=5)), FLOATS[..., :5], atol=6e-8)


def test_three_channels_are_an_rgb_image(tmp_path: Path) -> None:
    image = read_image(npy(tmp_path, BYTES[..., :3]), channels=3)
    assert isinstance(image, Image.Image)
    assert np.array_equal(np.asarray(image), BYTES[..., :3])


@pytest.mark.parametrize("pages", [2, 4, 16])
@pytest.mark.parametrize("array", [BYTES, WIDE], ids=["8 bits", "16 bits"])
def test_pages_of_a_tiff_file_are_channels(
    tmp_path: Path, array: npt.NDArray[np.generic], pages: int
) -> None:
    file = tmp_path / "image.tiff"
    first, *others = (Image.fromarray(array[..., page]) for page in range(pages))
    first.save(file, save_all=True, append_images=others)
    expected = array[..., :pages] / np.iinfo(array.dtype).max
    np.testing.assert_allclose(values(read_image(file, channels=pages)), expected, atol=6e-8)


def test_pages_of_colors_are_three_channels_each(tmp_path: Path) -> None:
    file = tmp_path / "image.tiff"
    first, second = (Image.fromarray(BYTES[..., at : at + 3]) for at in (0, 3))
    first.save(file, save_all=True, append_images=[second])
    assert np.array_equal(values(read_image(file, channels=6)) * 255, BYTES[..., :6])


def test_pages_that_differ_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "image.tiff"
    first, second = Image.fromarray(BYTES[..., 0]), Image.fromarray(BYTES[:8, :, 1])
    first.save(file, save_all=True, append_images=[second])
    with pytest.raises(ValueError, match=r"image\.tiff must have pages of one size .* page 2;"):
        read_image(file, channels=2)


def test_pages_with_huge_tiles_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "image.tiff"
    pages = [Image.fromarray(BYTES[..., at]) for at in (0, 1)]
    pages[0].save(file, save_all=True, append_images=pages[1:])
    content = bytearray(file.read_bytes())
    # Tags of the second page: width and height of tiles in place of rows and bytes of strips.
    at = content.rindex(struct.pack("<HH", 278, 4))
    assert struct.unpack_from("<H", content, at + 12) == (279,)
    content[at : at + 24] = struct.pack("<HHII", 322, 4, 1, 60_000) + struct.pack(
        "<HHII", 323, 4, 1, 60_000
    )
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"must have at most .* got 60000 x 60000"):
        read_image(file, channels=2)


def test_one_channel_is_the_gray_value_of_any_image(tmp_path: Path) -> None:
    for name, image in {
        "rgb.png": Image.fromarray(BYTES[..., :3]),
        "rgba.png": Image.fromarray(BYTES[..., :4]).copy(),
        "gray.png": Image.fromarray(BYTES[..., 0]),
        "palette.png": Image.fromarray(BYTES[..., :3]).quantize(16),
    }.items():
        image.save(tmp_path / name)
        (plane,) = read_image(tmp_path / name, channels=1).split()
        expected = read_image(tmp_path / name, channels=3).convert("L")  # type: ignore[union-attr]
        assert np.array_equal(np.asarray(plane), np.asarray(expected)), name


def test_one_channel_keeps_16_bits(tmp_path: Path) -> None:
    Image.fromarray(WIDE[..., 0]).save(tmp_path / "deep.png")
    found = values(read_image(tmp_path / "deep.png", channels=1))[..., 0]
    np.testing.assert_allclose(found, WIDE[..., 0] / 65535, atol=6e-8)


def test_alpha_is_the_fourth_channel(tmp_path: Path) -> None:
    Image.fromarray(BYTES[..., :4]).save(tmp_path / "alpha.png")
    found = values(read_image(tmp_path / "alpha.png", channels=4))
    assert np.array_equal(found * 255, BYTES[..., :4])


@pytest.mark.parametrize("exif", ["upright", "stored"])
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_planes_are_turned_as_rgb_images_are(tmp_path: Path, exif: str, kind: str) -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    pixels = BYTES[..., :4]
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(tmp_path / f"turned.{kind}", exif=tags)
    file = tmp_path / f"turned.{kind}"
    planes = values(read_image(file, exif=exif, channels=4))  # type: ignore[arg-type]
    rgb = read_image(file, exif=exif, channels=3)  # type: ignore[arg-type]
    assert np.array_equal(planes[..., :3] * 255, np.asarray(rgb))
    assert planes.shape[:2] == ((10, 12) if exif == "upright" else (12, 10))


REFUSED: dict[str, tuple[npt.NDArray[np.generic], str]] = {
    "nan": (np.where(FLOATS < 0.01, np.nan, FLOATS)[..., :4], r"in \[0, 1\], got \[nan, nan\]"),
    "infinite": (np.where(FLOATS < 0.01, np.inf, FLOATS)[..., :4], r"in \[0, 1\], got .*inf\]"),
    "range": (255 * FLOATS[..., :4], r"floating values in \[0, 1\], got .*; divide them"),
    "negative": (FLOATS[..., :4] - 0.5, r"floating values in \[0, 1\], got \[-0\."),
    "signed": (
        BYTES[..., :4].astype(np.int16),
        r"be an array of uint8, uint16, .* got 'int16'",
    ),
    "wide": (BYTES[..., :4].astype(np.uint32), r"be an array of .* got 'uint32'"),
    "bool": (BYTES[..., :4] > 9, r"be an array of .* got 'bool'"),
    "object": (np.array([[{}]]), r"be an array of .* got 'object'"),
    "dimensions": (BYTES[None], r"of shape \(1, 12, 10, 16\)"),
    "too many": (np.zeros((3, 4, 17), np.uint8), "1 to 16 channels"),
    "empty": (np.zeros((0, 4, 4), np.uint8), r"of shape \(0, 4, 4\)"),
    "channels first": (BYTES[..., :4].transpose(2, 0, 1), r"have 4 channels, .* got 10 "),
    "fewer": (BYTES[..., :3], r"4 channels, as model\.backbone\.in_channels says, got 3 .*"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_array_is_refused_by_one_error(tmp_path: Path, case: str) -> None:
    array, message = REFUSED[case]
    file = tmp_path / "bad.npy"
    np.save(file, array, allow_pickle=True)
    with pytest.raises(ValueError, match=rf"^image {re.escape(str(file))} must .*{message}"):
        read_image(file, channels=4)
    with pytest.raises(ValueError, match=message):
        as_image(array, channels=4)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    whole = npy(tmp_path, BYTES).read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"cut\.npy must be a readable image, .* is truncated"):
        read_image(tmp_path / "cut.npy", channels=16)
    for name, content in {
        "header": whole[:40],
        "version": whole[:6] + b"\x09" + whole[7:],
        "code": whole.replace(b"'descr'", b"exit(3)"),
    }.items():
        (tmp_path / f"{name}.npy").write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}\.npy must be a readable image, got"):
            read_image(tmp_path / f"{name}.npy", channels=16)


def test_the_header_bounds_the_size_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = npy(tmp_path, np.zeros((4, 5, 16), np.uint8))
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, "100")  # 5 bytes of 16 channels are 5 times 16 bytes
    read_image(file, channels=16)
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, "99")
    with pytest.raises(ValueError, match="at most 19 pixels of 16 channels, got 4 x 5"):
        read_image(file, channels=16)
    huge = file.read_bytes().replace(b"(4, 5, 16)", b"(4000000000, 5, 16)")
    file.write_bytes(huge)
    with pytest.raises(ValueError, match="must have at most 19 pixels"):
        read_image(file, channels=16)


@pytest.mark.parametrize(
    ("channels", "mode", "message"),
    [
        (4, "RGB", r"4 channels, .* got 3 .*PNG.*shape \(height, width, 4\).*in_channels=3"),
        (2, "L", "2 channels, .* got 1 "),
        (16, "RGBA", "16 channels, .* got 4 "),
    ],
)
def test_a_data_set_of_other_channels_is_refused_before_the_first_step(
    tmp_path: Path, channels: int, mode: str, message: str
) -> None:
    files = write_coco_set(tmp_path, num_images=2)
    for file in files.images.iterdir():
        Image.open(file).convert(mode).save(file)
    with pytest.raises(ValueError, match=rf"image 1 \(.*0001\.png\) must have {message}"):
        CocoDataset(files.images, files.annotations, channels=channels)


def sample(image: AnyImage) -> Sample:
    box = torch.tensor([[1.0, 2.0, 6.0, 9.0]])
    return Sample(image, box, torch.zeros(1, dtype=torch.int64), torch.ones(1), 1, (12, 10))


def test_geometry_is_that_of_rgb_images() -> None:
    rgb = sample(Image.fromarray(BYTES[..., :3]))
    planes = sample(ChannelImage(tuple(Image.fromarray(BYTES[..., at]) for at in (0, 1, 2, 5))))
    for change in (
        lambda one: resize(one, (7, 5)),
        lambda one: resize(one, (31, 23)),
        lambda one: crop(one, top=2, left=1, size=(6, 5)),
        flip_horizontally,
        rotate_quarter,
        lambda one: RandomSoften(1.0)(one, torch.Generator().manual_seed(0)),
    ):
        expected, found = change(rgb), change(planes)
        assert np.array_equal(values(found.image)[..., :3] * 255, np.asarray(expected.image))
        assert torch.equal(found.boxes_xyxy, expected.boxes_xyxy)


def test_resized_floating_values_are_not_rounded_to_8_bits() -> None:
    image = as_image(np.full((8, 8, 2), 0.123456), channels=2)
    resized = resize(sample(image), (5, 5)).image
    np.testing.assert_allclose(values(resized), 0.123456, atol=1e-7)


@pytest.mark.parametrize("array", [BYTES[..., :5], FLOATS[..., :5]], ids=["8 bits", "floating"])
def test_color_jitter_changes_brightness_and_contrast(array: npt.NDArray[np.generic]) -> None:
    image = as_image(array, channels=5)
    jitter = ColorJitter(brightness=0.5, contrast=0.5, saturation=0.5)
    found = values(jitter(sample(image), torch.Generator().manual_seed(3)).image)
    draw = torch.Generator().manual_seed(3)
    brightness, contrast = (
        0.5 + torch.rand((), generator=draw, dtype=torch.float64).item() for _ in range(2)
    )
    bright = np.clip(values(image) * brightness, 0, 1)
    expected = np.clip((bright - bright.mean()) * contrast + bright.mean(), 0, 1)
    np.testing.assert_allclose(found, expected, atol=1.5 / 255 if array is not FLOATS else 1e-6)
    assert abs(found - values(image)).max() > 0.1


def test_each_channel_is_normalized_by_the_mean_over_the_colors() -> None:
    mean, std = (0.485 + 0.456 + 0.406) / 3, (0.229 + 0.224 + 0.225) / 3
    found = normalize(as_image(BYTES[..., :2], channels=2)).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, (BYTES[..., :2] / 255 - mean) / std, atol=1e-5)


def test_the_first_three_channels_are_shown() -> None:
    assert np.array_equal(np.asarray(to_rgb(as_image(BYTES, channels=16))), BYTES[..., :3])
    assert np.array_equal(
        np.asarray(to_rgb(as_image(FLOATS, channels=16))), np.rint(FLOATS[..., :3] * 255)
    )
    for channels in (1, 2):
        shown = np.asarray(to_rgb(as_image(BYTES[..., :channels], channels=channels)))
        assert np.array_equal(shown, np.repeat(BYTES[..., :1], 3, axis=2))


def test_arrays_of_a_folder_are_images_if_there_are_no_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = npy(tmp_path, BYTES)
    assert find_photos([tmp_path]) == [file]
    Image.fromarray(BYTES[..., :3]).save(tmp_path / "image.png")
    assert find_photos([tmp_path]) == [tmp_path / "image.png"]
    assert "1 (image.npy)" in caplog.messages[-1]
    assert find_photos([file]) == [file]
