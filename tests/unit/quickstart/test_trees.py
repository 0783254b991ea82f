import hashlib
import io
import json

import numpy as np
import pytest
from PIL import Image

from deformable_detr.quickstart import trees
from deformable_detr.quickstart.tree_photos import Window, read_photo
from deformable_detr.quickstart.trees import cut_boxes, tile_windows, write_trees

XML = """<annotation><filename>other.tif</filename>
<object><name>Dead</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>20</xmax><ymax>9</ymax></bndbox>
</object><object><name>Tree</name><bndbox><xmin>300</xmin><ymin>200</ymin><xmax>340</xmax>
<ymax>250</ymax></bndbox></object></annotation>"""


def photo_files(name, size=(260, 1040)):
    rows, columns = np.indices(size)
    pixels = np.stack((rows % 256, columns % 256, columns // 256), axis=2)  # each pixel its own
    image = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(image, "PNG")
    folder = "deepforest/data"
    return {f"{folder}/{name}.png": image.getvalue(), f"{folder}/{name}.xml": XML.encode()}


class FakeWheel:
    requirement = "photos==1.0"

    def __init__(self):
        self.reads = 0

    def read(self, folder, *, wheel_file=None):
        self.reads += 1
        names = (trees.TRAIN_PHOTO, trees.VAL_PHOTO, *trees.OTHER_SITE_PHOTOS)
        return {path: content for name in names for path, content in photo_files(name).items()}


@pytest.fixture
def wheel(monkeypatch):
    fake = FakeWheel()
    monkeypatch.setattr(trees, "WHEEL", fake)
    return fake


def hashes(folder):
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_tiles_cover_an_image_and_stay_inside():
    tiles = tile_windows(Window(0, 0, 600, 256))
    assert tiles == [(0, 0, 256, 256), (256, 0, 512, 256), (344, 0, 600, 256)]


def test_tiles_of_a_part_stay_in_that_part():
    tiles = tile_windows(Window(100, 50, 400, 562))
    assert {(tile.left, tile.top) for tile in tiles} == {
        (100, 50),
        (144, 50),
        (100, 306),
        (144, 306),
    }


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        (Window(10, 20, 30, 40), [(10, 20, 30, 40)]),
        (Window(-6, 0, 4, 10), [(0, 0, 4, 10)]),  # exactly 40 %
        (Window(-7, 0, 3, 10), []),
        (Window(90, 90, 110, 110), []),  # a quarter
        (Window(200, 0, 210, 10), []),
    ],
)
def test_clipped_box_is_kept_if_enough_of_it_is_visible(box, expected):
    assert cut_boxes([box], Window(0, 0, 100, 100)) == expected


def test_boxes_are_relative_to_the_window():
    assert cut_boxes([Window(50, 60, 70, 90)], Window(40, 50, 140, 150)) == [(10, 10, 30, 40)]


def test_pascal_boxes_count_from_one_and_all_objects_are_trees():
    photo = read_photo("a", photo_files("a"))
    assert photo.boxes == ((0, 1, 20, 9), (299, 199, 340, 250))
    assert photo.pixels.shape == (260, 1040, 3)


def test_sets_are_written_as_coco_files(tmp_path, wheel):
    by_name = {tree_set.name: tree_set for tree_set in write_trees(tmp_path)}
    assert list(by_name) == ["train", "train_photo", "fit", "fit_photo", "holdout", "val", "ood"]
    train = by_name["train"]
    record = json.loads(train.annotations.read_text())
    assert (train.num_images, train.num_boxes) == (10, len(record["annotations"]))
    assert record["categories"] == [{"id": 1, "name": "tree"}]
    for image in record["images"]:
        with Image.open(train.images / image["file_name"]) as tile:
            assert (tile.width, tile.height) == (image["width"], image["height"]) == (256, 256)


def test_tile_contains_its_part_of_the_image(tmp_path, wheel):
    write_trees(tmp_path)
    photo = read_photo("a", photo_files("a"))
    with Image.open(tmp_path / "train" / f"{trees.TRAIN_PHOTO}_x0256_y0004.png") as tile:
        assert np.array_equal(np.asarray(tile), photo.pixels[4:260, 256:512])


def test_fit_and_holdout_share_no_column(tmp_path, wheel):
    write_trees(tmp_path)
    with Image.open(next((tmp_path / "fit_photo").iterdir())) as photo:
        border = photo.width
    assert border == 780  # three quarters of 1040
    lefts = [int(path.stem[-10:-6]) for path in (tmp_path / "fit").iterdir()]
    assert max(lefts) + 256 <= border
    lefts = [int(path.stem[-10:-6]) for path in (tmp_path / "holdout").iterdir()]
    assert min(lefts) >= border


def test_writing_is_deterministic(tmp_path, wheel):
    write_trees(tmp_path / "a")
    write_trees(tmp_path / "b")
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


def test_complete_folder_is_only_verified(tmp_path, wheel):
    first = write_trees(tmp_path)
    assert write_trees(tmp_path) == first
    assert wheel.reads == 1


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("val.json", lambda path: path.unlink()),
        ("ood/SOAP_061_x0000_y0000.png", lambda path: path.unlink()),
        (trees.MANIFEST, lambda path: path.write_text("")),
    ],
)
def test_damaged_folder_is_written_again(tmp_path, wheel, name, damage):
    write_trees(tmp_path)
    before = hashes(tmp_path)
    damage(tmp_path / name)
    write_trees(tmp_path)
    assert hashes(tmp_path) == before


@pytest.mark.parametrize("is_ours", [False, True])
def test_a_file_with_other_content_is_not_replaced(tmp_path, wheel, is_ours):
    if is_ours:
        write_trees(tmp_path)
    (tmp_path / "val.json").write_text("own work")
    before = hashes(tmp_path)
    with pytest.raises(ValueError, match=r"val\.json must be a file of .*; delete it, or choose"):
        write_trees(tmp_path)
    assert hashes(tmp_path) == before


def test_a_killed_start_is_continued(tmp_path, wheel):
    write_trees(tmp_path)
    before = hashes(tmp_path)
    (tmp_path / trees.MANIFEST).unlink()
    (tmp_path / "val.json").unlink()
    write_trees(tmp_path)
    assert hashes(tmp_path) == before


def test_sets_of_another_recipe_are_written_again(tmp_path, wheel, monkeypatch):
    write_trees(tmp_path)
    monkeypatch.setattr(trees, "RECIPE", trees.RECIPE + 1)
    write_trees(tmp_path)
    assert wheel.reads == 2


@pytest.mark.slow
def test_real_images_give_the_known_sets(tmp_path):
    try:
        sets = write_trees(tmp_path)
    except RuntimeError as error:
        pytest.skip(f"the images are not available: {error}")
    counts = {tree_set.name: (tree_set.num_images, tree_set.num_boxes) for tree_set in sets}
    assert counts == {
        "train": (90, 635),
        "train_photo": (1, 574),
        "fit": (70, 417),
        "fit_photo": (1, 366),
        "holdout": (30, 296),
        "val": (25, 364),
        "ood": (8, 156),
    }
    record = json.loads((tmp_path / "train.json").read_text())
    with_boxes = {annotation["image_id"] for annotation in record["annotations"]}
    assert 90 - len(with_boxes) == 11
