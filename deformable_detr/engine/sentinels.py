"""Sentinels: a run that goes wrong without an error is told so while it runs."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deformable_detr import distributed
from deformable_detr.engine.metrics import read_records
from deformable_detr.engine.run_folder import RunFolder
from deformable_detr.evaluation.coco_files import read_ground_truth
from deformable_detr.evaluation.detection_table import DetectionTable
from deformable_detr.evaluation.zero_ap import explain_zero_ap

logger = logging.getLogger(__name__)
MIN_EVALUATIONS = 2
ZERO_AP50 = 0.001
FALLEN_TO = 0.8  # of the loss at the start: something has been learnt


def warn_of_zero_ap(folder: RunFolder, annotations: Path, detections: DetectionTable) -> None:
    """After an evaluation was recorded: say why AP stays 0 although the loss falls, if so."""
    if distributed.is_main() and ap_stays_zero(read_records(folder.metrics)):
        finding = explain_zero_ap(read_ground_truth(annotations), detections)
        logger.warning("the loss falls, but AP50 stays 0: %s", finding)


def ap_stays_zero(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last evaluation is the first to show that the loss falls but AP50 stays 0.

    Args:
        records: of the metrics file, up to that evaluation.
    """
    ends = [0, *(i for i, one in enumerate(records, 1) if one["kind"] == "evaluation")]
    return _stays_zero(records[: ends[-1]]) and not _stays_zero(records[: ends[-2]])


def _stays_zero(records: Sequence[Mapping[str, Any]]) -> bool:
    losses = [one["total"] for one in records if one["kind"] == "train"]
    aps = [one["AP50"] for one in records if one["kind"] == "evaluation"]
    return (
        len(aps) >= MIN_EVALUATIONS
        and max(aps) < ZERO_AP50
        and len(losses) > 1
        and losses[-1] < FALLEN_TO * losses[0]
    )
