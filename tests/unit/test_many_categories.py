"""50,000 categories: time and memory are not those of the square of their number."""

import json
import time
from pathlib import Path

import pytest

from deformable_detr.data.annotations import read_annotations
from deformable_detr.evaluation.coco_eval import distinct_names, evaluate_results
from deformable_detr.labels import LabelSpace

NUM_CATEGORIES = 50_000
LIMIT_S = 20.0  # quadratic work takes minutes; linear work takes about a second


def test_fifty_thousand_categories_are_read_and_scored(tmp_path: Path) -> None:
    annotations, results = tmp_path / "a.json", tmp_path / "r.json"
    objects = [
        {"image_id": 1, "category_id": 1_000 * place, "bbox": [place, 0, 9, 9]}
        for place in range(1, 21)
    ]
    record = {
        "images": [{"id": 1, "file_name": "1.png", "height": 90, "width": 90}],
        "categories": [{"id": one, "name": f"class {one // 2}"} for one in range(NUM_CATEGORIES)],
        "annotations": [{"id": place, **one} for place, one in enumerate(objects)],
    }
    annotations.write_text(json.dumps(record))
    results.write_text(json.dumps([{**one, "score": 0.5} for one in objects]))

    start = time.perf_counter()
    space = read_annotations(annotations).label_space
    metrics = evaluate_results(results, annotations)
    space.require_same(LabelSpace.from_categories(record["categories"]), this="this", that="that")
    seconds = time.perf_counter() - start

    assert seconds < LIMIT_S
    assert list(metrics.class_ap) == distinct_names(space)
    assert metrics.class_ap["class 500 (category 1000)"] == pytest.approx(1)
    assert metrics.class_ap["class 500 (category 1001)"] == -1
    assert sum(ap > 0 for ap in metrics.class_ap.values()) == len(objects)
    assert metrics.statistics["AP"] == pytest.approx(1)
