import io
import pickle

import numpy as np
import pytest
from helpers.coco_files import write_coco_set
from helpers.shared_data import shared_data
from PIL import Image

from deformable_detr.data.coco import CocoDataset
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
    assert (len(dataset), dataset.image_ids) == (4, (1, 2, 3, 4))
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


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_image_mode_becomes_rgb(files, mode):
    name = "0001.tiff" if mode == "CMYK" else "0001.png"
    record = files.read()
    record["images"][0]["file_name"] = name
    files.write(record)
    Image.open(files.images / "0001.png").convert(mode).save(files.images / name)
    assert open_set(files)[0].image.mode == "RGB"


def test_exif_orientation_is_not_applied(files):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to display
    (files.images / "0001.png").write_bytes(jpeg(exif=exif))
    assert open_set(files)[0].size == (96, 128)


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


@pytest.mark.parametrize("kind", ["png", "jpeg"])
@pytest.mark.parametrize("share", [0.95, 0.3, 0])
def test_truncated_image_is_found_before_the_first_step(files, kind, share):
    path = files.images / "0003.png"
    content = path.read_bytes() if kind == "png" else jpeg()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"0003.png\)? must be a readable image"):
        open_set(files)


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
