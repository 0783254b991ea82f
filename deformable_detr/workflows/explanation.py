"""Explanation: pictures of what a detector attends to in an image."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from deformable_detr.arguments import MOST_NOISE, checked, require_integer
from deformable_detr.data.channel_images import as_image
from deformable_detr.detector import Detector
from deformable_detr.engine.run.progress import Tracked
from deformable_detr.engine.run.tracking import Callback
from deformable_detr.files import as_path, encoded
from deformable_detr.files.output_folder import OutputFolder
from deformable_detr.models.necks.level_fusion import LevelFusion
from deformable_detr.photos import ImageLike
from deformable_detr.pixels.channels import AnyImage, to_rgb
from deformable_detr.structures import ImageBatch
from deformable_detr.visualize.attention import image_share, record_outputs
from deformable_detr.visualize.deform_points import chained_points, record_deform_convs
from deformable_detr.visualize.pictures import (
    draw_deform_points,
    draw_level_weights,
    draw_query,
    draw_receptive_field,
)
from deformable_detr.visualize.receptive_field import effective_receptive_field
from deformable_detr.workflows.session import kept_torch_state

Cell = tuple[int, int]
_NOISE_PIXELS = 2**19  # of noise images that run at once; the backward pass keeps 4 kB for each
_MOST_CHECKED = 1000  # queries whose pictures are looked for before the work; models have 300


@dataclass(frozen=True)
class ExplanationResult:
    """Pictures that explain detections.

    Attributes:
        pictures: the pictures by name, such as "query_1" or "fusion".
        files: the file of each picture by the same names; empty if `out` was not given.
    """

    pictures: dict[str, Image.Image]
    files: dict[str, Path]


@checked
def explain(
    photo: ImageLike,
    *,
    checkpoint: str | Path | Detector,
    out: str | Path | None = None,
    queries: int = 3,
    erf: str | None = None,
    noise: int = 0,
    deform: Sequence[str] = (),
    fusion: bool = False,
    cell: Cell | None = None,
    overwrite: bool = False,
    device: str = "auto",
    callback: Callback | None = None,
) -> ExplanationResult:
    """Draw what a detector attends to: sampling points, receptive fields, level weights.

    Layers have the names of the model's modules, such as "neck.projections.0".

    Args:
        photo: an image as for `Detector.predict`.
        checkpoint: a file as for `Detector.from_checkpoint`, or a detector.
        out: folder for the pictures.
        queries: number of detections, best first, whose sampling points are drawn.
        erf: the layer of whose cell the effective receptive field is drawn.
        noise: average the receptive field over this many noise images; 0 uses the image.
        deform: deformable convolutions: the sampling points of one, or of the chain of several
            consecutive ones, are drawn.
        fusion: draw the level weights of an ASFF neck.
        cell: (row, column) of the feature map for `erf` and `deform`; None for its center.
        overwrite: as for `predict`.
        device: as for `Detector.from_checkpoint`; a detector stays on its device.
        callback: called with "progress", the number of finished pictures and their total.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: the model has no such layer or neck, `cell` is outside its map, or a value to
            be drawn is infinite or NaN, or a file would be replaced that must not be.
        WriteError: a file could not be written, as on a full disk; the earlier ones are kept.
        NonFinitePredictionsError: the model's logits or boxes of an image are infinite or NaN.
    """
    require_integer("queries", queries, at_least=0)
    require_integer("noise", noise, at_least=0, at_most=MOST_NOISE)
    for number in cell or ():
        require_integer("row and column of cell", number, at_least=0)
    if not isinstance(checkpoint, Detector):
        checkpoint = as_path("checkpoint", checkpoint)
    folder = None if out is None else OutputFolder(as_path("out", out), "out", overwrite=overwrite)
    if folder is not None:
        given = [Path(one) for one in (photo, checkpoint) if isinstance(one, str | Path)]
        folder.check(_output_names(queries, erf, deform, fusion), inputs=given)
    with kept_torch_state(device) as chosen:
        if not isinstance(checkpoint, Detector):
            checkpoint = Detector.from_checkpoint(checkpoint, str(chosen))
        channels = checkpoint.channels
        view = _View(checkpoint, as_image(photo, exif=checkpoint.exif, channels=channels))
        work: list[Callable[[], dict[str, Image.Image]]] = []
        if queries:
            work.append(lambda: view.queries(queries))
        if erf is not None:
            work.append(lambda: view.receptive_field(erf, cell, noise))
        if deform:
            work.append(lambda: view.deform_points(deform, cell))
        if fusion:
            work.append(view.fusion)
        # Draw all pictures before writing the first: an error leaves no incomplete set.
        pictures: dict[str, Image.Image] = {}
        for draw in Tracked(work, "explaining", callback=callback):
            pictures |= draw()
    return ExplanationResult(pictures, {} if folder is None else _save(pictures, folder))


def _output_names(queries: int, erf: str | None, deform: Sequence[str], fusion: bool) -> list[str]:
    """List the files that may be written; of a chain of layers, the last one names the picture."""
    names = [f"query_{rank}" for rank in range(1, min(queries, _MOST_CHECKED) + 1)]
    names += [] if erf is None else [f"erf_{erf}"]
    names += [f"deform_{layer}" for layer in deform]
    names += ["fusion"] if fusion else []
    return [f"{name}.png" for name in names]


def _save(pictures: Mapping[str, Image.Image], folder: OutputFolder) -> dict[str, Path]:
    """Write the pictures to the folder, and return their files by name."""
    files = {}
    for name, picture in pictures.items():
        data = encoded(picture, f"{name}.png")
        files[name] = folder.write(f"{name}.png", partial(_write_bytes, data))
    return files


def _write_bytes(data: bytes, temporary: Path) -> None:
    temporary.write_bytes(data)


class _View:
    """Detector and the image that it is explained on."""

    def __init__(self, detector: Detector, image: AnyImage) -> None:
        self._detector, self._given, self._image = detector, image, to_rgb(image)
        self._batch = ImageBatch.from_images([detector.preprocess(image)]).to(detector.device)
        height, width = self._batch.images.shape[2:]
        self._share = image_share(detector.model, (height, width))

    def queries(self, count: int) -> dict[str, Image.Image]:
        """Draw the attention of the best detections in the last decoder layer."""
        categories = self._detector.label_space
        looks = self._detector.explain(self._given, queries=count)
        return {
            f"query_{rank}": draw_query(self._image, look, categories)
            for rank, look in enumerate(looks, start=1)
        }

    def receptive_field(self, layer: str, cell: Cell | None, noise: int) -> dict[str, Image.Image]:
        model, image = self._detector.model, self._batch.images
        if not noise:
            field = effective_receptive_field(model, image, layer, cell=cell)
            return {f"erf_{layer}": draw_receptive_field(self._image, field)}
        generator = torch.Generator().manual_seed(0)
        at_once = max(1, _NOISE_PIXELS // image[0, 0].numel())
        strength = torch.zeros((), dtype=torch.float64)
        for first in range(0, noise, at_once):
            count = min(at_once, noise - first)
            images = torch.randn((count, *image.shape[1:]), generator=generator).to(image)
            field = effective_receptive_field(model, images, layer, cell=cell)
            strength = strength + count / noise * field.strength
        field = replace(field, strength=strength)
        return {f"erf_{layer}": draw_receptive_field(self._image, field)}

    def deform_points(self, layers: Sequence[str], cell: Cell | None) -> dict[str, Image.Image]:
        model = self._detector.model
        with torch.inference_mode(), record_deform_convs(model) as calls:
            model(self._batch)
        known = [call.module for call in calls]
        unknown = [layer for layer in layers if layer not in known]
        if unknown:
            raise ValueError(
                f"deform must name deformable convolutions of the model, got {', '.join(unknown)}; "
                f"it has {', '.join(known) or 'none'}"
            )
        chain = [call for call in calls if call.module in layers]
        H, W = chain[-1].output_size
        row, column = cell or (H // 2, W // 2)
        points = chained_points(chain, (row, column))
        height, width = chain[0].input_size
        share_x, share_y = self._share
        relative = points / points.new_tensor([width * share_x, height * share_y])
        center = ((column + 0.5) / (W * share_x), (row + 0.5) / (H * share_y))
        last = chain[-1].module
        title = f"{last}, cell {row},{column} of {H} x {W}"
        if len(chain) > 1:
            title = f"{len(chain)} layers from {chain[0].module}\nto {title}"
        picture = draw_deform_points(self._image, relative, center, title)
        return {f"deform_{last}": picture}

    def fusion(self) -> dict[str, Image.Image]:
        model = self._detector.model
        with torch.inference_mode(), record_outputs(model, LevelFusion) as calls:
            model(self._batch)
        if not calls:
            raise ValueError("fusion needs a model with an ASFF neck, got one without")
        weights = [level.weights[0] for _, level in calls]
        return {"fusion": draw_level_weights(self._image, weights, share=self._share)}
