import pytest
import torch
from helpers.coco_files import write_coco_set

from deformable_detr.data.annotations import read_annotations
from deformable_detr.labels import LabelSpace


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
    found = annotations.objects.boxes_xyxy[begin:end, :2].tolist()
    assert found == [entry["bbox"][:2] for entry in reversed(of_image_3)]


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


def test_area_is_that_of_the_mask_if_known_else_of_the_box(files):
    assert read_annotations(edited(files, "annotations", 0, area=12.5)).objects.area[0] == 12.5
    path = edited(files, "annotations", 0, area=..., bbox=[1, 1, 4, 6])
    assert read_annotations(path).objects.area[0] == 24


def test_file_without_objects_is_valid(files):
    annotations = read_annotations_of(files, annotations=[])
    assert annotations.objects.boxes_xyxy.shape == (0, 4)
    assert annotations.offsets.tolist() == [0, 0, 0, 0, 0]


def read_annotations_of(files, **sections):
    files.write(files.read() | sections)
    return read_annotations(files.annotations)


def test_categories_of_another_label_space_are_refused(files):
    other = LabelSpace((3, 8), ("red thing", "blue thing"))
    with pytest.raises(ValueError, match=r"annotations.json: the file must have the categories"):
        read_annotations(files.annotations, label_space=other)


def test_boxes_without_extent_in_float32_are_dropped(files):
    annotations = read_annotations(edited(files, "annotations", 0, bbox=[100, 10, 1e-6, 5]))
    assert annotations.num_dropped["degenerate"] == 1


@pytest.mark.parametrize(("empty_boxes", "scored"), [("missed", 0), ("ignored", 1)])
def test_ignored_empty_boxes_are_not_scored(files, empty_boxes, scored):
    total = len(files.read()["annotations"])
    path = edited(files, "annotations", 0, bbox=[128, 10, 5, 5])
    annotations = read_annotations(path, empty_boxes=empty_boxes)
    assert len(annotations.ground_truth.images) == total - scored
    assert annotations.num_dropped["outside"] == 1


def test_images_are_in_the_order_of_their_file_names_if_wanted(files):
    content = files.read()
    ids = [image["id"] for image in content["images"]]
    for image, name in zip(content["images"], reversed("abcdefgh"[: len(ids)]), strict=True):
        image["file_name"] = f"{name}.png"
    files.write(content)
    by_id, by_name = (
        read_annotations(files.annotations, image_order=order) for order in ("id", "file_name")
    )
    assert by_id.images.ids.tolist() == sorted(ids)
    assert by_name.images.ids.tolist() == ids[::-1]
    assert [one.file_name for one in by_name.images] == sorted(by_id.images.file_names)
    for image_id in ids:
        places = [one.images.index_of(image_id) for one in (by_id, by_name)]
        boxes = [
            one.objects.boxes_xyxy[slice(*one.offsets[place : place + 2])].tolist()
            for one, place in zip((by_id, by_name), places, strict=True)
        ]
        assert boxes[0] == boxes[1]
        assert bool(boxes[0]) == (image_id != 2)
    with pytest.raises(KeyError):
        by_name.images.index_of(max(ids) + 1)
