import json
from pathlib import Path
from typing import Any

import pytest

from deformable_detr.evaluation.results_files import read_results

TRUTH = {"images": [{"id": 1}, {"id": 2}], "categories": [{"id": 7, "name": "tree"}]}
BOX = {"image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4]}
RESULT = BOX | {"score": 0.5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "results file .*r.json must hold a list of results, got a dict"),
        (
            [RESULT | {"image_id": i} for i in (1, *range(10, 18))],
            "must use the image_id of the annotation file, "
            "got unknown 10, 11, 12, 13, 14 and 3 more",
        ),
        (
            [RESULT | {"category_id": 8}],
            "results of .*r.json must use the category_id of .* got unknown 8",
        ),
        ([BOX], "results of .*: entry 0 must have a finite score, got None"),
        ('[{"image_id": 1, "category_id": 7, "bbox": [0, 0, NaN, 1], "score": 1}]', "entry 0"),
    ],
)
def test_results_that_do_not_fit_are_rejected(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_results(path, TRUTH)
