"""Draw sampling points, receptive fields and level weights on images."""

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from deformable_detr.finite import require_finite_values
from deformable_detr.labels import LabelSpace
from deformable_detr.visualize.attention import QueryAttention
from deformable_detr.visualize.fonts import drawn_name, matplotlib_families, title_text
from deformable_detr.visualize.receptive_field import ReceptiveField

DPI = 100
LONG_SIDE_INCHES = 10.0  # of the image in a figure
PANEL_INCHES = 3.2  # long side of each of several images in a figure
MARGIN_INCHES = 1.6  # for titles and the colorbar
TITLE_CHARACTERS_PER_INCH, MIN_TITLE_CHARACTERS = 12, 24  # a longer one has several lines
MARKERS = ("o", "s", "^", "D", "v", "p", "h", "8")  # by level, finest first
HIGHLIGHT = "#39ff14"
COLORMAP = "plasma"
INNER_SHARE, OUTER_SHARE = 0.5, 0.95  # of the strength of a receptive field, as squares


def draw_query(image: Image.Image, look: QueryAttention, categories: LabelSpace) -> Image.Image:
    """Draw the sampling points of a query, as in figure 6 of the Deformable DETR paper.

    Color shows the attention weight, the marker the level, the cross the reference point and the
    rectangle the predicted box. The title has the number of points outside the image.

    Args:
        image: RGB image.
        look: attention of a query in the image.
        categories: categories of the K labels.
    """
    width, height = image.size
    figure, axes = _figure(image)
    M, L, P = look.weights.shape
    points = (look.points * look.points.new_tensor([width, height])).numpy()
    weights = look.weights.numpy()
    for level in range(L):
        order = weights[:, level].flatten().argsort()  # the largest weights are drawn last
        x, y = points[:, level].reshape(-1, 2)[order].T
        scatter = axes.scatter(
            x,
            y,
            c=weights[:, level].flatten()[order],
            cmap=COLORMAP,
            vmin=0,
            vmax=float(weights.max()),
            marker=MARKERS[level % len(MARKERS)],
            s=42,
            edgecolors="white",
            linewidths=0.6,
            label=f"level {level}" + (" (finest)" if level == 0 else ""),
        )
    center_x, center_y, box_width, box_height = look.box_cxcywh.tolist()
    _rectangle(
        axes,
        (center_x - box_width / 2) * width,
        (center_y - box_height / 2) * height,
        box_width * width,
        box_height * height,
    )
    x, y = look.reference_point.tolist()
    _cross(axes, x * width, y * height)
    inside = (points >= 0).all(-1) & (points[..., 0] <= width) & (points[..., 1] <= height)
    name = drawn_name(categories, look.label)
    title = (
        f"{title_text(name)} {look.score:.2f}: {M} heads x {L} levels x {P} points, "
        f"{int((~inside).sum())} outside the image"
    )
    inches = figure.get_figwidth() - MARGIN_INCHES
    columns = max(MIN_TITLE_CHARACTERS, int(inches * TITLE_CHARACTERS_PER_INCH))
    axes.set_title(textwrap.fill(title, columns), family=matplotlib_families(name))
    legend = axes.legend(loc="upper right", fontsize=8, framealpha=0.7)
    for handle in filter(None, legend.legend_handles):  # markers only; colors show weights
        handle.set(array=None, facecolor="white", edgecolor="black")
    figure.colorbar(scatter, ax=axes, shrink=0.7, label="attention weight (sums to 1 per head)")
    return _render(figure)


def draw_receptive_field(image: Image.Image, field: ReceptiveField) -> Image.Image:
    """Draw the effective receptive field of a cell over the image, with its size in the title.

    Brightness is the square root of the strength; otherwise the outer part would be black.
    The squares contain half and 95 percent of the strength.

    Args:
        image: RGB image of any size; it is shown at the size of the model's input.
        field: receptive field in an input with the image's aspect ratio.
    """
    H, W = field.strength.shape
    figure, axes = _figure(image, size=(W, H), gray=True)
    strength = field.strength.numpy()
    peak = strength.max() or 1.0
    shown = np.sqrt(strength / peak)
    drawn = axes.imshow(
        shown,
        cmap="inferno",
        vmin=0,
        vmax=1,
        alpha=np.clip(2 * shown, 0, 1),
        extent=(0, W, H, 0),
        interpolation="nearest",
    )
    sides = []
    for share, style in ((INNER_SHARE, "-"), (OUTER_SHARE, "--")):
        x0, y0, x1, y1 = field.energy_square(share)
        _rectangle(axes, x0, y0, x1 - x0, y1 - y0, linestyle=style)
        sides.append(f"{share:.0%} within {x1 - x0:.0f} x {y1 - y0:.0f} px")
    row, column = field.cell
    rows, columns = field.map_size
    height, width = field.reach()
    axes.set_title(
        f"{field.layer}, cell {row},{column} of {rows} x {columns}\n"
        f"gradient: {', '.join(sides)}, not zero in {height} x {width} of {H} x {W} px"
    )
    figure.colorbar(
        drawn, ax=axes, shrink=0.7, label="square root of |gradient|, relative to the maximum"
    )
    return _render(figure)


