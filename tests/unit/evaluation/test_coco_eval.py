import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.shared_data import shared_data
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from deformable_detr.evaluation import coco_eval
from deformable_detr.evaluation.coco_eval import (
    NOT_DEFINED,
    STATISTICS,
    CocoEvaluator,
    evaluate_results,
    statistics_at,
)
from deformable_detr.ground_truth import read_ground_truth
from deformable_detr.labels import LabelSpace
from deformable_detr.structures import Detections

PUBLISHED = [
    0.505, 0.697, 0.573, 0.586, 0.519, 0.501,
    0.387, 0.594, 0.595, 0.640, 0.566, 0.564,
]  # fmt: skip
CATEGORIES = [{"id": 0, "name": "cat"}, {"id": 17, "name": "dog"}]
LABELS = LabelSpace.from_categories(CATEGORIES)
BOX = (10.0, 10.0, 50.0, 60.0)  # xyxy
NOTHING = Detections(torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))


def _annotation(image_id: int, category_id: int, **more: Any) -> dict[str, Any]:
    x0, y0, x1, y1 = BOX
    box = [x0, y0, x1 - x0, y1 - y0]
    return {"image_id": image_id, "category_id": category_id, "bbox": box, **more}


def _file(folder: Path, annotations: Sequence[dict[str, Any]], *, images: int = 3) -> Path:
    path = folder / "annotations.json"
    content = {
        "images": [{"id": image_id} for image_id in range(images)],
        "categories": CATEGORIES,
        "annotations": list(annotations),
    }
    path.write_text(json.dumps(content))
    return path


def _evaluator(annotations: Path, label_space: LabelSpace) -> CocoEvaluator:
    return CocoEvaluator(read_ground_truth(annotations), label_space)


def _found(label: int, score: float = 0.9, count: int = 1) -> Detections:
    return Detections(
        torch.full((count,), score), torch.full((count,), label), torch.tensor([BOX] * count)
    )


def test_metrics_of_a_published_results_file_are_the_published_ones() -> None:
    folder = shared_data("coco_val2014_100")

    metrics = evaluate_results(
        folder / "instances_val2014_fakebbox100_results.json",
        folder / "instances_val2014_100.json",
    )

    assert [round(value, 3) for value in metrics.statistics.values()] == PUBLISHED
    assert metrics.num_images == 100
    assert len(metrics.class_ap) == 80
    defined = [ap for ap in metrics.class_ap.values() if ap != NOT_DEFINED]
    assert sum(defined) / len(defined) == pytest.approx(metrics.statistics["AP"])


@pytest.mark.parametrize("limit", [100, 30, 5, 1])
def test_metrics_at_any_limit_are_those_of_pycocotools(limit: int) -> None:
    folder = shared_data("coco_val2014_100")
    annotations = folder / "instances_val2014_100.json"
    results = folder / "instances_val2014_fakebbox100_results.json"
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(annotations)
        scorer = COCOeval(truth, truth.loadRes(str(results)), "bbox")
        scorer.params.maxDets = [1, 10, limit] if limit > 10 else [1, 1, limit]
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()

    metrics = evaluate_results(results, annotations, max_detections=limit)

    expected = dict(zip(STATISTICS, scorer.stats.tolist(), strict=True))
    if limit != 100:  # pycocotools looks for AP at 100 detections only
        precision = scorer.eval["precision"][:, :, :, 0, -1]
        expected["AP"] = precision[precision > NOT_DEFINED].mean()
        expected[f"AR{limit}"] = expected.pop("AR100")
        if limit <= 10:
            del expected["AR10"]
        at_limit = {"AR1", "AR10", f"AR{limit}"}
        expected = {
            name if name in at_limit else f"{name}@{limit}": one for name, one in expected.items()
        }
    if limit > 10:
        assert metrics.statistics == expected
    else:  # pycocotools averages over copies of equal limits, which rounds otherwise
        assert metrics.statistics == pytest.approx(expected, rel=1e-12)
    assert metrics.statistics.keys() == statistics_at(limit).keys()
    assert metrics.max_detections == limit


def test_images_with_more_detections_of_a_class_than_the_limit_are_counted(tmp_path: Path) -> None:
    annotations = read_ground_truth(_file(tmp_path, [_annotation(1, 0)]))
    of_two_classes = replace(_found(0, count=3), labels=torch.tensor([0, 0, 1]))
    counts = []
    for limit in (100, 2, 1):
        evaluator = CocoEvaluator(annotations, LABELS, max_detections=limit)
        evaluator.update({0: _found(0), 1: _found(0, count=3), 2: of_two_classes})
        counts.append(evaluator.compute().num_limited)
    assert counts == [0, 1, 2]


def test_a_limit_below_one_is_refused(tmp_path: Path) -> None:
    annotations = read_ground_truth(_file(tmp_path, []))
    with pytest.raises(ValueError, match="max_detections must be at least 1, got 0"):
        CocoEvaluator(annotations, LABELS, max_detections=0)


def test_perfect_detections_have_ap_one_and_class_ap_is_by_name(tmp_path: Path) -> None:
    annotations = _file(tmp_path, [_annotation(1, 0), _annotation(2, 0)])
    evaluator = _evaluator(annotations, LABELS)
    evaluator.update({1: _found(0), 2: _found(0)})

    metrics = evaluator.compute()

    assert metrics.as_dict()["AP"] == pytest.approx(1)
    assert metrics.as_dict().keys() == STATISTICS.keys()
    assert metrics.class_ap == {"cat": pytest.approx(1), "dog": NOT_DEFINED}
    assert (metrics.num_images, metrics.num_detections) == (2, 2)


