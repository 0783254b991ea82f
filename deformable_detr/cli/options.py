"""Options and arguments shared by several commands."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from deformable_detr.arguments import LARGEST_COUNT, require_fraction, require_integer
from deformable_detr.messages import in_brief


def whole(at_least: int, at_most: int = LARGEST_COUNT) -> Callable[[str | int], int]:
    """Make the parser of an integer option; an error names the option, the range and the value."""

    def parse(value: str | int) -> int:
        try:
            number = int(value)
            require_integer("it", number, at_least=at_least, at_most=at_most)
        except ValueError:
            raise typer.BadParameter(
                f"must be an integer in {at_least}..{at_most}, got {in_brief(value)}"
            ) from None
        return number

    parse.__name__ = "integer"  # in errors
    return parse


def fraction(value: str | float) -> float:
    """Parse an option in [0, 1]; an error names the option, the range and the value."""
    try:
        number = float(value)
        require_fraction("it", number)
    except ValueError:
        raise typer.BadParameter(f"must be a number in 0..1, got {in_brief(value)}") from None
    return number


fraction.__name__ = "float"  # in errors


def complete_config(incomplete: str) -> list[str]:
    """Return the names of configs that begin with what has been typed, for shells."""
    from deformable_detr.config.loading import config_names  # pydantic takes time to import

    return [name for name in config_names() if name.startswith(incomplete)]


Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE", help="auto, cpu, cuda, cuda:1 or mps; auto is CUDA, else MPS, else CPU."
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace files that this program did not write, or that have changed since; inputs "
        "never.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Override settings of the config, such as train.micro_batch=4.",
        show_default=False,
    ),
]
Checkpoint = Annotated[
    Path,
    typer.Option(
        metavar="FILE", help="Checkpoint of `train`, or weights of another implementation."
    ),
]
