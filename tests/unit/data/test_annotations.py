import json
import logging

import pytest
import torch
from helpers.coco_files import write_coco_set

from deformable_detr.data.annotations import read_annotations


@pytest.fixture
def files(tmp_path):
    return write_coco_set(tmp_path, empty=(2,))


def edited(files, section, position, **changes):
    """Return the record with an entry of a section changed; a value of ... removes the key."""
    record = files.read()
    entry = record[section][position]
    entry.update(changes)
    record[section][position] = {key: value for key, value in entry.items() if value is not ...}
    files.write(record)
    return files.annotations


def test_images_are_sorted_by_id_with_and_without_objects(files):
    record = files.read()
    record["images"].reverse()
    files.write(record)
    annotations = read_annotations(files.annotations)
    assert [image.image_id for image in annotations.images] == [1, 2, 3, 4]
    assert annotations.offsets[1] == annotations.offsets[2]  # image 2 has no object
    assert annotations.offsets[-1] == len(record["annotations"])


def test_objects_keep_file_order_within_an_image(files):
    record = files.read()
    of_image_3 = [entry for entry in record["annotations"] if entry["image_id"] == 3]
    assert len(of_image_3) > 1
    record["annotations"].reverse()
    files.write(record)
    annotations = read_annotations(files.annotations)
    begin, end = annotations.offsets[2:4]
    found = annotations.objects.annotation_ids[begin:end]
    assert list(found) == [entry["id"] for entry in reversed(of_image_3)]


def test_boxes_become_corners_and_sparse_category_ids_become_labels(files):
    first = files.read()["annotations"][0]
    objects = read_annotations(files.annotations).objects
    x, y, width, height = first["bbox"]
    assert objects.boxes_xyxy[0].tolist() == [x, y, x + width, y + height]
    assert objects.boxes_xyxy.dtype == objects.area.dtype == torch.float32
    assert objects.labels[0] == {3: 0, 7: 1}[first["category_id"]]


def test_boxes_are_clipped_to_their_image(files):
    path = edited(files, "annotations", 0, bbox=[-5.5, 90, 1000, 10])
    assert read_annotations(path).objects.boxes_xyxy[0].tolist() == [0, 90, 128, 96]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iscrowd": 1}, "crowd"),
        ({"bbox": [10, 10, 0, 5]}, "degenerate"),
        ({"bbox": [10, 10, 5, -1]}, "degenerate"),
        ({"bbox": [128, 10, 5, 5]}, "outside"),
        ({"bbox": [10, -7, 5, 5]}, "outside"),
    ],
)
def test_unusable_annotations_are_dropped_and_counted(files, changes, reason):
    expected = {"crowd": 0, "degenerate": 0, "outside": 0} | {reason: 1}
    before = len(read_annotations(files.annotations).objects.labels)
    annotations = read_annotations(edited(files, "annotations", 0, **changes))
    assert annotations.num_dropped == expected
    assert len(annotations.objects.labels) == before - 1


def test_dropped_boxes_are_logged(files, caplog):
    with caplog.at_level(logging.WARNING):
        read_annotations(edited(files, "annotations", 0, bbox=[10, 10, 0, 5]))
    assert "1 degenerate boxes left out" in caplog.text
    assert str(files.annotations) in caplog.text


@pytest.mark.parametrize(
    "segmentation", [[[1, 1, 9, 1, 9, 9]], {"size": [96, 128], "counts": "abc"}, None]
)
def test_segmentations_are_kept_unchanged(files, segmentation):
    path = edited(files, "annotations", 0, segmentation=segmentation)
    assert read_annotations(path).objects.segmentations[0] == segmentation


def test_area_is_that_of_the_mask_if_known_else_of_the_box(files):
    assert read_annotations(edited(files, "annotations", 0, area=12.5)).objects.area[0] == 12.5
    path = edited(files, "annotations", 0, area=..., bbox=[1, 1, 4, 6])
    assert read_annotations(path).objects.area[0] == 24


