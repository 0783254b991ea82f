import io
import os
import pickle

import numpy as np
import pytest
from helpers.coco_files import write_coco_set
from helpers.image_formats import png, png_chunk
from helpers.shared_data import shared_data
from helpers.turned_images import ORIENTATION
from PIL import Image, ImageFile

from deformable_detr.data.coco import CocoDataset
from deformable_detr.data.image_files import decide_exif
from deformable_detr.ground_truth import read_ground_truth
from deformable_detr.labels import LabelSpace


@pytest.fixture
def files(tmp_path):
    return write_coco_set(tmp_path, empty=(2,))


def jpeg(pixels=None, **options):
    content = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (96, 128, 3)) if pixels is None else pixels
    Image.fromarray(pixels.astype(np.uint8)).save(content, "JPEG", **options)
    return content.getvalue()


def open_set(files, **options):
    return CocoDataset(files.images, files.annotations, **options)


def test_samples_hold_the_image_and_its_objects(files):
    dataset = open_set(files)
    assert (len(dataset), dataset.image_ids.tolist()) == (4, [1, 2, 3, 4])
    record = files.read()
    for index, image_id in enumerate(dataset.image_ids):
        sample = dataset[index]
        expected = [entry for entry in record["annotations"] if entry["image_id"] == image_id]
        assert sample.image_id == image_id
        assert sample.size == sample.original_size == (96, 128)
        assert sample.area.tolist() == [entry["area"] for entry in expected]
        assert len(sample.boxes_xyxy) == len(expected)
    assert len(dataset[1].boxes_xyxy) == 0


def test_ground_truth_equals_that_of_read_ground_truth(files):
    record = files.read()
    image = record["images"][0]["id"]
    crowd = {"bbox": [-5, 0, 900, 0], "iscrowd": 1}
    record["annotations"].insert(0, {"id": 99, "image_id": image, "category_id": 7, **crowd})
    files.write(record)
    assert open_set(files).annotations.to_coco() == read_ground_truth(files.annotations).to_coco()


def test_boxes_lie_on_the_objects(files):
    sample = open_set(files)[0]
    left, top, right, bottom = (int(side) for side in sample.boxes_xyxy[0])
    pixels = np.asarray(sample.image)
    inside = pixels[top:bottom, left:right].reshape(-1, 3)
    assert (inside == inside[0]).all()  # one color
    assert (pixels[top - 1] != inside[0]).any(axis=1).all()


def test_changing_boxes_of_a_sample_does_not_change_the_dataset(files):
    dataset = open_set(files)
    dataset[0].boxes_xyxy.zero_()
    assert dataset[0].boxes_xyxy.any()


def test_cached_images_are_not_read_again(files):
    dataset = open_set(files, cache_images=True)
    before = np.asarray(dataset[0].image)
    (files.images / "0001.png").unlink()
    assert np.array_equal(np.asarray(dataset[0].image), before)


def test_label_space_with_other_categories_is_rejected(files):
    open_set(files, label_space=LabelSpace((3, 7), ("red thing", "blue thing")))
    with pytest.raises(ValueError, match=r"annotations.json: the file must have the categories of"):
        open_set(files, label_space=LabelSpace((1, 2), ("red thing", "blue thing")))


