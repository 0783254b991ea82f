"""Evaluation results that a report shows."""

from dataclasses import dataclass

from deformable_detr.evaluation.coco_eval import CocoMetrics, run_coco, summarize
from deformable_detr.evaluation.detection_table import DetectionTable
from deformable_detr.evaluation.matched_objects import MatchedObjects
from deformable_detr.evaluation.precision_recall import PrecisionRecall, ScoreCurve
from deformable_detr.ground_truth import GroundTruth


@dataclass(frozen=True)
class Findings:
    """Metrics, curves and matches of one evaluation.

    Attributes:
        metrics: COCO metrics.
        curves: precision-recall curves.
        scores: precision and recall against the score threshold.
        matched: all objects and detections, with their matches.
    """

    metrics: CocoMetrics
    curves: PrecisionRecall
    scores: ScoreCurve
    matched: MatchedObjects

    @classmethod
    def of(cls, table: DetectionTable, annotations: GroundTruth) -> "Findings":
        """Evaluate detections of the annotated images."""
        ground_truth = annotations.to_coco()
        scorer = run_coco(ground_truth, table)
        matched = MatchedObjects.from_coco(scorer, ground_truth)
        return cls(
            summarize(scorer, ground_truth),
            PrecisionRecall.from_coco(scorer),
            ScoreCurve.of(matched),
            matched,
        )

    @property
    def min_score(self) -> float:
        """Score threshold with the highest F1 over all classes, in hundredths."""
        return float(self.scores.thresholds[self.scores.best])
