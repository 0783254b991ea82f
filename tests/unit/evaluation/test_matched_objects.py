"""Matches are those of COCO, and counts derived from them agree with counts by hand."""

from typing import Any

import numpy as np
import pytest
from helpers.shared_data import shared_data

from deformable_detr.evaluation.coco_eval import run_coco, summarize
from deformable_detr.evaluation.detection_table import DetectionTable
from deformable_detr.evaluation.error_analysis import (
    Kind,
    confusion_matrix,
    false_negatives,
    false_positives,
)
from deformable_detr.evaluation.matched_objects import NONE, MatchedObjects
from deformable_detr.evaluation.precision_recall import PrecisionRecall, ScoreCurve
from deformable_detr.evaluation.results_files import read_results
from deformable_detr.ground_truth import read_ground_truth

CATEGORIES = [{"id": 2, "name": "cat"}, {"id": 5, "name": "dog"}]
CAT, DOG = 2, 5
Box = tuple[float, float, float, float]


def annotation(image_id: int, category_id: int, box: Box, *, crowd: int = 0) -> dict[str, Any]:
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": list(box),
        "area": box[2] * box[3],
        "iscrowd": crowd,
    }


def result(image_id: int, category_id: int, box: Box, score: float) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "bbox": list(box), "score": score}


def match(
    annotations: list[dict[str, Any]], results: list[dict[str, Any]], *, seen: tuple[int, ...]
) -> MatchedObjects:
    ground_truth = {
        "images": [{"id": image_id} for image_id in (1, 2, 3)],
        "categories": CATEGORIES,
        "annotations": [{**one, "id": id} for id, one in enumerate(annotations, start=1)],
    }
    table = DetectionTable.from_results(results, seen=seen)
    return MatchedObjects.from_coco(run_coco(ground_truth, table), ground_truth)


# Image 1: a cat detected twice, a dog detected as a cat, a dog detected with a low score only.
# Image 2: a poorly localized cat (IoU 1/3), a dog in the background, and a dog in a crowd of dogs.
# Image 3 is not evaluated.
ANNOTATIONS = [
    annotation(1, CAT, (0, 0, 10, 10)),
    annotation(1, DOG, (100, 0, 20, 20)),
    annotation(1, DOG, (200, 0, 30, 30)),
    annotation(2, CAT, (0, 0, 40, 40)),
    annotation(2, DOG, (100, 100, 50, 50), crowd=1),
    annotation(3, DOG, (0, 0, 90, 90)),
]
RESULTS = [
    result(1, CAT, (0, 0, 10, 9), 0.6),
    result(1, CAT, (0, 0, 10, 10), 0.9),
    result(1, CAT, (100, 0, 20, 19), 0.8),
    result(2, CAT, (20, 0, 40, 40), 0.7),
    result(2, DOG, (300, 300, 10, 10), 0.5),
    result(2, DOG, (110, 110, 10, 10), 0.95),
    result(1, DOG, (200, 0, 30, 30), 0.1),
]


@pytest.fixture
def matched() -> MatchedObjects:
    return match(ANNOTATIONS, RESULTS, seen=(1, 2))


def test_highest_score_matches_the_object_and_crowds_are_ignored(
    matched: MatchedObjects,
) -> None:
    assert matched.names == ["cat", "dog"]
    assert matched.annotated.matched_index.tolist() == [1, NONE, 6, NONE, NONE, NONE]
    assert matched.annotated.is_ignored.tolist() == [False] * 4 + [True] * 2
    assert matched.detected.matched_index.tolist() == [NONE, 0, NONE, NONE, NONE, NONE, 2]
    assert matched.detected.is_ignored.tolist() == [False] * 5 + [True, False]
    assert matched.annotated.labels.tolist() == [0, 1, 1, 0, 1, 1]


def test_score_threshold_removes_true_and_false_positives(matched: MatchedObjects) -> None:
    assert np.flatnonzero(matched.is_found(0.2)).tolist() == [0]
    assert np.flatnonzero(matched.is_false_negative(0.2)).tolist() == [1, 2, 3]
    assert np.flatnonzero(matched.is_false_negative(0.1)).tolist() == [1, 3]
    assert np.flatnonzero(matched.is_false(0.6)).tolist() == [0, 2, 3]


def test_confusion_matrix_agrees_with_counts_by_hand(matched: MatchedObjects) -> None:
    assert confusion_matrix(matched, 0.2).tolist() == [
        [1, 0, 1],  # a cat detected, the poorly localized one missed
        [1, 0, 1],  # a dog detected as a cat, one missed
        [2, 1, 0],  # duplicate and poor localization; background
    ]
    assert confusion_matrix(matched, 0.85).tolist() == [[1, 0, 1], [0, 0, 2], [0, 0, 0]]