@pytest.mark.parametrize("ids", [({}, {}), ({"id": 0}, {"id": 1})])
def test_annotations_without_id_or_with_id_zero_count(
    tmp_path: Path, ids: tuple[dict[str, int], dict[str, int]]
) -> None:
    annotations = [_annotation(1, 0, **ids[0]), _annotation(1, 17, **ids[1])]
    evaluator = _evaluator(_file(tmp_path, annotations), LABELS)
    evaluator.update({1: _found(0)})

    assert evaluator.compute().class_ap == {"cat": pytest.approx(1), "dog": 0}


def test_crowd_gives_neither_false_negatives_nor_false_positives(tmp_path: Path) -> None:
    annotations = [_annotation(1, 0, iscrowd=1), _annotation(2, 0)]
    evaluator = _evaluator(_file(tmp_path, annotations), LABELS)
    evaluator.update({1: _found(0, count=3), 2: _found(0, score=0.1)})

    assert evaluator.compute().statistics["AP"] == pytest.approx(1)


def test_no_detections_are_valid_and_ap_is_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluator = _evaluator(_file(tmp_path, [_annotation(1, 0)]), LABELS)
    evaluator.update({1: NOTHING, 2: NOTHING})

    assert evaluator.compute().statistics["AP"] == 0
    assert evaluator.results() == []
    assert capsys.readouterr().out == ""


def test_no_annotations_are_valid_and_ap_is_undefined(tmp_path: Path) -> None:
    evaluator = _evaluator(_file(tmp_path, []), LABELS)
    evaluator.update({0: _found(1)})

    assert set(evaluator.compute().statistics.values()) == {NOT_DEFINED}


def test_detection_in_an_image_without_objects_is_a_false_positive(tmp_path: Path) -> None:
    evaluator = _evaluator(_file(tmp_path, [_annotation(1, 0)]), LABELS)
    evaluator.update({0: _found(0, score=0.95), 1: _found(0, score=0.9)})

    assert evaluator.compute().statistics["AP"] == pytest.approx(0.5)


def test_images_not_seen_give_no_false_negatives(tmp_path: Path) -> None:
    evaluator = _evaluator(_file(tmp_path, [_annotation(1, 0), _annotation(2, 0)]), LABELS)
    evaluator.update({1: _found(0)})

    assert evaluator.compute().statistics["AP"] == pytest.approx(1)


def test_image_given_twice_counts_once(tmp_path: Path) -> None:
    evaluator = _evaluator(_file(tmp_path, [_annotation(1, 0)]), LABELS)
    evaluator.update({1: _found(0)})
    evaluator.update({1: _found(0)})

    assert evaluator.compute().num_detections == 1


def test_synchronize_gathers_all_ranks_and_drops_duplicate_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotations = _file(tmp_path, [_annotation(1, 0), _annotation(2, 0)])
    first, second = _evaluator(annotations, LABELS), _evaluator(annotations, LABELS)
    first.update({1: _found(0), 2: _found(0)})
    second.update({2: _found(0), 0: NOTHING})
    sent: list[object] = []

    def gather(mine: object) -> list[object]:
        sent.append(mine)
        return list(sent)

    monkeypatch.setattr(coco_eval, "all_gather_objects", gather)
    first.synchronize()
    second.synchronize()
    second.update({2: _found(0)})

    metrics = second.compute()
    assert (metrics.num_images, metrics.num_detections) == (3, 2)
    assert metrics.statistics["AP"] == pytest.approx(1)


def test_rank_without_images_takes_part(tmp_path: Path) -> None:
    evaluator = _evaluator(_file(tmp_path, [_annotation(1, 0)]), LABELS)

    evaluator.synchronize()

    with pytest.raises(ValueError, match="at least one image must be evaluated, got none"):
        evaluator.compute()


def test_evaluating_the_written_results_gives_the_same_metrics(tmp_path: Path) -> None:
    annotations = _file(tmp_path, [_annotation(1, 0), _annotation(2, 17)])
    evaluator = _evaluator(annotations, LABELS)
    evaluator.update({0: _found(1), 1: _found(0), 2: _found(1, score=0.3)})
    results = tmp_path / "results.json"
    results.write_text(json.dumps(evaluator.results()))

    again = evaluate_results(results, annotations)

    assert again.statistics == evaluator.compute().statistics
    assert again.class_ap == evaluator.compute().class_ap


def test_empty_results_file_is_valid(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    results.write_text("[]")

    metrics = evaluate_results(results, _file(tmp_path, [_annotation(1, 0)]))

    assert metrics.statistics["AP"] == 0


def test_classes_that_share_a_name_have_separate_ap(tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    categories = [{"id": 1, "name": "bat"}, {"id": 2, "name": "bat"}]
    path.write_text(json.dumps({"images": [{"id": 0}], "categories": categories}))
    evaluator = _evaluator(path, LabelSpace.from_categories(categories))
    evaluator.update({0: NOTHING})

    assert list(evaluator.compute().class_ap) == ["bat (category 1)", "bat (category 2)"]


def test_other_categories_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"annotation file .* must have the categories of"):
        _evaluator(_file(tmp_path, []), LabelSpace((0,), ("cat",)))


def test_unknown_images_are_rejected(tmp_path: Path) -> None:
    evaluator = _evaluator(_file(tmp_path, []), LABELS)

    with pytest.raises(ValueError, match=r"of the annotation file, got unknown 99"):
        evaluator.update({99: NOTHING})
