import random

import numpy as np
import pytest
import torch
from PIL import Image

from deformable_detr.data.geometry import (
    crop,
    flip_horizontally,
    resize,
    resized_size,
    rotate_quarter,
)
from deformable_detr.structures import Sample


def sample_with(boxes, size=(80, 120)):
    boxes_xyxy = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    count = len(boxes_xyxy)
    return Sample(
        image=Image.new("RGB", (size[1], size[0])),
        boxes_xyxy=boxes_xyxy,
        labels=torch.arange(count),
        area=torch.full((count,), 7.0),
        image_id=1,
        original_size=size,
    )


def sample_of_one_object(box=(20, 10, 50, 30), size=(80, 120)):
    """Return a white box on black, so that pixels can be compared with coordinates."""
    sample = sample_with([box], size)
    left, top, right, bottom = box
    sample.image.paste((255, 255, 255), (left, top, right, bottom))
    return sample


def assert_box_is_on_object(sample):
    rows, columns = np.asarray(sample.image)[:, :, 0].nonzero()
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert sample.boxes_xyxy[0].tolist() == found


@pytest.mark.parametrize(
    ("width_height", "short_side", "expected"),
    [
        ((640, 480), 800, (1066, 800)),
        ((480, 640), 800, (800, 1066)),
        ((640, 427), 800, (1199, 800)),
        ((2501, 1500), 800, (1332, 799)),  # 1333.9 pixels are more than 1333
        ((640, 426), 800, (1201, 800)),
        ((500, 375), 800, (1066, 800)),
        ((640, 320), 800, (1332, 666)),
        ((1200, 300), 800, (1332, 333)),
        ((1200, 300), 480, (1332, 333)),
        ((333, 500), 480, (480, 720)),
    ],
)
def test_resized_size_agrees_with_the_official_code(width_height, short_side, expected):
    width, height = width_height
    assert resized_size((height, width), short_side, 1333) == expected[::-1]


def test_resized_size_without_limit_and_at_the_requested_size():
    assert resized_size((300, 1200), 480, None) == (480, 1920)
    assert resized_size((480, 1000), 480, None) == (480, 1000)
    assert resized_size((64, 64), 32, 100) == (32, 32)
    assert resized_size((1, 5000), 800, 1333) == (1, 1333)


def official_size(size, short_side, max_size):
    short, long = min(size), max(size)
    if max_size is not None and long / short * short_side > max_size:
        short_side = round(max_size * short / long)
    if short == short_side:
        return size
    sides = (short_side, int(short_side * long / short))
    return sides if size[0] <= size[1] else sides[::-1]


def test_sizes_of_strips_are_bounded_and_all_others_official():
    """Of strips the official rule exceeds max_size by more, and has no limit before a crop."""
    drawn = random.Random(7)
    num_strips = 0
    for _ in range(3000):
        size = tuple(round(2 ** drawn.uniform(0, 16)) for _ in range(2))
        short_side, max_size = drawn.choice([(480, 800), (800, 1333), (600, None), (32, 64)])
        result = resized_size(size, short_side, max_size)
        assert min(result) >= 1
        assert result[0] * result[1] <= 2**25
        if max(size) > 20 * min(size):
            num_strips += 1
            assert max_size is None or max(result) <= max_size, (size, result)
        else:
            assert result == official_size(size, short_side, max_size), size
    assert num_strips > 100
    assert resized_size((10, 200), 480, 1333) == (67, 1340)  # as the official code has it
    assert resized_size((1, 75), 800, 1333) == (18, 1333)
    assert resized_size((4, 2000), 600, None) == (259, 129500)


def test_resize_scales_each_axis_by_its_own_ratio():
    resized = resize(sample_with([[12, 8, 60, 40]]), (40, 240))
    assert resized.size == (40, 240)
    assert resized.boxes_xyxy.tolist() == [[24, 4, 120, 20]]
    assert resized.area.tolist() == [7.0]  # twice as wide, half as high
    assert resized.original_size == (80, 120)


def test_resize_interpolates_as_the_official_code():
    sample = sample_of_one_object()
    wanted = sample.image.resize((40, 20), Image.Resampling.BILINEAR)
    assert np.array_equal(np.asarray(resize(sample, (20, 40)).image), np.asarray(wanted))


def test_resize_scales_the_area_of_the_mask():
    resized = resize(sample_with([(20, 10, 50, 30)]), (160, 60))  # twice as high, half as wide
    assert resized.area.tolist() == [7.0]
    assert resize(sample_with([(20, 10, 50, 30)]), (160, 240)).area.tolist() == [28.0]


def test_resize_averages_over_the_footprint():
    image = Image.fromarray(np.tile(np.uint8([[0, 255]]), (64, 32))).convert("RGB")
    sample = sample_with([], size=(64, 64))
    sample = resize(Sample(**{**vars(sample), "image": image}), (8, 8))
    assert abs(np.asarray(sample.image).astype(int) - 127).max() < 12  # no aliasing


def test_crop_boxes_agree_with_the_official_code():
    boxes = [[0, 0, 20, 20], [10, 10, 60, 50], [70, 60, 90, 75]]
    cropped = crop(sample_with(boxes), top=5, left=15, size=(40, 50))
    assert cropped.size == (40, 50)
    assert cropped.boxes_xyxy.tolist() == [[0, 0, 5, 15], [0, 5, 45, 40]]
    assert cropped.area.tolist() == [75, 1575]
    assert cropped.labels.tolist() == [0, 1]


def test_crop_drops_boxes_below_min_visibility():
    boxes = [[0, 0, 20, 20], [10, 10, 60, 50]]  # 75 of 400 and 1575 of 2000 stay
    kept = crop(sample_with(boxes), top=5, left=15, size=(40, 50), min_visibility=0.4)
    assert kept.labels.tolist() == [1]


def test_crop_treats_pixels_and_boxes_alike():
    assert_box_is_on_object(crop(sample_of_one_object(), top=5, left=15, size=(60, 80)))


@pytest.mark.parametrize("turn", [flip_horizontally, rotate_quarter])
def test_boxes_follow_the_pixels(turn):
    turned = turn(sample_of_one_object())
    assert_box_is_on_object(turned)
    assert turned.area.tolist() == [7.0]


@pytest.mark.parametrize(("turn", "times"), [(flip_horizontally, 2), (rotate_quarter, 4)])
def test_four_quarter_turns_change_nothing(turn, times):
    before = after = sample_of_one_object()
    for _ in range(times):
        after = turn(after)
    assert after.boxes_xyxy.equal(before.boxes_xyxy)
    assert np.array_equal(np.asarray(after.image), np.asarray(before.image))


def test_quarter_turn_is_counter_clockwise():
    turned = rotate_quarter(sample_with([[100, 0, 120, 10]]))  # the upper right corner
    assert turned.size == (120, 80)
    assert turned.boxes_xyxy.tolist() == [[0, 0, 10, 20]]  # the upper left corner


@pytest.mark.parametrize(
    "change",
    [
        flip_horizontally,
        rotate_quarter,
        lambda sample: resize(sample, (30, 30)),
        lambda sample: crop(sample, top=0, left=0, size=(10, 10)),
    ],
)
def test_samples_without_objects_are_supported(change):
    changed = change(sample_with([]))
    assert changed.boxes_xyxy.shape == (0, 4)
    assert changed.labels.shape == changed.area.shape == (0,)
