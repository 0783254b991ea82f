import numpy as np
import pytest
import torch
from PIL import Image

from deformable_detr.boxes import area_xyxy
from deformable_detr.builders.data import build_eval_transform, build_train_transform
from deformable_detr.config.data import CocoAugmentationConfig, DataConfig
from deformable_detr.data.transforms import (
    ColorJitter,
    Compose,
    OneOf,
    RandomHorizontalFlip,
    RandomResize,
    RandomRotate90,
    RandomSizeCrop,
    RandomSoften,
    RandomZoomCrop,
    Resize,
    coco_train_transform,
    to_model_input,
)
from deformable_detr.structures import Sample

EVERY_TRANSFORM = [
    Compose((RandomHorizontalFlip(), RandomRotate90())),
    OneOf((RandomHorizontalFlip(1.0), RandomRotate90())),
    RandomHorizontalFlip(),
    RandomRotate90(),
    RandomResize((32, 48, 64)),
    RandomSizeCrop(20, 50),
    RandomZoomCrop(48, (0.5, 1.5)),
    RandomZoomCrop(48, (0.5, 1.5), around_objects=True),
    RandomSoften(0.5),
    ColorJitter(0.3, 0.3, 0.3),
    coco_train_transform(
        short_sides=(48, 64), max_size=90, pre_crop_short_sides=(50, 60), crop_range=(30, 50)
    ),
]


def make_sample(size=(96, 128)):
    random = np.random.default_rng(0)
    return Sample(
        image=Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)),
        boxes_xyxy=torch.tensor([[10.0, 20, 50, 60], [60, 30, 100, 90], [5, 5, 12, 30]]),
        labels=torch.tensor([0, 1, 2]),
        area=torch.tensor([1600.0, 2400, 175]),
        image_id=7,
        original_size=size,
    )


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def results(transform, sample, count=200):
    return [transform(sample, generator(seed)) for seed in range(count)]


def is_same(first, second):
    return (
        np.array_equal(np.asarray(first.image), np.asarray(second.image))
        and first.boxes_xyxy.equal(second.boxes_xyxy)
        and first.labels.equal(second.labels)
        and first.area.equal(second.area)
    )


@pytest.mark.parametrize("transform", EVERY_TRANSFORM)
def test_transform_draws_from_its_generator_only(transform):
    torch.manual_seed(0)
    first = transform(make_sample(), generator(5))
    torch.manual_seed(1)
    assert is_same(first, transform(make_sample(), generator(5)))
    assert any(not is_same(first, other) for other in results(transform, make_sample(), 30))


@pytest.mark.parametrize("transform", EVERY_TRANSFORM)
def test_transform_does_not_modify_its_sample(transform):
    sample = make_sample()
    results(transform, sample, 10)
    assert is_same(sample, make_sample())


@pytest.mark.parametrize("transform", EVERY_TRANSFORM)
def test_boxes_stay_inside_the_image(transform):
    for changed in results(transform, make_sample(), 50):
        height, width = changed.size
        limits = torch.tensor([width, height, width, height]) + 1e-4
        assert (changed.boxes_xyxy >= 0).all()
        assert (changed.boxes_xyxy <= limits).all()
        assert (area_xyxy(changed.boxes_xyxy) > 0).all()


def test_flips_have_the_given_probability():
    sample = make_sample()
    flipped = [not is_same(sample, result) for result in results(RandomHorizontalFlip(0.3), sample)]
    assert 0.2 < sum(flipped) / len(flipped) < 0.4
    assert RandomHorizontalFlip().probability == 0.5  # official code


def test_all_four_rotations_occur():
    seen = {result.image.tobytes() for result in results(RandomRotate90(), make_sample(), 40)}
    assert len(seen) == 4


def test_every_choice_occurs():
    choices = OneOf((RandomResize((32,)), RandomResize((48,)), RandomResize((64,))))
    assert {min(result.size) for result in results(choices, make_sample(), 40)} == {32, 48, 64}


def test_size_crop_draws_each_side_from_its_range():
    sizes = [result.size for result in results(RandomSizeCrop(20, 22), make_sample())]
    assert {height for height, _ in sizes} == {width for _, width in sizes} == {20, 21, 22}
    assert any(height != width for height, width in sizes)


