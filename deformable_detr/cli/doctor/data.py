"""`deformable-detr doctor data`: every problem of a data set, in one pass."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deformable_detr.cli.terminal import cell

if TYPE_CHECKING:
    from deformable_detr.inspection.findings import Finding
    from deformable_detr.workflows.doctor.data_check import DataCheck

EXIT_ERRORS = 1
SHOWN_EXAMPLES = 3
_COLORS = {"error": "bold red", "warning": "yellow", "count": "dim"}


def data(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="DIR_OR_FILE",
            help="Folder of a data set in COCO JSON, YOLO or Pascal VOC, or an annotation file.",
            show_default=False,
        ),
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the images; without it, that of the name of the annotation file.",
        ),
    ] = None,
    photos: Annotated[
        bool, typer.Option("--photos/--no-photos", help="Decode every image file, or none.")
    ] = True,
    fix: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT",
            help="Write a repaired copy: a new JSON file, or a new folder if DIR is checked.",
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Find every problem of a data set in one pass.

    Exit code 0: no errors; 1: errors; 2: the command cannot do its work.

    Examples:
        deformable-detr doctor data photos
        deformable-detr doctor data photos/train.json --images photos/train
        deformable-detr doctor data photos --fix photos_repaired
    """
    from deformable_detr.workflows.doctor.data_check import check_data

    check = check_data(path, images=images, photos=photos, fix=fix)
    if json_:
        typer.echo(json.dumps(check.as_json(), allow_nan=False))
    else:
        _print(check)
    if check.count("error") if fix is None else check.left:
        raise typer.Exit(EXIT_ERRORS)


def _print(check: "DataCheck") -> None:
    console = Console(highlight=False)
    console.print(
        f"{check.num_images} images, {check.num_annotations} annotations: "
        f"{check.count('error')} errors, {check.count('warning')} warnings"
    )
    if check.findings:
        console.print(_table(check))
    for text, number in check.repairs.items():
        console.print(f"{number:6} {text}")
    if check.fixed is not None:
        console.print(f"written: {cell(check.fixed)}", soft_wrap=True)
    for finding in check.left:
        text = f"{cell(Path(finding.file))}: {escape(finding.message)}; {escape(finding.remedy)}"
        console.print(f"[bold red]left:[/] {text}")


def _table(check: "DataCheck") -> Table:
    table = Table(show_lines=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("number", justify="right", no_wrap=True)
    table.add_column("meaning, first examples and remedy", overflow="fold")
    ordered = sorted(check.findings, key=lambda finding: list(_COLORS).index(finding.level))
    kinds: dict[str, list[Finding]] = {}
    for finding in ordered:
        kinds.setdefault(finding.kind, []).append(finding)
    for kind, found in kinds.items():
        color = _COLORS[found[0].level]
        table.add_row(f"[{color}]{kind}[/]", str(check.counts[kind]), _text(found))
    return table


def _text(found: list["Finding"]) -> str:
    """Return meaning, first examples and remedy of a kind, escaped."""
    first = found[0]
    lines = [f"[bold]{escape(first.meaning)}[/]"]
    if first.level != "count":
        examples = found[:SHOWN_EXAMPLES]
        lines += [f"{cell(Path(one.file))}: {escape(one.message)}" for one in examples]
        lines.append(f"[italic]{escape(first.remedy)}[/]")
    return "\n".join(lines)
