from pathlib import Path
from typing import Any

import pytest
from helpers.full_disk import nearly_full_disk
from PIL import Image

from deformable_detr.engine.metrics import append_record
from deformable_detr.engine.run.curves import ap_chart, draw_curves, loss_chart, training_charts


def records(*, evaluations: bool = True) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"kind": "start", "step": 0, "environment": {}}]
    for step in range(10, 110, 10):
        terms = {"total": 90 / step, "loss_class": 20 / step, "loss_l1": 5 / step}
        found.append({"kind": "train", "step": step, "lr": 1e-4, "loss_giou": 9 / step, **terms})
        if evaluations and step % 50 == 0:
            scores = {"AP": step / 1000, "AP50": step / 500, "AP75": step / 2000}
            found.append({"kind": "evaluation", "step": step, "validation/total": 2.0, **scores})
    return found


def test_lines_show_the_records() -> None:
    losses, ap = loss_chart(records()), ap_chart(records())
    assert losses.labels == ("total, weighted", "class", "box L1", "box GIoU", "total, validation")
    assert losses.lines[0].points[:2] == [(10, 9.0), (20, 4.5)]
    assert losses.lines[-1].points == [(50, 2.0), (100, 2.0)]
    assert ap.labels == ("AP", "AP50", "AP75")
    assert ap.lines[1].points == [(50, 0.1), (100, 0.2)]
    assert len(loss_chart(records(evaluations=False)).lines) == 4
    assert ap_chart(records(evaluations=False)).is_empty


def test_values_without_records_have_no_chart() -> None:
    titles = [chart.title.split()[0] for chart in training_charts(records())]
    assert titles == ["Average", "Loss", "Learning"]  # no norms of gradients
    assert training_charts([]) == []


def test_a_picture_is_drawn_before_the_first_evaluation_and_a_full_disk_keeps_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for record in records(evaluations=False):
        append_record(tmp_path / "metrics.jsonl", record)
    draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 1000
    before = (tmp_path / "curves.png").read_bytes()
    with nearly_full_disk(1000):
        draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert "curves.png could not be written (File too large)" in caplog.text
    assert (tmp_path / "curves.png").read_bytes() == before
