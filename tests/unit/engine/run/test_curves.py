import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deformable_detr.engine.metrics import append_record
from deformable_detr.engine.run import curves
from deformable_detr.engine.run.curves import draw_curves


def write_run(path: Path, *, evaluations: bool) -> None:
    for step in range(10, 510, 10):
        loss = 12 * math.exp(-step / 150) + 4
        terms = {"loss_class": loss / 8, "loss_l1": loss / 30, "loss_giou": loss / 15}
        append_record(path, {"kind": "train", "step": step, "total": loss, **terms})
        if evaluations and step % 50 == 0:
            ap = 0.4 * (1 - math.exp(-step / 200))
            scores = {"AP": ap, "AP50": 1.8 * ap, "AP75": 0.8 * ap, "validation/total": loss + 1}
            append_record(path, {"kind": "evaluation", "step": step, **scores})


@pytest.mark.parametrize("evaluations", [True, False])
def test_the_picture_shows_the_lines_that_were_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluations: bool
) -> None:
    write_run(tmp_path / "metrics.jsonl", evaluations=evaluations)
    drawn = []
    draw_line = curves._draw_line

    def record_line(axes: object, records: object, key: str, **style: object) -> None:
        draw_line(axes, records, key, **style)
        drawn.append((key, len(axes.lines)))

    monkeypatch.setattr(curves, "_draw_line", record_line)
    draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    counts = dict(drawn)
    assert counts["loss_giou"] == 4
    assert counts["validation/total"] == (5 if evaluations else 4)
    assert counts["AP75"] == (3 if evaluations else 0)
    pixels = np.asarray(Image.open(tmp_path / "curves.png").convert("L"))
    assert pixels.shape[1] > 1000
    assert 0.005 < (pixels < 200).mean() < 0.3
