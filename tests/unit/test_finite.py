"""What is written, loaded and drawn is finite."""

import ast
import math
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import deformable_detr
from deformable_detr.engine.metrics import append_record
from deformable_detr.evaluation.coco_eval import CocoMetrics
from deformable_detr.finite import (
    NonFinitePredictionsError,
    cause_in_weights,
    require_finite_weights,
    to_json,
)

PACKAGE = Path(deformable_detr.__file__).parent
# They write settings, which have checks of their own, and signs of progress.
OTHER_USES = {"config/loading.py", "config/reference.py", "engine/failures/watchdog.py"}
OTHER_USES |= {"workflows/recipe.py", "finite.py"}
OTHER_USES |= {"conversion/preprocessing.py"}  # for an error
# For another process, and for tables of the trackers.
OTHER_USES |= {"engine/run/tracking.py", "engine/run/tracker_process.py"}


def test_all_json_is_written_without_nan() -> None:
    loose = []
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dumps", "json.dump"):
                strict = any(ast.unparse(one) == "allow_nan=False" for one in node.keywords)
                if not strict and name not in OTHER_USES:
                    loose.append(f"{name}:{node.lineno}")
    assert loose == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_error_names_the_place_of_a_number_that_json_does_not_have(
    tmp_path: Path, value: float
) -> None:
    with pytest.raises(ValueError, match=rf"file r must hold finite .*, got {value} at 1\.bbox\.2"):
        to_json([{"bbox": [1.0]}, {"bbox": [1.0, 2.0, value]}], "file r")
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(ValueError, match=rf"metrics\.jsonl must .*, got {value} at AP"):
        append_record(path, {"step": 1, "AP": value})
    assert not path.exists()
    with pytest.raises(ValueError, match=f"metrics must be finite, got AP50 {value}; check"):
        CocoMetrics({"AP": 0.5, "AP50": value}, {}, num_images=1, num_detections=1)


def test_an_error_of_predictions_is_the_same_in_another_process() -> None:
    error = NonFinitePredictionsError("image 3", "1 of 2 queries", "a cause", 4)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.position) == (str(error), 4)


def test_the_cause_is_the_first_tensor_that_is_not_finite_or_the_precision() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    state = model.state_dict()
    require_finite_weights(state, "file x")
    state["0.bias"][1] = -2e9
    expected = "all weights of the model are finite, the largest is 2e+09, but values grow"
    assert expected in cause_in_weights(state)
    assert "bfloat16 overflows" in cause_in_weights(model.bfloat16().state_dict())
    state["1.running_mean"][0] = math.inf
    assert "running_mean (1 of 2 values), which only eval mode uses" in cause_in_weights(state)
    state["0.weight"][:] = torch.nan
    words = r"file x must .*, got 2 of 6 tensors that are not finite, first: 0\.weight \(4 of 4 va"
    with pytest.raises(ValueError, match=words):
        require_finite_weights(state, "file x")
    assert "eval mode" not in cause_in_weights({"0.weight": state["0.weight"]})