def test_object_is_confused_with_one_class_only() -> None:
    box = (0.0, 0.0, 10.0, 10.0)
    found = [result(1, CAT, box, score) for score in (0.9, 0.8)]
    twice = match([annotation(1, DOG, box)], found, seen=(1,))
    assert confusion_matrix(twice, 0).tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 0]]


def test_false_positives_have_types_and_the_highest_score_first(matched: MatchedObjects) -> None:
    found = [(one.number, one.kind, one.nearest) for one in false_positives(matched, 0.2)]
    assert found == [
        (2, Kind.OTHER_CLASS, 1),
        (3, Kind.LOOSE, 3),
        (0, Kind.DUPLICATE, 0),
        (4, Kind.NOTHING, None),
    ]
    ious = [one.iou for one in false_positives(matched, 0.2)]
    assert ious == pytest.approx([0.95, 1 / 3, 0.9, 0.0], abs=1e-12)


def test_false_negatives_are_sorted_by_area(matched: MatchedObjects) -> None:
    assert false_negatives(matched, 0.2) == [3, 2, 1]


def test_precision_and_recall_agree_with_counts_by_hand(matched: MatchedObjects) -> None:
    curve = ScoreCurve.of(matched)
    # Six detections count, two of them right; four objects.
    assert (curve.precision[0], curve.recall[0]) == (2 / 6, 2 / 4)
    assert (curve.precision[85], curve.recall[85]) == (1, 1 / 4)
    assert np.isnan(curve.precision[91])
    assert curve.f1[91] == 0


def test_best_threshold_has_the_highest_f1() -> None:
    matched = match(ANNOTATIONS[:1], RESULTS[:2], seen=(1,))
    curve = ScoreCurve.of(matched)
    assert curve.best == 61  # above the duplicate of 0.6, and up to the match of 0.9
    assert curve.f1[61:91].tolist() == [1.0] * 30


def test_no_detections_and_no_annotations_are_valid() -> None:
    for annotations, results in ((ANNOTATIONS, []), ([], RESULTS), ([], [])):
        matched = match(annotations, results, seen=(1, 2))
        counts = confusion_matrix(matched, 0)
        assert counts[:-1].sum() == (~matched.annotated.is_ignored).sum()
        assert counts[:, :-1].sum() == len(results)
        assert len(false_positives(matched, 0)) == len(results)
        assert ScoreCurve.of(matched).best == 0


def test_counts_and_curves_agree_with_pycocotools_on_real_annotations() -> None:
    folder = shared_data("coco_val2014_100")
    truth = read_ground_truth(folder / "instances_val2014_100.json")
    ground_truth = truth.to_coco()
    path = folder / "instances_val2014_fakebbox100_results.json"
    table = DetectionTable.from_results(read_results(path, truth), seen=truth.image_ids)
    scorer = run_coco(ground_truth, table)
    matched = MatchedObjects.from_coco(scorer, ground_truth)
    metrics, curves = summarize(scorer, ground_truth), PrecisionRecall.from_coco(scorer)

    defined = [value for value in metrics.class_ap.values() if value >= 0]
    assert np.mean(defined) == pytest.approx(metrics.statistics["AP"], abs=1e-12)
    assert curves.of_all_classes().mean() == pytest.approx(metrics.statistics["AP"], abs=1e-12)
    assert curves.of_all_classes()[0].mean() == pytest.approx(metrics.statistics["AP50"], abs=1e-12)
    # COCO's recall at IoU 0.50 is the fraction of a class's objects that are matched.
    recall = np.full(80, -1.0)  # of the categories without objects and detections
    labels = [truth.label_space.label(category_id) for category_id in scorer.params.catIds]
    recall[labels] = scorer.eval["recall"][0, :, 0, -1]
    objects = np.bincount(matched.annotated.labels[~matched.annotated.is_ignored], minlength=80)
    found = np.bincount(matched.annotated.labels[matched.is_found(0)], minlength=80)
    has_objects = objects > 0
    np.testing.assert_allclose(found[has_objects] / objects[has_objects], recall[has_objects])
    assert (recall[~has_objects] == -1).all()
    counts = confusion_matrix(matched, 0.3)
    assert (counts[:-1].sum(1) == objects).all()
    assert np.diag(counts)[:-1].sum() == matched.is_found(0.3).sum() > 400
