"""Write `report.html`: a self-contained page about a run, without network or scripts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jinja2

from deformable_detr.engine.run.curves import training_charts
from deformable_detr.evaluation.coco_eval import NOT_DEFINED, STATISTICS
from deformable_detr.evaluation.error_analysis import false_negatives, false_positives
from deformable_detr.evaluation.matched_objects import IOU_THRESHOLD
from deformable_detr.files import write_whole
from deformable_detr.reporting import tables
from deformable_detr.reporting.findings import Findings
from deformable_detr.reporting.gallery import (
    PhotoReader,
    false_negative_pictures,
    false_positive_pictures,
)
from deformable_detr.reporting.names import class_name, without_controls
from deformable_detr.visualize.charts import COLORS, Chart, Line, line_chart, to_svg

SHOWN_IOUS = (0.5, 0.6, 0.7, 0.8, 0.9)
MAX_CLASS_CURVES = len(COLORS)


@dataclass(frozen=True)
class RunFacts:
    """Facts about a run, apart from its detections.

    Attributes:
        name: name of the run.
        records: records of its metrics file, oldest first.
        recipe: nearest official recipe.
        deviations: differences from the recipe, one line each.
        config: resolved configuration, as YAML.
        checkpoint: values that identify the weights, by name.
        environment: values that describe the run's environment, by name.
    """

    name: str
    records: Sequence[Mapping[str, Any]]
    recipe: str
    deviations: Sequence[str]
    config: str
    checkpoint: Mapping[str, str]
    environment: Mapping[str, str]


def write_report(
    path: Path, facts: RunFacts, findings: Findings | None, read_photo: PhotoReader
) -> None:
    """Write the HTML report.

    Args:
        path: path of the HTML file.
        facts: facts about the run.
        findings: evaluation of its checkpoint, None if there are no detections.
        read_photo: function that loads an image of the evaluation by its id.
    """
    page = (
        template_environment()
        .get_template("report.html")
        .render(
            facts=facts,
            training=training_charts(facts.records),
            findings=findings,
            **({} if findings is None else _detection_sections(findings, read_photo)),
        )
    )
    with write_whole(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def template_environment() -> jinja2.Environment:
    """Return the environment of the templates of pages; foreign texts are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("deformable_detr.reporting", "."),
        autoescape=True,
        finalize=without_controls,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = to_svg
    environment.filters["score"] = _score
    environment.filters["percent"] = lambda share: f"{100 * share:.0f} %"
    return environment


def _detection_sections(findings: Findings, read_photo: PhotoReader) -> dict[str, Any]:
    matched, min_score = findings.matched, findings.min_score
    false = false_positives(matched, min_score)
    missed = false_negatives(matched, min_score)
    scores = findings.metrics.statistics
    return {
        "statistics": [(name, scores[name], text) for name, text in STATISTICS.items()],
        "min_score": f"{min_score:.2f}",
        "iou": f"{IOU_THRESHOLD:.2f}",
        "precision_charts": _precision_charts(findings),
        "best": findings.scores.best,
        "classes": tables.scores_by_class(findings),
        "sizes": tables.size_rows(findings),
        "size_chart": Chart(
            "Objects by size",
            x_label="square root of the area, pixels",
            y_label="objects",
            labels=("true positives", "false negatives"),
            stacks=tuple(tables.size_stacks(findings)),
        ),
        "matrix": tables.matrix_rows(findings),
        "confusions": tables.top_confusions(findings),
        "num_false": len(false),
        "num_missed": len(missed),
        "kinds": tables.kind_counts(false),
        "worst": false_positive_pictures(matched, false, read_photo),
        "largest": false_negative_pictures(matched, missed, read_photo, min_score=min_score),
    }


def _precision_charts(findings: Findings) -> list[Chart]:
    curves, scores = findings.curves, findings.scores
    recalls = curves.recalls.tolist()
    means = curves.of_all_classes()
    rows = [int(abs(curves.ious - iou).argmin()) for iou in SHOWN_IOUS]
    by_iou = [
        Line(
            f"IoU {curves.ious[row]:.2f}, AP {means[row].mean():.3f}",
            list(zip(recalls, means[row].tolist(), strict=True)),
        )
        for row in rows
    ]
    draw = partial(line_chart, x_label="recall", y_label="precision", y_range=(0.0, 1.0))
    charts = [draw("Precision and recall, mean of the classes", by_iou)]
    by_class = [
        Line(
            f"{class_name(name)}, AP {curves.precision[0, :, label].mean():.3f}",
            list(zip(recalls, curves.precision[0, :, label].tolist(), strict=True)),
        )
        for label, name in enumerate(findings.matched.names)
        if findings.metrics.class_ap[name] != NOT_DEFINED
    ]
    if 1 < len(by_class) <= MAX_CLASS_CURVES:
        charts.append(draw("Precision and recall per class at IoU 0.50", by_class))
    thresholds = scores.thresholds.tolist()
    charts.append(
        line_chart(
            "Precision, recall and F1 by score threshold at IoU 0.50",
            [
                Line(
                    label,
                    [
                        (threshold, value)
                        for threshold, value in zip(thresholds, values.tolist(), strict=True)
                        if not math.isnan(value)
                    ],
                )
                for label, values in (
                    ("precision", scores.precision),
                    ("recall", scores.recall),
                    ("F1", scores.f1),
                )
            ],
            x_label="score threshold",
            y_label="",
            y_range=(0.0, 1.0),
            note=f"F1 is highest, {scores.f1[scores.best]:.2f}, at {findings.min_score:.2f}.",
        )
    )
    return [chart for chart in charts if not chart.is_empty]


def _score(value: float) -> str:
    """Format with three decimals, or as a dash if undefined."""
    return "-" if value < 0 else f"{value:.3f}"
