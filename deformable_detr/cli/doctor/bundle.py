"""`deformable-detr doctor bundle`: diagnose a failed step of a run."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from deformable_detr.cli.terminal import cell, sentence
from deformable_detr.messages import counted

if TYPE_CHECKING:
    from deformable_detr.engine.failures.bundle import FailureBundle
    from deformable_detr.engine.failures.replay import Examination

EXIT_NOT_REPRODUCED = 1
SHOWN_GRADIENTS = 10


def bundle(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Failure bundle: failure_step_N_rank_R.pth of a run folder.",
            show_default=False,
        ),
    ],
) -> None:
    """Run a failed step of a run again on the CPU: the likely cause.

    The exit code is 1 if the step does not fail here.

    Examples:
        deformable-detr doctor bundle runs/photos/failure_step_120_rank_0.pth
    """
    # PyTorch code is imported when the command runs, so that --help is fast.
    from deformable_detr.workflows.doctor.replay import replay_bundle

    replay = replay_bundle(path)
    found, examination = replay.bundle, replay.examination
    console = Console(highlight=False)
    console.print(_circumstances(found, examination))
    if found.examination["gradient_norms"] or examination.gradient_norms:
        console.print(_gradients(found, examination))
    if examination.is_finite:
        console.print("[bold yellow]not reproduced:[/] on this CPU the step is finite")
        raise typer.Exit(EXIT_NOT_REPRODUCED)
    console.print("[bold green]reproduced:[/] on this CPU the step fails as well")


def _circumstances(found: "FailureBundle", examination: "Examination") -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in _lines(found, examination):
        table.add_row(name, value)
    return table


def _lines(found: "FailureBundle", examination: "Examination") -> Iterator[tuple[str, str]]:
    _, _, height, width = found.images.shape
    yield "step", f"{found.step}, rank {found.rank}, {found.precision}"
    for target in found.targets:
        yield "image", f"id {target['image_id']}, {counted(len(target['labels']), 'object')}"
    yield "padded size", f"{height} x {width}"
    yield "error", sentence(found.message)
    yield "likely cause", f"[bold red]{sentence(found.cause)}[/]"
    rates = found.learning_rates.items()
    yield "learning rates", ", ".join(f"{role} {rate:g}" for role, rate in rates)
    norms = found.weight_norms
    yield "norm of weights", ", ".join(f"{norm:.4g} at step {step}" for step, norm in norms[-3:])
    if found.scaler:
        yield "loss scale", f"{found.loss_scale:g}"
    yield (
        "first non-finite (recorded)",
        _first(found.examination["forward"], found.examination["backward"]),
    )
    yield "first non-finite (this machine)", _first(examination.forward, examination.backward)
    if examination.refusal:
        yield "loss (this machine)", sentence(examination.refusal)
    else:
        yield "loss (this machine)", f"{examination.loss:.6g}"


def _first(forward: str, backward: str) -> str:
    """Describe the place of the first number that is not finite."""
    place = (forward and f"forward: {forward}") or (backward and f"backward: {backward}")
    return sentence(place or "none")


def _gradients(found: "FailureBundle", examination: "Examination") -> Table:
    """Return a table of the largest gradients, non-finite ones first."""
    then = found.examination["gradient_norms"]
    here = examination.gradient_norms
    names = sorted(then | here, key=lambda name: _size(here.get(name, then.get(name, 0.0))))
    table = Table(title=f"largest gradients, {min(SHOWN_GRADIENTS, len(names))} of {len(names)}")
    table.add_column("parameter", overflow="fold")
    table.add_column("2-norm (recorded)", justify="right")
    table.add_column("2-norm (this machine)", justify="right")
    for name in names[: -SHOWN_GRADIENTS - 1 : -1]:
        table.add_row(
            cell(name), *(f"{norms[name]:.4g}" if name in norms else "-" for norms in (then, here))
        )
    return table


def _size(norm: float) -> float:
    return norm if norm == norm else float("inf")