def test_file_without_objects_is_valid(files):
    annotations = read_annotations_of(files, annotations=[])
    assert annotations.objects.boxes_xyxy.shape == (0, 4)
    assert annotations.offsets == (0, 0, 0, 0, 0)


def read_annotations_of(files, **sections):
    files.write(files.read() | sections)
    return read_annotations(files.annotations)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"images": []}, "images must hold at least one image, got none"),
        ({"categories": []}, "categories must hold at least one category, got none"),
        ({"annotations": None}, "annotations must be a list, got nothing"),
        ({"categories": {"1": "cat"}}, "categories must be a list, got a dict"),
        ({"images": [7]}, r"images\[0\] must be an object, got 7"),
        ({"categories": [{"name": "cat"}]}, r"categories\[0\].id must be an integer, got None"),
        ({"categories": [{"id": 3}, {"id": 3}]}, r"distinct, got \[3\] more than once"),
    ],
)
def test_invalid_sections_are_rejected(files, sections, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_annotations_of(files, **sections)
    assert str(files.annotations) in str(caught.value)


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("images", {"id": "4"}, r"images\[3\] \(id '4'\): id must be an integer, got '4'"),
        ("images", {"id": 1}, r"images\[3\] \(id 1\): id must be unique, got the id of 0001.png"),
        ("images", {"file_name": ...}, "file_name must be a path below the image folder, got None"),
        ("images", {"width": 0}, r"images\[3\] \(id 4\): width must be at least 1, got 0"),
        ("images", {"height": 9.5}, "height must be an integer, got 9.5"),
        ("annotations", {"id": 1}, r"annotations\[3\] \(id 1, image 0004.png\): id must be unique"),
        (
            "annotations",
            {"id": ...},
            r"annotations\[3\] \(id None, image 0004.png\): id must be an integer",
        ),
        (
            "annotations",
            {"image_id": 99},
            "image unknown.: image_id must be the id of an image, got 99",
        ),
        (
            "annotations",
            {"category_id": 5},
            r"annotations\[3\] \(id 4, image 0004.png\): category_id must be one of "
            "{3: red thing, 7: blue thing}, got 5",
        ),
        ("annotations", {"bbox": [1, 2, 3]}, r"image 0004.png\): bbox must be four finite numbers"),
        ("annotations", {"bbox": [1, 2, float("nan"), 3]}, "four finite numbers .* got .*nan"),
        ("annotations", {"bbox": [1, 2, 10**400, 3]}, "four finite numbers"),
        ("annotations", {"area": float("inf")}, "area must be a finite number, got inf"),
        ("annotations", {"iscrowd": 2}, "iscrowd must be 0 or 1, got 2"),
    ],
)
def test_error_names_the_invalid_entry_and_its_file(files, section, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_annotations(edited(files, section, 3, **changes))
    assert str(files.annotations) in str(caught.value)


@pytest.mark.parametrize("content", [b'{"images": [', b"\xff\xfe\x00", b""])
def test_error_names_the_broken_file(files, content):
    files.annotations.write_bytes(content)
    with pytest.raises(ValueError, match=r"annotations.json: "):
        read_annotations(files.annotations)


def test_results_file_is_rejected_as_annotations(files):
    files.annotations.write_text(json.dumps([]))
    with pytest.raises(ValueError, match="the file must hold one JSON object, got a list"):
        read_annotations(files.annotations)


def test_error_names_the_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must be a COCO JSON file, got .*none.json"):
        read_annotations(tmp_path / "none.json")


@pytest.mark.parametrize(
    "content", [b"", b'{"images": [', '{"name": "B\u00e4r"}'.encode("latin-1")]
)
def test_error_of_a_truncated_file_asks_whether_it_is_whole(tmp_path, content):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"a\.json: must be JSON in UTF-8, got .*; is the file whole"
    ):
        read_annotations(file)
