import contextlib
import io
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from deformable_detr.evaluation.box_scorer import BoxScorer

CATEGORIES = (3, 7)
LIMIT = 20  # detections per image and category


def _random_scorer(seed, scorer_type=BoxScorer):
    """Return a scorer of three images: equal boxes and scores, crowds, empty boxes and images."""
    draws = np.random.default_rng(seed)

    def boxes(count):
        corners = draws.integers(0, 4, (count, 2)) * 16
        return np.hstack([corners, draws.choice([0, 8, 16, 32, 48, 100, 120], (count, 2))])

    def dataset(most, **columns):
        content = []
        for image_id, category_id in product((1, 2, 3), CATEGORIES):
            for box in boxes(draws.integers(0, most)).tolist():
                one = {"id": len(content) + 1, "image_id": image_id, "category_id": category_id}
                more = {name: draw() for name, draw in columns.items()}
                content.append({**one, "bbox": box, "area": box[2] * box[3], **more})
        coco = COCO()
        images, categories = ([{"id": one} for one in ids] for ids in ((1, 2, 3), CATEGORIES))
        coco.dataset = {"images": images, "categories": categories, "annotations": content}
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):
        scorer = scorer_type(
            dataset(12, iscrowd=lambda: int(draws.random() < 0.2)),
            dataset(2 * LIMIT, score=lambda: int(draws.integers(1, 8)) / 8),
            "bbox",
        )
        scorer.params.maxDets = [1, 10, LIMIT]
        scorer.params.iouThrs = np.append(scorer.params.iouThrs, 1.0)
        scorer.evaluate()
    return scorer


@given(st.integers(0, 10**6))
def test_matches_are_those_of_pycocotools(seed):
    scorer, theirs = (_random_scorer(seed, one) for one in (BoxScorer, COCOeval))
    assume(any(one["dtMatches"].any() for one in theirs.evalImgs if one))
    for expected in filter(None, theirs.evalImgs):
        if not (expected["gtIds"] and expected["dtIds"]):
            continue
        own = scorer.evaluate_crowded(
            expected["image_id"], expected["category_id"], expected["aRng"], expected["maxDet"]
        )
        assert own.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(own[key], value, err_msg=key)


@pytest.mark.parametrize("flag", [0, 1])
def test_only_a_crowd_is_matched_twice(flag):
    scorer = _random_scorer(0)
    box = {"image_id": 1, "category_id": 3, "bbox": [0, 0, 50, 50], "area": 2500}
    scorer._gts[1, 3] = [{**box, "id": 5, "iscrowd": flag, "ignore": flag}]
    scorer._dts[1, 3] = [{**box, "id": number, "score": 0.5} for number in (8, 9)]
    scorer.ious[1, 3] = np.ones((2, 1))
    found = scorer.evaluate_crowded(1, 3, (0, 1e10), LIMIT)
    expected = [5, 5] if flag else [5, 0]
    assert found["dtMatches"].tolist() == [expected] * len(scorer.params.iouThrs)
    assert found["dtIgnore"].tolist() == [[bool(flag)] * 2] * len(scorer.params.iouThrs)
