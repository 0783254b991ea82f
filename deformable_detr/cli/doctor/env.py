"""`deformable-detr doctor env`: examine the installation."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from deformable_detr.cli.terminal import echo, sentence

if TYPE_CHECKING:
    from deformable_detr.workflows.doctor.installation import Installation

EXIT_BROKEN = 1


def env(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show versions, operators and devices, and what is wrong.

    A speed test of about 2 seconds runs deformable attention, forward and backward, for an encoder
    layer of a 256 x 256 image, by each back-end, and compares their results. The exit code is 1 if
    something is broken, and 0 if something is only slow.

    Examples:
        deformable-detr doctor env
        deformable-detr doctor env --json
    """
    # PyTorch code is imported when the command runs, so that --help is fast.
    try:
        from deformable_detr.finite import to_json
        from deformable_detr.workflows.doctor.installation import examine_installation
    except ImportError as error:
        echo(f"broken: a package cannot be imported ({error}); reinstall it with pip")
        raise typer.Exit(EXIT_BROKEN) from None
    found = examine_installation()
    if as_json:
        typer.echo(to_json(found.as_record(), "installation", indent=2))
    else:
        _print(found)
    if found.is_broken:
        raise typer.Exit(EXIT_BROKEN)


def _print(found: "Installation") -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in _lines(found):
        table.add_row(name, sentence(value))
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    for finding in found.findings:
        word = "[bold red]broken:[/]" if finding.is_broken else "[bold yellow]warning:[/]"
        console.print(f"{word} {sentence(finding.what)}; {sentence(finding.remedy)}")
    if not found.findings:
        console.print("[bold green]nothing is wrong[/]")


def _lines(found: "Installation") -> Iterator[tuple[str, str]]:
    for name, version in found.versions.items():
        yield name, version or "missing"
    yield "native operators", found.extension
    for device, backends in found.operators.items():
        for backend, reason in backends.items():
            yield f"{device} {backend}", reason or "available"
    if found.instruction_set:
        supported = ", ".join(found.instruction_sets)
        yield "CPU kernels", f"{found.instruction_set} in use, of {supported}"
        yield "CUDA kernels", ", ".join(found.architectures) or "none"
    for device, name in found.gpus.items():
        yield device, name
    yield "CPU", found.cpu
    yield "cores, threads", f"{found.cores}, {found.threads}"
    if found.memory is not None:
        total, available = found.memory
        yield "memory", f"{_gib(total)}, {_gib(available)} available"
    if found.shared_memory is not None:
        yield "shared memory", f"{_gib(found.shared_memory)} free"
    for speed in found.speed:
        for backend, ms in speed.ms.items():
            yield f"speed, {speed.device} {backend}", f"{ms:.1f} ms"
        if speed.difference is not None:
            yield "difference of results", f"{speed.difference:.1g} of the largest value"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
