"""Which images a path names, and what is passed over."""

from pathlib import Path

import pytest
import torch
from helpers.tiny_checkpoint import LABEL_SPACE
from PIL import Image, ImageFile
from torch import nn

from deformable_detr import photos as photo_files
from deformable_detr.data.found_photos import find_photos
from deformable_detr.data.transforms import Resize
from deformable_detr.detector import Detector
from deformable_detr.structures import ImageBatch, ModelOutput, Predictions
from deformable_detr.workflows.explanation import explain
from deformable_detr.workflows.prediction import predict


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.JPG", "c.jfif", "d.jp2", "e.mpo"):
        kind = "JPEG" if name in ("c.jfif", "e.mpo") else None
        Image.new("RGB", (40, 32)).save(folder / name, kind)
    return folder


def test_all_suffixes_of_known_formats_are_found(
    photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = [file.name for file in find_photos([photos])]

    assert names == ["a.png", "b.JPG", "c.jfif", "d.jp2", "e.mpo"]
    assert not caplog.messages


def test_what_a_folder_holds_besides_is_counted_and_named(
    photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (photos / "more").mkdir()
    for name in ("p.heic", "q.HEIC", "r.txt", "s.eps", "t.xml", "u.pdf"):
        (photos / name).write_text("")

    assert len(find_photos([photos])) == 5
    assert caplog.messages == [
        f"folder {photos}: passed over subfolders, to be named themselves: 1 (more); "
        "HEIF files, to be converted to JPEG: 2 (p.heic, q.HEIC); "
        "other files: 4 (r.txt, s.eps, t.xml, ...)"
    ]


def test_a_folder_with_no_image_itself_names_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "day 1").mkdir()

    with pytest.raises(ValueError, match=r"found subfolders, to be named themselves: 1 \(day 1\)"):
        find_photos([tmp_path])
    with pytest.raises(ValueError, match=r"^photos must be a path, or a list of paths, got none$"):
        find_photos([])


def test_the_same_file_by_several_paths_is_one(
    photos: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(photos.parent)
    (photos / "link.png").symlink_to(photos / "a.png")
    paths = [photos / "a.png", Path("photos/a.png"), "./photos/../photos/a.png"]

    assert find_photos([*paths, photos / "link.png"]) == [photos / "a.png"]
    assert caplog.messages[0].startswith("images named again are read once: 3 (photos/a.png, ")


def test_a_file_of_an_unknown_format_gets_a_remedy(photos: Path) -> None:
    path = photos / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic")

    with pytest.raises(ValueError, match=r"a.heic must be a readable image.*convert it to JPEG"):
        photo_files.read_photo(path)


class NothingFound(nn.Module):
    def forward(self, images: ImageBatch) -> ModelOutput:
        N = len(images)
        return ModelOutput(Predictions(torch.zeros(N, 1, 3), torch.ones(N, 1, 4)), (), None)


def test_every_image_is_opened_and_decoded_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    decoded: list[str] = []
    open_image, load_prepare = photo_files.open_image, ImageFile.ImageFile.load_prepare

    def record_open(file: Path) -> Image.Image:
        opened.append(file.name)
        return open_image(file)

    def record_decoding(image: ImageFile.ImageFile) -> None:
        decoded.append(image.format)
        load_prepare(image)

    monkeypatch.setattr(photo_files, "open_image", record_open)
    monkeypatch.setattr(ImageFile.ImageFile, "load_prepare", record_decoding)
    device = torch.device("cpu")
    detector = Detector(NothingFound(), LABEL_SPACE, transform=Resize(32, 64), device=device)

    predict([photos, photos / "a.png"], checkpoint=detector, out=tmp_path / "out")
    explain(photos / "b.JPG", checkpoint=detector, queries=0)

    assert opened == ["a.png", "b.JPG", "c.jfif", "d.jp2", "e.mpo", "b.JPG"]
    assert decoded == ["PNG", "JPEG", "JPEG", "JPEG2000", "JPEG", "JPEG"]
