"""Meaning of class-head rows."""

import json

import pytest
import torch
from helpers.shared_data import shared_data

from deformable_detr.conversion.class_rows import (
    class_rows,
    official_rows,
    select_rows,
    spread_rows,
)
from deformable_detr.conversion.coco_categories import COCO
from deformable_detr.labels import LabelSpace

HEAD, PROPOSALS = "decoder.class_heads.2.weight", "queries.class_head.weight"
LABELS = "denoising.label_embed.weight"


def test_coco_categories_are_those_of_its_annotations() -> None:
    file = shared_data("coco_val2014_100/instances_val2014_100.json")
    assert LabelSpace.from_categories(json.loads(file.read_text())["categories"]) == COCO


@pytest.mark.parametrize("ranked_by_class", [False, True])
def test_rows_spread_by_category_id_and_selected_again_are_unchanged(ranked_by_class: bool) -> None:
    by_class = [HEAD, LABELS, *([PROPOSALS] if ranked_by_class else [])]
    state = {name: torch.rand(80, 3) for name in (HEAD, PROPOSALS, LABELS)}
    state["other"] = torch.rand(80)
    rows, count = official_rows(80, COCO)

    spread = spread_rows(state, rows, count, ranked_by_class=ranked_by_class)
    back = select_rows(spread, rows, ranked_by_class=ranked_by_class)

    for name in (HEAD, PROPOSALS, LABELS):
        last = 90 if name in by_class else 79
        assert spread[name].shape == (91, 3)
        assert torch.equal(spread[name][last], state[name][79])
        assert not spread[name][12 if name in by_class else 90].any()  # an id of no category
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("source", "count", "content", "used", "space"),
    [
        ("official", 91, {}, COCO.category_ids, COCO),
        ("official", 80, {}, range(80), None),
        ("official", 21, {}, range(21), None),
        ("transformers", 91, {}, range(91), None),
        ("detrex", 80, {}, range(80), COCO),
        ("mmdet", 80, {"classes": list(COCO.names)}, range(80), COCO),
        ("mmdet", 2, {"classes": ["cat", "dog"]}, range(2), LabelSpace((0, 1), ("cat", "dog"))),
        ("mmdet", 3, {"classes": ["cat", "dog"]}, range(3), None),
        ("transformers", 2, {"id2label": ["N/A", "dog"]}, (1,), LabelSpace((1,), ("dog",))),
        ("transformers", 2, {"id2label": ["N/A", "N/A"]}, (0, 1), None),
        (
            "official",
            9,
            {"categories": [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}]},
            (3, 8),
            LabelSpace((3, 8), ("cat", "dog")),
        ),
        (
            "detrex",
            2,
            {"categories": [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}]},
            (0, 1),
            LabelSpace((3, 8), ("cat", "dog")),
        ),
    ],
)
def test_row_meaning_follows_from_file_and_format(
    source: str, count: int, content: dict[str, object], used: object, space: LabelSpace | None
) -> None:
    rows = class_rows(source, count, content)

    assert rows.count == count
    assert rows.used == tuple(used)  # type: ignore[call-overload]
    assert rows.label_space == space