def test_error_names_the_missing_image(files):
    (files.images / "0003.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"image 3 \(.*0003.png\) must exist"):
        open_set(files)


def test_error_names_the_missing_folder(files):
    with pytest.raises(FileNotFoundError, match=r"images must be a folder, got .*nowhere"):
        CocoDataset(files.images / "nowhere", files.annotations)


def test_error_names_a_file_that_is_not_an_image(files):
    (files.images / "0003.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"image 3 \(.*0003.png\) must be a readable image"):
        open_set(files)


@pytest.mark.parametrize("found", ["0003.PNG", "0003.jpg"])
def test_error_names_the_file_of_another_case_or_suffix(files, found):
    (files.images / "0003.png").rename(files.images / found)
    with pytest.raises(FileNotFoundError, match=f"must exist, got no such .*; found '{found}' the"):
        open_set(files)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.parametrize("kind", ["folder", "named pipe"])
def test_other_things_than_files_are_refused_before_they_are_opened(files, kind):
    path = files.images / "0003.png"
    path.unlink()
    if kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(
        ValueError, match=rf"image 3 .*0003.png must be a regular file, .* a {kind}"
    ):
        open_set(files)


def test_symbolic_links_below_the_folder_are_followed(files):
    moved = (files.images / "0003.png").rename(files.images.parent / "elsewhere.png")
    (files.images / "0003.png").symlink_to(moved)
    assert open_set(files)[2].size == (96, 128)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_depths_of_formats_without_a_known_end_are_judged_by_their_headers(files, mode):
    Image.new(mode, (128, 96)).save(files.images / "0003.png", "TIFF")
    if mode == "F":
        with pytest.raises(ValueError, match=r"image 3 .* must have 8 or 16 bits .* got mode F"):
            open_set(files)
    else:
        with pytest.raises(ValueError, match=r"0003.png must have 8 or 16 bits per channel"):
            open_set(files)[2]


def test_only_the_end_of_jpeg_and_png_is_looked_for_at_the_start(files):
    Image.open(files.images / "0003.png").save(files.images / "0003.png", "BMP")
    content = (files.images / "0003.png").read_bytes()
    (files.images / "0003.png").write_bytes(content[:-500])
    with pytest.raises(ValueError, match=r"0003.png must be a readable image"):
        open_set(files)[2]


@pytest.mark.parametrize("kind", ["png", "jpeg"])
@pytest.mark.parametrize("share", [0.95, 0.3, 0])
def test_truncated_image_is_found_before_the_first_step(files, kind, share):
    path = files.images / "0003.png"
    content = path.read_bytes() if kind == "png" else jpeg()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"0003.png\)? must be a readable image"):
        open_set(files)


def test_a_png_with_an_end_but_without_pixels_is_found(files):
    path = files.images / "0003.png"
    content = path.read_bytes()
    pixels, end = content.index(b"IDAT") - 4, content.index(b"IEND") - 4
    path.write_bytes(content[:pixels] + content[end:])
    with pytest.raises(ValueError, match=r"0003.png\)? must be a readable image"):
        open_set(files)


def test_images_that_cannot_be_read_do_not_decide_how_exif_is_applied(files):
    missing = files.images / "missing.png"
    assert decide_exif([missing], [(1, 2)], otherwise="stored", what="a.json") == "stored"


@pytest.mark.parametrize("where", [0, 400, 800, 2000])  # the pixels begin after 591
def test_a_jpeg_cut_off_behind_its_thumbnail_is_found(files, where):
    thumbnail = jpeg(np.zeros((8, 8, 3)))
    content = jpeg(exif=b"Exif\0\0" + thumbnail)
    end = content.index(thumbnail) + len(thumbnail)
    (files.images / "0003.png").write_bytes(content)
    assert len(open_set(files)) == 4  # whole
    (files.images / "0003.png").write_bytes(content[: end + where])
    with pytest.raises(ValueError, match=r"0003.png\)? must be a readable image"):
        open_set(files)


def test_a_png_cut_off_behind_an_embedded_one_is_found(files):
    pixels = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    inner = png(pixels[:8, :8])
    content = png(pixels, before=png_chunk(b"prVt", inner))
    (files.images / "0003.png").write_bytes(content)
    assert len(open_set(files)) == 4  # whole
    end = content.index(inner) + len(inner)
    (files.images / "0003.png").write_bytes(content[: end + 100])
    with pytest.raises(ValueError, match=r"0003.png\)? must be a readable image"):
        open_set(files)


def test_jpeg_and_png_images_are_not_decoded_at_the_start(files, monkeypatch):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    turned = io.BytesIO()
    Image.new("RGB", (96, 128)).save(turned, "PNG", exif=exif)
    (files.images / "0002.png").write_bytes(turned.getvalue())
    (files.images / "0003.png").write_bytes(jpeg(progressive=True))
    record = files.read()
    record["images"][1] |= {"height": 128, "width": 96}
    files.write(record)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))
    assert open_set(files).exif == "stored"


@pytest.mark.parametrize("kind", [b"eXIf", b"iTXt"])
def test_an_orientation_behind_the_pixels_of_a_png_is_found(files, kind):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    text = b"XML:com.adobe.xmp" + bytes(5) + b'<a tiff:Orientation="6"/>'
    data = {b"eXIf": exif.tobytes().removeprefix(b"Exif\0\0"), b"iTXt": text}[kind]
    content = png(np.zeros((128, 96, 3), np.uint8), after=png_chunk(kind, data))
    (files.images / "0003.png").write_bytes(content)
    dataset = open_set(files)
    assert (dataset.exif, dataset[2].size) == ("upright", (96, 128))


def test_further_pages_are_counted(files, caplog):
    page = Image.open(files.images / "0003.png").convert("RGB")
    page.save(files.images / "0003.png", "TIFF", save_all=True, append_images=[page])
    open_set(files)
    assert caplog.messages == [
        f"{files.annotations}: 1 TIFF images have several pages, such as 0003.png; only the first "
        "is read"
    ]


def test_bytes_after_the_end_of_a_jpeg_are_accepted(files):
    (files.images / "0003.png").write_bytes(jpeg() + bytes(10_000))
    assert open_set(files)[2].size == (96, 128)


def test_image_of_another_size_is_rejected(files):
    (files.images / "0003.png").write_bytes(jpeg(np.zeros((128, 96, 3))))
    with pytest.raises(ValueError, match=r"image 3 .* must be \(96, 128\) .* got \(128, 96\)"):
        open_set(files)


def test_error_names_an_image_that_breaks_later(files):
    dataset = open_set(files)
    (files.images / "0003.png").write_text("overwritten")
    with pytest.raises(ValueError, match=r"0003.png must be a readable image"):
        dataset[2]


def test_dataset_can_be_pickled(files):
    dataset = pickle.loads(pickle.dumps(open_set(files)))
    assert len(dataset[0].labels) == len(open_set(files)[0].labels)


def test_real_coco_photos_load():
    root = shared_data("tinycoco")
    dataset = CocoDataset(
        root / "images" / "train2017", root / "annotations" / "instances_train2017.json"
    )
    assert (len(dataset), dataset.label_space.num_classes) == (32, 80)
    assert dataset.num_dropped == {"crowd": 4, "degenerate": 0, "outside": 0}
    assert sum(len(dataset[index].labels) for index in range(32)) == 288 - 4
