"""Tables of a report: classes, sizes and confusions."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deformable_detr.evaluation.error_analysis import FalsePositive, Kind, confusion_matrix
from deformable_detr.reporting.findings import Findings
from deformable_detr.reporting.names import class_name
from deformable_detr.visualize.charts import Stack

MAX_MATRIX = 12  # a matrix of more classes is illegible
MAX_CONFUSIONS = 20
# COCO's limits of small, medium and large: side of a square of that area, in pixels.
SMALL_PX, LARGE_PX = 32, 96
SIZE_STEPS_PX = (0, 16, 32, 64, 96, 192, 384)
NOTHING = "background"


@dataclass(frozen=True)
class ClassRow:
    """Class with its AP (-1 without objects), and counts at the report's score threshold."""

    name: str
    num_objects: int
    ap: float
    ap50: float
    num_found: int
    num_false: int


@dataclass(frozen=True)
class SizeRow:
    """Metrics (-1 without objects) and counts for one of COCO's object sizes."""

    name: str
    num_objects: int
    ap: float
    recall: float
    num_found: int


@dataclass(frozen=True)
class Cell:
    """Entry of the confusion matrix: a count, and its fraction of the row's objects."""

    count: int
    share: float
    is_right: bool


@dataclass(frozen=True)
class Confusion:
    """Objects of one class detected as another: count, and fraction of the class's objects."""

    annotated: str
    detected: str
    count: int
    share: float


def scores_by_class(findings: Findings) -> list[ClassRow]:
    """Return all classes, highest AP first, those without objects last."""
    matched, min_score = findings.matched, findings.min_score
    K = len(matched.names)
    annotated, detected = matched.annotated, matched.detected
    objects = np.bincount(annotated.labels[~annotated.is_ignored], minlength=K)
    found = np.bincount(annotated.labels[matched.is_found(min_score)], minlength=K)
    false = np.bincount(detected.labels[matched.is_false(min_score)], minlength=K)
    ap50 = findings.curves.precision[0].mean(0)  # all -1 for a class without objects
    rows = [
        ClassRow(
            class_name(name),
            int(objects[label]),
            findings.metrics.class_ap[name],
            float(ap50[label]),
            int(found[label]),
            int(false[label]),
        )
        for label, name in enumerate(matched.names)
    ]
    return sorted(rows, key=lambda row: (-row.ap, row.name))


def size_rows(findings: Findings) -> list[SizeRow]:
    """Return COCO's three sizes; objects on a limit count for both, as in COCO."""
    annotated = findings.matched.annotated
    areas, counts = annotated.areas, ~annotated.is_ignored
    found = findings.matched.is_found(findings.min_score)
    rows = []
    for name, suffix, low, high in (
        (f"small, below {SMALL_PX} px", "s", 0.0, float(SMALL_PX)),
        (f"medium, {SMALL_PX} to {LARGE_PX} px", "m", SMALL_PX, LARGE_PX),
        (f"large, above {LARGE_PX} px", "l", LARGE_PX, np.inf),
    ):
        inside = (areas >= low**2) & (areas <= high**2)
        rows.append(
            SizeRow(
                name,
                int((inside & counts).sum()),
                findings.metrics.statistics[f"AP{suffix}"],
                findings.metrics.statistics[f"AR{suffix}"],
                int((inside & found).sum()),
            )
        )
    return rows


def size_stacks(findings: Findings) -> list[Stack]:
    """Return bars of true positives and false negatives, by square root of the object area."""
    annotated = findings.matched.annotated
    sides = np.sqrt(annotated.areas)
    found = findings.matched.is_found(findings.min_score)
    missed = findings.matched.is_false_negative(findings.min_score)
    edges = [*SIZE_STEPS_PX, np.inf]
    stacks = []
    for low, high in itertools.pairwise(edges):
        inside = (sides >= low) & (sides < high)
        label = f"{low:g}+" if high == np.inf else f"{low:g}-{high:g}"
        stacks.append(Stack(label, (float((inside & found).sum()), float((inside & missed).sum()))))
    return _without_empty_ends(stacks)


def matrix_rows(findings: Findings) -> list[tuple[str, list[Cell]]] | None:
    """Return the confusion matrix by annotated class; None if there are too many classes."""
    names = findings.matched.names
    if len(names) > MAX_MATRIX:
        return None
    counts = confusion_matrix(findings.matched, findings.min_score)
    totals = counts.sum(1).clip(min=1)
    return [
        (
            name,
            [
                Cell(int(count), float(count / totals[row]), row == column)
                for column, count in enumerate(counts[row])
            ],
        )
        for row, name in enumerate([*map(class_name, names), NOTHING])
    ]


def top_confusions(findings: Findings) -> list[Confusion]:
    """Return the most frequent pairs of confused classes."""
    names = findings.matched.names
    counts = confusion_matrix(findings.matched, findings.min_score)
    totals = counts.sum(1).clip(min=1)
    pairs = counts[:-1, :-1].copy()
    np.fill_diagonal(pairs, 0)
    order = np.argsort(-pairs, axis=None, kind="stable")[:MAX_CONFUSIONS]
    return [
        Confusion(
            class_name(names[row]),
            class_name(names[column]),
            int(pairs[row, column]),
            float(pairs[row, column] / totals[row]),
        )
        for row, column in zip(*np.unravel_index(order, pairs.shape), strict=True)
        if pairs[row, column]
    ]


def kind_counts(false: Sequence[FalsePositive]) -> list[tuple[str, int, float]]:
    """Return type, count and fraction of the false positives."""
    counts = Counter(one.kind for one in false)
    return [(kind.value, counts[kind], counts[kind] / max(1, len(false))) for kind in Kind]


def _without_empty_ends(stacks: Sequence[Stack]) -> list[Stack]:
    used = [number for number, stack in enumerate(stacks) if any(stack.parts)]
    return list(stacks[used[0] : used[-1] + 1]) if used else []