def draw_level_weights(
    image: Image.Image, weights: Sequence[Tensor], *, share: tuple[float, float] = (1.0, 1.0)
) -> Image.Image:
    """Draw the weights between levels: one row per target level, one column per source level.

    Args:
        image: RGB image without padding.
        weights: L tensors (L, H_l, W_l), one per target level, finest first; they sum to 1 over
            the source levels.
        share: share of the maps' (width, height) that the image takes.
    """
    for level, values in enumerate(weights):
        require_finite_values(values, f"weights to level {level}")
    L = len(weights)
    width, height = _inches(image.size, PANEL_INCHES)
    figure = Figure((L * width + MARGIN_INCHES, L * (height + 0.3) + 0.5), layout="constrained")
    panels = figure.subplots(L, L, squeeze=False)
    for target, (row, row_weights) in enumerate(zip(panels, weights, strict=True)):
        for source, axes in enumerate(row):
            _show(axes, image, image.size, gray=True)
            H, W = row_weights.shape[1:]
            columns, rows = W * share[0], H * share[1]  # that the image takes
            cells = row_weights[source, : math.ceil(rows), : math.ceil(columns)]
            shares = cells.detach().float().cpu().numpy()
            drawn = axes.imshow(
                shares,
                cmap=COLORMAP,
                vmin=0,
                vmax=1,
                alpha=0.65,
                extent=(
                    0,
                    image.width * cells.shape[1] / columns,
                    image.height * cells.shape[0] / rows,
                    0,
                ),
                interpolation="nearest",
            )
            axes.set(xlim=(0, image.width), ylim=(image.height, 0))
            axes.set_title(f"to level {target} from {source}: mean {shares.mean():.2f}", fontsize=9)
    figure.colorbar(drawn, ax=panels, shrink=0.6, label="weight (sums to 1 per row)")
    return _render(figure)


def draw_deform_points(
    image: Image.Image, points: Tensor, center: tuple[float, float], title: str
) -> Image.Image:
    """Draw the sampling points of a deformable convolution, or of a chain of them.

    Args:
        image: RGB image without padding.
        points: (any number, 2) points (x, y) relative to the image, in [0, 1] inside it.
        center: (x, y) of the output cell, relative to the image.
        title: title of the figure; the number of points is appended.
    """
    figure, axes = _figure(image)
    scale = points.new_tensor(image.size)
    x, y = (points * scale).detach().cpu().numpy().T
    size = 40 if len(x) <= 9 else 14
    axes.scatter(x, y, s=size, c="red", edgecolors="white", linewidths=0.4)
    _cross(axes, center[0] * image.width, center[1] * image.height)
    axes.set_title(f"{title}: {len(x)} points")
    return _render(figure)


def _figure(
    image: Image.Image, *, size: tuple[int, int] | None = None, gray: bool = False
) -> tuple[Figure, Axes]:
    """Create a figure of one image, with coordinates in pixels of (width, height) `size`."""
    width, height = _inches(image.size, LONG_SIDE_INCHES)
    figure = Figure((width + MARGIN_INCHES, height + 0.6), layout="constrained")
    axes = figure.subplots()
    _show(axes, image, size or image.size, gray=gray)
    return figure, axes


def _show(axes: Axes, image: Image.Image, size: tuple[int, int], *, gray: bool = False) -> None:
    width, height = size
    photo = image.convert("L").convert("RGB") if gray else image
    axes.imshow(np.asarray(photo), extent=(0, width, height, 0), interpolation="bilinear")
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_axis_off()


def _rectangle(
    axes: Axes, left: float, top: float, width: float, height: float, *, linestyle: str = "-"
) -> None:
    axes.add_patch(
        Rectangle(
            (left, top), width, height, fill=False, color=HIGHLIGHT, lw=1.8, linestyle=linestyle
        )
    )


def _cross(axes: Axes, x: float, y: float) -> None:
    axes.plot([x], [y], marker="+", markersize=16, markeredgewidth=2.5, color=HIGHLIGHT)


def _inches(size: tuple[int, int], long_side: float) -> tuple[float, float]:
    """Return the (width, height) of an image with that long side."""
    scale = long_side / max(size)
    return max(size[0] * scale, 1.0), max(size[1] * scale, 1.0)


def _render(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(DPI)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
