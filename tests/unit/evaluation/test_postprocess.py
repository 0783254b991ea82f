import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from deformable_detr.evaluation.postprocess import count_above, select_detections, to_detections
from deformable_detr.finite import NonFinitePredictionsError, require_finite_predictions
from deformable_detr.labels import LabelSpace
from deformable_detr.structures import Predictions


def test_detections_agree_with_golden_values_of_the_official_code() -> None:
    logits = torch.linspace(-3, 3, 300 * 91).view(1, 300, 91)
    predictions = Predictions(logits, torch.full((1, 300, 4), 0.5))

    (found,) = select_detections(predictions, [(480, 640)])

    assert len(found) == 100
    torch.testing.assert_close(
        found.scores[:2], torch.tensor([0.9525741, 0.9525642]), atol=1e-6, rtol=0
    )
    assert found.labels[:3].tolist() == [90, 89, 88]
    assert found.boxes_xyxy[0].tolist() == [160, 120, 480, 360]


def test_boxes_are_scaled_by_image_size_and_each_pair_has_the_box_of_its_query() -> None:
    logits = torch.tensor([[[0.0, 4.0], [2.0, -9.0]], [[-9.0, -9.0], [1.0, 3.0]]])
    boxes = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 0.2]]).expand(2, 2, 4)

    first, second = select_detections(
        Predictions(logits, boxes), [(100, 200), (10, 20)], max_detections=2
    )

    assert first.labels.tolist() == [1, 0]
    torch.testing.assert_close(
        first.boxes_xyxy, torch.tensor([[0.0, 0, 200, 100], [0, 40, 100, 60]])
    )
    assert second.labels.tolist() == [1, 0]
    torch.testing.assert_close(second.boxes_xyxy, torch.tensor([[0.0, 4, 10, 6], [0, 4, 10, 6]]))


def test_query_may_have_several_classes_and_boxes_are_not_clipped() -> None:
    predictions = Predictions(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[0.0, 0.0, 1, 1]]]))

    (found,) = select_detections(predictions, [(10, 10)])

    assert found.labels.tolist() == [1, 0]
    assert found.boxes_xyxy.tolist() == [[-5, -5, 5, 5]] * 2


@pytest.mark.parametrize(
    ("queries", "classes", "limit", "expected"),
    [(3, 2, 100, 6), (50, 3, 100, 100), (50, 3, 120, 120), (7, 1, 100, 7), (50, 3, None, 150)],
)
def test_number_of_detections_is_limited_by_the_limit_and_by_the_number_of_pairs(
    queries: int, classes: int, limit: int | None, expected: int
) -> None:
    predictions = Predictions(torch.zeros(1, queries, classes), torch.zeros(1, queries, 4))

    (found,) = select_detections(predictions, [(4, 4)], max_detections=limit)

    assert len(found) == expected


@pytest.mark.parametrize(("labels", "found"), [(None, [0, 1, 2, 2, 1, 0]), ([2, 1], [1, 2, 2, 1])])
def test_given_labels_alone_are_selected_and_keep_their_numbers(
    labels: list[int] | None, found: list[int]
) -> None:
    logits = torch.tensor([[[5.0, 4.0, 3.0], [0.0, 1.0, 2.0]]])
    predictions = Predictions(logits, torch.full((1, 2, 4), 0.5))
    space = LabelSpace((1, 5, 9), ("a", "b", "c"))

    (all_found,) = to_detections(predictions, [(8, 8)], label_space=space, labels=labels)
    (high,) = to_detections(
        predictions, [(8, 8)], label_space=space, labels=labels, threshold=0.5, max_detections=2
    )

    assert all_found.labels.tolist() == found
    assert high.labels.tolist() == found[:2]
    assert count_above(predictions, labels=labels or [0, 1, 2], threshold=0.8) == [
        4 if labels is None else 3
    ]
    assert count_above(predictions, labels=[0], threshold=0.5) == [2]  # one has just this score


def test_labels_without_a_category_are_selected_and_then_dropped() -> None:
    logits = torch.tensor([[[5.0, 4.0, 3.0], [0.0, 1.0, 2.0]]])
    space = LabelSpace((1, 5, 9), ("a", "b", "c"), unused=frozenset({2}))

    (found,) = to_detections(
        Predictions(logits, torch.full((1, 2, 4), 0.5)),
        [(8, 8)],
        label_space=space,
        max_detections=4,
    )

    assert found.labels.tolist() == [0, 1]