def test_size_crop_is_capped_at_the_image_size():
    sizes = {result.size for result in results(RandomSizeCrop(100, 200), make_sample(), 50)}
    assert {height for height, _ in sizes} == {96}
    assert {width for _, width in sizes} <= set(range(100, 129))


def test_zoom_crop_has_one_size_and_scales_objects():
    whole = RandomZoomCrop(48, (0.5, 2.0))
    assert {result.size for result in results(whole, make_sample(), 20)} == {(48, 48)}
    zoomed_in = results(RandomZoomCrop(48, (0.5, 0.5)), make_sample(), 50)
    sides = [result.boxes_xyxy[:, 2:] - result.boxes_xyxy[:, :2] for result in zoomed_in]
    assert torch.cat(sides).max() == 48  # 24 pixels of the image fill the crop


def test_zoom_crop_is_capped_at_the_image_size():
    result = RandomZoomCrop(32, (100.0, 100.0))(make_sample(), generator())
    assert result.size == (32, 32)
    assert area_xyxy(result.boxes_xyxy)[0] == pytest.approx(1600 / 9)  # 96 pixels became 32


def test_zoom_crop_reaches_every_corner():
    corners = torch.tensor([[0.0, 0, 1, 1], [95, 0, 96, 1], [95, 95, 96, 96]])
    sample = Sample(**{**vars(make_sample((96, 96))), "boxes_xyxy": corners})
    seen = [tuple(result.labels.tolist()) for result in results(RandomZoomCrop(94), sample)]
    assert set(seen) == {(), (0,), (1,), (2,)}


def test_zoom_crop_drops_hardly_visible_boxes():
    strict = RandomZoomCrop(48, (0.5, 0.5), min_visibility=1.0)
    for result in results(strict, make_sample(), 50):
        assert 0 not in result.labels  # 40 x 40 does not fit into 24 x 24


def test_zoom_crop_around_objects_contains_one_and_reaches_all():
    crop = RandomZoomCrop(20, around_objects=True)
    seen = [set(result.labels.tolist()) for result in results(crop, make_sample((300, 400)), 60)]
    assert all(seen)
    assert set.union(*seen) == {0, 1, 2}
    anywhere = results(RandomZoomCrop(20), make_sample((300, 400)), 60)
    assert any(len(result.labels) == 0 for result in anywhere)


def test_zoom_crop_around_objects_goes_anywhere_without_objects():
    sample = make_sample()
    empty = Sample(
        image=sample.image,
        boxes_xyxy=torch.zeros(0, 4),
        labels=torch.zeros(0, dtype=torch.int64),
        area=torch.zeros(0),
        image_id=7,
        original_size=sample.original_size,
    )
    crops = results(RandomZoomCrop(20, around_objects=True), empty, 20)
    assert len({result.image.tobytes() for result in crops}) > 10


def sharpness(sample):
    """Return the mean squared difference of neighboring pixels."""
    pixels = np.asarray(sample.image, dtype=float)
    return np.square(np.diff(pixels, axis=1)).mean()


def test_soften_removes_detail_and_nothing_else():
    sample = make_sample()
    always = results(RandomSoften(1.0), sample, 20)
    assert all(sharpness(result) < 0.7 * sharpness(sample) for result in always)
    assert all(result.size == sample.size for result in always)
    assert all(result.boxes_xyxy.equal(sample.boxes_xyxy) for result in always)
    coarse, fine = (RandomSoften(1.0, (s, s))(sample, generator()) for s in (0.3, 0.9))
    assert sharpness(coarse) < sharpness(fine)


def test_soften_has_the_given_probability():
    sample = make_sample()
    changed = [not is_same(result, sample) for result in results(RandomSoften(0.3), sample)]
    assert 0.2 < np.mean(changed) < 0.4


def test_color_jitter_changes_colors_only():
    sample = make_sample()
    result = ColorJitter(0.5, 0.5, 0.5)(sample, generator())
    assert result.image.tobytes() != sample.image.tobytes()
    assert result.boxes_xyxy.equal(sample.boxes_xyxy)
    for strength in ("brightness", "contrast", "saturation"):
        one = ColorJitter(**{strength: 0.5})
        assert not is_same(one(sample, generator()), sample)


