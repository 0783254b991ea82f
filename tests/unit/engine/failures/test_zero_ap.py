"""Faults planted between detections and annotations: each is found and named."""

from collections.abc import Callable

import numpy as np
import pytest

from deformable_detr.engine.failures.zero_ap import explain_zero_ap
from deformable_detr.evaluation.detection_table import DetectionTable

SIZE = (400, 300)  # width, height
NAMES = {3: "cat", 7: "dog", 9: "fox"}
Box = tuple[float, float, float, float]


def made(
    *,
    annotated: Callable[[Box], Box] = lambda box: box,
    detected: Callable[[Box], Box] = lambda box: box,
    named: Callable[[int], int] = lambda category: category,
    score: float = 0.9,
) -> str:
    """Explain the detections of 20 images, correct except for the changes by the arguments."""
    random = np.random.default_rng(0)
    annotations, results = [], []
    for image_id in range(1, 21):
        for _ in range(int(random.integers(1, 4))):
            x, y = random.uniform(20, 150, 2)
            width, height = random.uniform(40, 110, 2)
            box = (float(x), float(y), float(width), float(height))
            category = int(random.choice(list(NAMES)))
            known = {"image_id": image_id, "category_id": category, "iscrowd": 0}
            annotations.append({"bbox": list(annotated(box)), **known})
            one = {"image_id": image_id, "category_id": named(category), "score": score}
            results.append({**one, "bbox": list(detected(box))})
    ids = list(range(1, 21))
    ground_truth = {
        "images": [{"id": n, "width": SIZE[0], "height": SIZE[1]} for n in ids],
        "categories": [{"id": n, "name": name} for n, name in NAMES.items()],
        "annotations": annotations,
    }
    return explain_zero_ap(ground_truth, DetectionTable.from_results(results, seen=ids))


def corners(box: Box) -> Box:
    return (box[0], box[1], box[0] + box[2], box[1] + box[3])


def centers(box: Box) -> Box:
    return (box[0] + box[2] / 2, box[1] + box[3] / 2, box[2], box[3])


def fractions(box: Box) -> Box:
    return (box[0] / SIZE[0], box[1] / SIZE[1], box[2] / SIZE[0], box[3] / SIZE[1])


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (corners, "bbox holds corners (x1, y1, x2, y2)"),
        (centers, "bbox holds center x, y, width, height"),
        (fractions, "bbox holds fractions of the image"),
    ],
)
def test_another_box_format_is_named_with_its_data_set(
    fault: Callable[[Box], Box], words: str
) -> None:
    # First a detector trained on the wrong file, then one evaluated on it.
    said = made(detected=fault)
    assert said.startswith("box format: 100% of ")
    assert f"if the training set's {words}" in said
    assert f"if the validation set's {words}" in made(annotated=fault)


def test_swapped_axes_of_boxes_are_named() -> None:
    assert "bbox holds y, x, height, width" in made(detected=lambda b: (b[1], b[0], b[3], b[2]))


def test_shifted_labels_are_named_with_their_classes() -> None:
    said = made(named={3: 7, 7: 9, 9: 3}.__getitem__)
    assert said.startswith("labels: 100% of ")
    assert "but 0% with the right class" in said
    for true, detected in (("cat (3)", "dog (7)"), ("dog (7)", "fox (9)"), ("fox (9)", "cat (3)")):
        assert f"{true} is detected as {detected}" in said


def test_boxes_that_are_far_too_small_are_attributed_to_the_format() -> None:
    said = made(detected=lambda box: (390.0, 290.0, 2.0, 1.0))
    assert said.startswith("box format: the median size of the detections is 1.41 px, that of")


def test_an_early_run_is_advised_to_train_longer() -> None:
    said = made(detected=lambda box: (280.0, 200.0, 80.0, 60.0), score=0.03)
    assert said.startswith("probably not enough training yet: 0% of the objects")
    assert "best detection is 0.00, the highest score 0.03" in said


def test_correct_detections_have_no_fault() -> None:
    said = made()
    assert said.startswith("probably not enough training yet")
    assert "100% of the objects are found" in said


def test_missing_detections_and_missing_objects_are_reported() -> None:
    ground_truth = {"images": [{"id": 1}], "categories": [{"id": 3, "name": "cat"}]}
    empty = DetectionTable.from_results([], seen=[1])
    assert "no annotated objects" in explain_zero_ap({**ground_truth, "annotations": []}, empty)
    thing = {"image_id": 1, "category_id": 3, "bbox": [1, 2, 30, 40]}
    said = explain_zero_ap({**ground_truth, "annotations": [thing]}, empty)
    assert said == "there is no detection in any image with objects"