@pytest.mark.parametrize("labels", [None, [0]])
def test_predictions_that_are_not_finite_are_named_as_described(labels: list[int] | None) -> None:
    predictions = Predictions(torch.full((2, 1, 1), math.nan), torch.full((2, 1, 4), 0.5))
    with pytest.raises(NonFinitePredictionsError, match="for image number 0;"):
        to_detections(
            predictions,
            [(8, 8)] * 2,
            label_space=LabelSpace((1,), ("a",)),
            labels=labels,
            describe="image number {}".format,
        )


def test_detections_below_the_threshold_are_left_out() -> None:
    logits = torch.tensor([[[2.0], [0.0], [-2.0]]])
    predictions = Predictions(logits, torch.full((1, 3, 4), 0.5))
    space = LabelSpace((1,), ("a",))
    counts = {
        threshold: len(
            to_detections(predictions, [(8, 8)], label_space=space, threshold=threshold)[0]
        )
        for threshold in (0.0, 0.3, 0.6, 0.9)
    }
    assert counts == {0.0: 3, 0.3: 2, 0.6: 1, 0.9: 0}


def test_boxes_are_clipped_to_the_image_of_each() -> None:
    boxes = torch.tensor([0.0, 0.0, 1.0, 4.0]).expand(2, 1, 4)
    sizes, space = [(10, 20), (30, 40)], LabelSpace((0,), ("a",))

    found = to_detections(Predictions(torch.zeros(2, 1, 1), boxes), sizes, label_space=space)

    assert [one.boxes_xyxy.tolist() for one in found] == [[[0, 0, 10, 10]], [[0, 0, 20, 30]]]


def test_half_precision_logits_are_scored_in_float32() -> None:
    logits = torch.tensor([[[7.0], [7.5]]], dtype=torch.bfloat16)

    (found,) = select_detections(Predictions(logits, torch.zeros(1, 2, 4)), [(4, 4)])

    assert found.scores.dtype == torch.float32
    assert found.scores[0] > found.scores[1]


def test_sizes_must_be_one_per_image() -> None:
    predictions = Predictions(torch.zeros(2, 3, 1), torch.zeros(2, 3, 4))

    with pytest.raises(ValueError, match="one per image, got 1 for 2 images"):
        select_detections(predictions, [(4, 4)])


def test_number_of_detections_must_be_positive() -> None:
    predictions = Predictions(torch.zeros(1, 3, 1), torch.zeros(1, 3, 4))

    with pytest.raises(ValueError, match="max_detections must be at least 1, got 0"):
        select_detections(predictions, [(4, 4)], max_detections=0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["boxes", "logits"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_predictions_that_are_not_finite_are_refused(
    dtype: torch.dtype, kind: str, value: float
) -> None:
    """Check a query that is not selected: minus infinity is a score of 0."""
    values = {"logits": torch.zeros(3, 300, 91), "boxes": torch.full((3, 300, 4), 0.5)}
    values[kind][1, 100:157, 2] = value
    predictions = Predictions(**{name: part.to(dtype) for name, part in values.items()})
    words = f"got 57 of 300 queries with {kind} that are not finite for photo B; .* in float32"
    with pytest.raises(NonFinitePredictionsError, match=words) as caught:
        select_detections(
            predictions,
            [(4, 4)] * 3,
            max_detections=10,
            describe=lambda place: f"photo {'ABC'[place]}",
        )
    assert caught.value.position == 1
    with pytest.raises(NonFinitePredictionsError, match="for image 1 of the batch; "):
        select_detections(predictions, [(4, 4)] * 3)


class _Waits(TorchDispatchMode):
    """Count the reads of a value on the host, for which a GPU must be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("shape", [(1, 1), (4, 300)])
def test_the_check_waits_for_the_device_once_per_batch(shape: tuple[int, int]) -> None:
    with _Waits() as waits:
        require_finite_predictions(torch.zeros(*shape, 3), torch.zeros(*shape, 4))
    assert waits.count == 1