def test_color_jitter_of_strength_zero_changes_nothing():
    assert is_same(ColorJitter()(make_sample(), generator()), make_sample())


def test_only_the_last_resize_limits_the_longer_side():
    transform = coco_train_transform(
        short_sides=(48,), max_size=90, pre_crop_short_sides=(50,), crop_range=(30, 50)
    )
    whole, cropped = transform.transforms[1].choices
    before, _, last = cropped.transforms
    assert (whole.max_size, before.max_size, last.max_size) == (90, None, 90)


def test_training_pipeline_gives_the_official_sizes():
    seen = results(build_train_transform(CocoAugmentationConfig()), make_sample((480, 640)), 60)
    shorts = {min(result.size) for result in seen}
    assert shorts <= set(range(480, 801, 32))
    assert len(shorts) > 5
    assert any(
        max(result.size) / min(result.size) != pytest.approx(4 / 3, abs=0.01) for result in seen
    )
    assert max(max(result.size) for result in seen) <= 1333


def test_evaluation_pipeline_only_resizes():
    result = build_eval_transform(DataConfig())(make_sample((480, 640)), generator())
    assert result.size == (800, 1066)
    assert result.labels.tolist() == [0, 1, 2]


def test_model_input_is_normalized_by_channel():
    sample = make_sample()
    sample.image.paste((51, 102, 255), (0, 0, 128, 96))
    image, _ = to_model_input(sample)
    assert image.shape == (3, 96, 128)
    assert image.dtype == torch.float32
    expected = torch.tensor([(0.2 - 0.485) / 0.229, (0.4 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    torch.testing.assert_close(image[:, 0, 0], expected)


def test_model_input_boxes_are_relative_to_the_processed_image():
    sample = RandomResize((48,))(make_sample(), generator())  # half the size
    _, target = to_model_input(sample)
    torch.testing.assert_close(
        target.boxes[0], torch.tensor([30 / 128, 40 / 96, 40 / 128, 40 / 96])
    )
    assert target.labels.tolist() == [0, 1, 2]
    assert (target.image_id, target.original_size) == (7, (96, 128))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RandomHorizontalFlip(1.5), "probability must be in 0..1, got 1.5"),
        (lambda: OneOf(()), "choices must hold at least one transform, got none"),
        (lambda: RandomResize(()), "short_sides must be positive and at least one, got ()"),
        (lambda: RandomResize((0, 9)), "short_sides must be positive and at least one, got (0, 9)"),
        (
            lambda: RandomSizeCrop(9, 8),
            "min_size must be positive and at most max_size, got 9 and 8",
        ),
        (lambda: RandomSoften(1.2), "probability must be in 0..1, got 1.2"),
        (lambda: RandomSoften(0.5, (0.5, 1.5)), "scale must be two numbers in (0, 1]"),
        (lambda: RandomZoomCrop(0), "size must be positive, got 0"),
        (lambda: Resize(0, 8), "short_side must be positive, got 0"),
        (
            lambda: RandomZoomCrop(8, (2, 1)),
            "scale must be two positive numbers, the smaller first",
        ),
        (lambda: RandomZoomCrop(8, min_visibility=2), "min_visibility must be in 0..1, got 2"),
        (lambda: ColorJitter(contrast=-1), "contrast must be in 0..1, got -1"),
    ],
)
def test_invalid_arguments_are_rejected(build, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - compared in full below
        build()
    assert message in str(caught.value)


def test_the_smallest_sizes_are_accepted():
    sample = make_sample()
    assert Resize(1, 8)(sample, generator()).size == (1, 1)
    assert RandomSizeCrop(1, 1)(sample, generator()).size == (1, 1)
    assert RandomZoomCrop(1)(sample, generator()).size == (1, 1)


def test_about_half_of_the_images_are_softened_by_default():
    sample = make_sample()
    changed = [not is_same(result, sample) for result in results(RandomSoften(), sample)]
    assert 0.35 < sum(changed) / len(changed) < 0.65
