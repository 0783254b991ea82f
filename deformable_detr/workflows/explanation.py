"""Explanation: pictures of what a detector attends to in an image."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from deformable_detr.arguments import require_integer, require_names, require_path
from deformable_detr.detector import Detector
from deformable_detr.engine.run.progress import Tracked
from deformable_detr.engine.run.tracking import Callback
from deformable_detr.messages import in_brief
from deformable_detr.models.necks.level_fusion import LevelFusion
from deformable_detr.photos import ImageLike, as_photo
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
from deformable_detr.workflows.places import require_folder_place
from deformable_detr.workflows.session import kept_torch_state

Cell = tuple[int, int]


@dataclass(frozen=True)
class ExplanationResult:
    """Pictures that explain detections.

    Attributes:
        pictures: the pictures by name, such as "query_1" or "fusion".
        files: the file of each picture by the same names; empty if `out` was not given.
    """

    pictures: dict[str, Image.Image]
    files: dict[str, Path]


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
        device: as for `Detector.from_checkpoint`; a detector stays on its device.
        callback: called with "progress", the number of finished pictures and their total.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: the model has no such layer or neck, `cell` is outside its map, or a value to
            be drawn is infinite or NaN.
        NonFinitePredictionsError: the model's logits or boxes of an image are infinite or NaN.
    """
    require_integer("queries", queries, at_least=0)
    require_integer("noise", noise, at_least=0)
    if cell is not None and not (isinstance(cell, tuple | list) and len(cell) == 2):
        raise ValueError(f"cell must be (row, column), got {in_brief(cell)}")
    for number in cell or ():
        require_integer("row and column of cell", number, at_least=0)
    require_names("deform", deform)
    if erf is not None:
        require_names("erf", [erf])
    if not isinstance(checkpoint, Detector):
        require_path("checkpoint", checkpoint)
    if out is not None:
        require_path("out", out)
        require_folder_place("out", Path(out))
    with kept_torch_state(device) as chosen:
        if not isinstance(checkpoint, Detector):
            checkpoint = Detector.from_checkpoint(checkpoint, str(chosen))
        view = _View(checkpoint, as_photo(photo, exif=checkpoint.exif))
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
    return ExplanationResult(pictures, {} if out is None else _save(pictures, Path(out)))


def _save(pictures: Mapping[str, Image.Image], folder: Path) -> dict[str, Path]:
    """Write the pictures to the folder, and return their files by name."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.png" for name in pictures}
    for name, picture in pictures.items():
        picture.save(files[name])
    return files


class _View:
    """Detector and the image that it is explained on."""

    def __init__(self, detector: Detector, image: Image.Image) -> None:
        self._detector, self._image = detector, image
        self._batch = ImageBatch.from_images([detector.preprocess(image)]).to(detector.device)
        height, width = self._batch.images.shape[2:]
        self._share = image_share(detector.model, (height, width))

    def queries(self, count: int) -> dict[str, Image.Image]:
        """Draw the attention of the best detections in the last decoder layer."""
        names = self._detector.label_space.names
        looks = self._detector.explain(self._image, queries=count)
        return {
            f"query_{rank}": draw_query(self._image, look, names)
            for rank, look in enumerate(looks, start=1)
        }

    def receptive_field(self, layer: str, cell: Cell | None, noise: int) -> dict[str, Image.Image]:
        images = self._batch.images
        if noise:
            generator = torch.Generator().manual_seed(0)
            shape = (noise, *images.shape[1:])
            images = torch.randn(shape, generator=generator).to(images)
        field = effective_receptive_field(self._detector.model, images, layer, cell=cell)
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
