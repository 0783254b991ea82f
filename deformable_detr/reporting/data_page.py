"""Write a self-contained page about a data set, without network or scripts."""

import base64
import io
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from deformable_detr.files import write_whole
from deformable_detr.reporting.data_findings import MOST_DETECTIONS, SMALL_PX, DataFindings
from deformable_detr.reporting.report import template_environment
from deformable_detr.visualize.charts import Chart, Stack

SIDES_PX = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192)
COUNTS = (1, 2, 5, 10, 20, 50, 100, 200)
RATIOS = {"1:3": 1 / 3, "1:2": 1 / 2, "2:3": 2 / 3, "1:1": 1.0, "3:2": 1.5, "2:1": 2.0, "3:1": 3.0}
CELLS = 32  # of the map of centers, along each side
CELL_PX = 9
INK = (11, 102, 176)  # of the largest number of the map


def write_data_page(
    path: Path, name: str, findings: DataFindings, pictures: Sequence[tuple[str, Image.Image]]
) -> None:
    """Write the HTML page.

    Args:
        path: path of the file.
        name: name of the data set.
        findings: what it shows.
        pictures: file names and pictures of some images with their annotations.
    """
    page = (
        template_environment()
        .get_template("data.html")
        .render(
            name=name,
            data=findings,
            classes=findings.class_counts.items(),
            most=max((sum(one) for one in findings.class_counts.values()), default=0),
            small_px=SMALL_PX,
            most_detections=MOST_DETECTIONS,
            charts=charts(findings),
            places=_map_uri(center_map(findings)),
            pictures=[(file, _uri(picture, "JPEG")) for file, picture in pictures],
        )
    )
    with write_whole(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def charts(findings: DataFindings) -> list[Chart]:
    """Build the charts of sizes, of objects per image, and of aspect ratios."""
    splits = findings.splits
    names = tuple(one.name for one in splits)
    ratios = [one.box_sizes[:, 0] / one.box_sizes[:, 1] for one in splits]
    values = list(RATIOS.values())
    between = [math.sqrt(low * high) for low, high in pairwise(values)]
    made = (
        (
            "Size of objects as the model sees them",
            "square root of the area, from so many pixels",
            _histogram([one.seen_px for one in splits], SIDES_PX, _from(SIDES_PX)),
            "objects",
        ),
        (
            "Objects per image",
            "from so many objects",
            _histogram([one.num_objects for one in splits], COUNTS, _from(COUNTS)),
            "images",
        ),
        (
            "Shape of objects",
            "width : height, nearest",
            _histogram(ratios, between, list(RATIOS)),
            "objects",
        ),
    )
    return [
        Chart(title, x_label, y_label, names, stacks=stacks)
        for title, x_label, stacks, y_label in made
    ]


def _from(edges: Sequence[float]) -> list[str]:
    """Return the labels of bins that begin at edges, with one before the first."""
    return [f"<{edges[0]:g}", *(f"{one:g}" for one in edges)]


def _histogram(
    values: Sequence[npt.NDArray[np.generic]], edges: Sequence[float], labels: Sequence[str]
) -> tuple[Stack, ...]:
    """Count the values of each set between edges; there is one more bin than edges."""
    limits = [-np.inf, *edges, np.inf]
    counts = [np.histogram(one.astype(float), limits)[0] for one in values]
    return tuple(
        Stack(label, tuple(float(own[place]) for own in counts))
        for place, label in enumerate(labels)
    )


def center_map(findings: DataFindings) -> npt.NDArray[np.int64]:
    """Count the centers of objects by their place in the image, as (row, column) of a grid."""
    counts = np.zeros((CELLS, CELLS), np.int64)
    for one in findings.splits:
        centers = (one.boxes_xyxy[:, :2] + one.boxes_xyxy[:, 2:]) / 2
        cells = (centers / one.sizes[one.owners][:, ::-1] * CELLS).astype(np.int64)
        columns, rows = cells.clip(0, CELLS - 1).T
        np.add.at(counts, (rows, columns), 1)
    return counts


def _map_uri(counts: npt.NDArray[np.int64]) -> str:
    share = counts[..., None] / max(int(counts.max()), 1)
    colors = 255 + share * (np.array(INK) - 255)
    picture = Image.fromarray(colors.astype(np.uint8))
    side = CELLS * CELL_PX
    return _uri(picture.resize((side, side), Image.Resampling.NEAREST), "PNG")


def _uri(picture: Image.Image, kind: str) -> str:
    data = io.BytesIO()
    picture.save(data, kind)
    text = base64.b64encode(data.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{text}"
