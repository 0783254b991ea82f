"""`deformable-detr explain`: draws where a detector looks."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

# What needs PyTorch is imported when the command runs, so that help is there at once.
if TYPE_CHECKING:
    from PIL import Image

    from deformable_detr.detector import Detector
    from deformable_detr.structures import ImageBatch

Cell = tuple[int, int]


def explain(
    photo: Annotated[Path, typer.Argument(metavar="PHOTO", help="A photo.")],
    checkpoint: Annotated[
        Path, typer.Option(metavar="FILE", help="Checkpoint written by `train`.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the pictures.")],
    queries: Annotated[
        int,
        typer.Option(min=0, help="Draw the sampling points of this many of the best detections."),
    ] = 3,
    erf: Annotated[
        str | None,
        typer.Option(
            metavar="LAYER", help="Draw the effective receptive field of a cell of this layer."
        ),
    ] = None,
    noise: Annotated[
        int,
        typer.Option(
            min=0, help="Average the receptive field over this many images of noise, not the photo."
        ),
    ] = 0,
    deform: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYER",
            help="Draw the sampling points of this deformable convolution; of several layers, "
            "which follow each other, those of the chain.",
        ),
    ] = None,
    fusion: Annotated[
        bool, typer.Option("--fusion", help="Draw the weights of the levels of an ASFF neck.")
    ] = False,
    cell: Annotated[
        str | None,
        typer.Option(
            metavar="ROW,COLUMN", help="For --erf and --deform; the one in the middle if not given."
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps; auto takes the fastest.")
    ] = "auto",
) -> None:
    """Draw where a detector looks: sampling points, receptive fields, weights of levels.

    Layers are named as in the model, such as neck.projections.0; a wrong name is answered with
    the nearest ones. Pictures have the names of what they show.
    """
    place = None if cell is None else _parse_cell(cell)

    from deformable_detr.detector import Detector
    from deformable_detr.photos import read_photo
    from deformable_detr.structures import ImageBatch

    image = read_photo(photo)
    detector = Detector.from_checkpoint(checkpoint, device)
    batch = ImageBatch.from_images([detector.preprocess(image)]).to(detector.device)
    # All are drawn before the first is written: an error leaves no half of an answer.
    pictures = dict(_query_pictures(detector, image, queries)) if queries else {}
    if erf is not None:
        pictures[f"erf_{erf}.png"] = _receptive_field(detector, image, batch, erf, place, noise)
    if deform:
        last, picture = _deform_points(detector, image, batch, deform, place)
        pictures[f"deform_{last}.png"] = picture
    if fusion:
        pictures["fusion.png"] = _fusion(detector, image, batch)
    out.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        picture.save(out / name)
        typer.echo(str(out / name))


def _parse_cell(text: str) -> Cell:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--cell must be ROW,COLUMN, two whole numbers, got {text!r}")
    return int(parts[0]), int(parts[1])


def _query_pictures(
    detector: "Detector", image: "Image.Image", count: int
) -> "Iterator[tuple[str, Image.Image]]":
    """Names and pictures of the best detections, by the last layer of the decoder."""
    from deformable_detr.visualize.pictures import draw_query

    for rank, look in enumerate(detector.explain(image, queries=count), start=1):
        yield f"query_{rank}.png", draw_query(image, look, detector.label_space.names)


def _receptive_field(
    detector: "Detector",
    image: "Image.Image",
    batch: "ImageBatch",
    layer: str,
    cell: Cell | None,
    noise: int,
) -> "Image.Image":
    import torch

    from deformable_detr.visualize.pictures import draw_receptive_field
    from deformable_detr.visualize.receptive_field import effective_receptive_field

    images = batch.images
    if noise:
        generator = torch.Generator().manual_seed(0)
        shape = (noise, *images.shape[1:])
        images = torch.randn(shape, generator=generator).to(images)
    field = effective_receptive_field(detector.model, images, layer, cell=cell)
    return draw_receptive_field(image, field)


def _deform_points(
    detector: "Detector",
    image: "Image.Image",
    batch: "ImageBatch",
    layers: list[str],
    cell: Cell | None,
) -> "tuple[str, Image.Image]":
    """The last of the layers, and the picture."""
    import torch

    from deformable_detr.visualize.deform_points import chained_points, record_deform_convs
    from deformable_detr.visualize.pictures import draw_deform_points

    with torch.inference_mode(), record_deform_convs(detector.model) as calls:
        detector.model(batch)
    known = [call.module for call in calls]
    unknown = [layer for layer in layers if layer not in known]
    if unknown:
        raise ValueError(
            f"--deform must name deformable convolutions of the model, got {', '.join(unknown)}; "
            f"it has {', '.join(known) or 'none'}"
        )
    chain = [call for call in calls if call.module in layers]
    H, W = chain[-1].output_size
    row, column = cell or (H // 2, W // 2)
    points = chained_points(chain, (row, column))
    height, width = chain[0].input_size
    relative = points / points.new_tensor([width, height])
    center = ((column + 0.5) / W, (row + 0.5) / H)
    last = chain[-1].module
    title = f"{last}, cell {row},{column} of {H} x {W}"
    if len(chain) > 1:
        title = f"{len(chain)} layers from {chain[0].module}\nto {title}"
    return last, draw_deform_points(image, relative, center, title)


def _fusion(detector: "Detector", image: "Image.Image", batch: "ImageBatch") -> "Image.Image":
    import torch

    from deformable_detr.models.necks.level_fusion import LevelFusion
    from deformable_detr.visualize.attention import record_outputs
    from deformable_detr.visualize.pictures import draw_level_weights

    with torch.inference_mode(), record_outputs(detector.model, LevelFusion) as calls:
        detector.model(batch)
    if not calls:
        raise ValueError("--fusion must be given for a model with an ASFF neck, got one without")
    return draw_level_weights(image, [level.weights[0] for _, level in calls])
