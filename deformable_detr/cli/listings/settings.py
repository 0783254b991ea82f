"""`deformable-detr settings`: the settings of configs, all or those with a word."""

from typing import Annotated

import typer

from deformable_detr.cli.terminal import echo, in_one_line, wrapped


def settings(
    word: Annotated[
        str | None,
        typer.Argument(
            metavar="WORD",
            help="List the settings that have it in their key or description, with type and whole "
            "description.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """List the settings of configs: key, default, description.

    Commands take a line such as train.epochs=50 as it stands; quote one with spaces.

    Examples:
        deformable-detr settings
        deformable-detr settings learning
        deformable-detr settings train.optimizer
    """
    from deformable_detr.config.reference import find_settings  # pydantic takes time to import

    for one in find_settings(word or ""):
        echo(f"{one.key}={one.default}" if one.default else f"{one.key}, must be given")
        if word is None:
            echo(in_one_line(one.text, indent=4))
            continue
        of_kinds = f" (of {', '.join(one.kinds)})" if one.kinds else ""
        echo(wrapped(f"    {one.type.replace('`', '')}{of_kinds}", indent=4))
        echo(wrapped(f"    {one.text}", indent=4))
