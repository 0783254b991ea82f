"""`deformable-detr benchmark`: how fast this machine computes."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import typer
from rich.console import Console

# Commands import what needs PyTorch themselves, so that help is there at once.
EXIT_LIMIT_MISSED = 1

app = typer.Typer(help="Measure how fast this machine computes.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    """Measure how fast this machine computes."""


_OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings that replace the config's, such as model.backbone.depth=18.",
        show_default=False,
    ),
]
_SizeOption = Annotated[int, typer.Option(min=64, help="Height and width of the images.")]
_ImagesOption = Annotated[int, typer.Option(min=1, help="Images in a batch of one process.")]
_RoundsOption = Annotated[int, typer.Option(min=2, help="Turns of each.")]


@app.command()
def training(
    overrides: _OverridesArgument = None,
    size: _SizeOption = 256,
    images: _ImagesOption = 2,
    rounds: _RoundsOption = 9,
) -> None:
    """Time and memory of a training step: plain, checkpointing, channels last, bfloat16.

    `deformable_detr_r50` on the CPU, forward and backward, each setting in a process of one
    thread, in turns. The machine should be idle.
    """
    from deformable_detr.benchmark.training import measure_settings

    options = {"size": size, "images": images, "rounds": rounds}
    for line in measure_settings(overrides=overrides or (), **options):
        typer.echo(line)


@app.command()
def processes(
    overrides: _OverridesArgument = None,
    size: _SizeOption = 256,
    images: _ImagesOption = 2,
    rounds: _RoundsOption = 9,
) -> None:
    """Images a second that two training processes reach, and one, each of one thread.

    `deformable_detr_r50` on the CPU, whole steps, in turns. Two cores should be idle.
    """
    from deformable_detr.benchmark.training import measure_processes

    options = {"size": size, "images": images, "rounds": rounds}
    for line in measure_processes(overrides=overrides or (), **options):
        typer.echo(line)


@app.command()
def layers(
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each.")] = 15,
) -> None:
    """Time deformable layers against plain functions, and fused backbones against plain ones.

    In turns, by CPU time of all threads: ours, what it stands for, and their ratio with quartiles.
    Exit code 1 if a ratio is above its limit. The machine should be idle.
    """
    from deformable_detr.benchmark.layers import measure

    missed = False
    with _progress() as report:
        for comparison in measure(rounds, report):
            typer.echo(comparison.describe())
            missed |= not comparison.holds
    if missed:
        raise typer.Exit(EXIT_LIMIT_MISSED)


@app.command()
def ops(
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where to compute.")] = "cpu",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option(help="Of the sampled values; points and weights are float32."),
    ] = "float32",
    shape: Annotated[
        Literal["encoder", "decoder", "all"],
        typer.Option(help="A query for each of 17,821 cells, 300 queries, or both."),
    ] = "all",
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each implementation.")] = 9,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of tables.")
    ] = False,
) -> None:
    """Time deformable attention: reference, compiled operators, other implementations.

    The implementations take turns in one process, once with the default allocator and once with
    one that keeps freed memory. Takes about six minutes on two cores, which should be idle.
    """
    from deformable_detr.benchmark.machine import describe_machine
    from deformable_detr.benchmark.ops import record, suite, tables

    suite.check_device(device)
    machine = describe_machine(device)
    if machine.warning:
        typer.echo(f"warning: {machine.warning}", err=True)
    plan = suite.Plan(
        device=device,
        dtype=dtype,
        shapes=suite.SHAPES[shape],
        rounds=rounds,
        with_extras=shape != "decoder",
    )
    with _progress() as report_progress:
        report = suite.run(plan, machine, report_progress)
    if as_json:
        typer.echo(json.dumps(record.as_record(report), indent=2))
        return
    console = Console(highlight=False)
    if not console.is_terminal:  # a file has no width, and its figures must not be cut
        console = Console(highlight=False, width=100)
    for part in tables.show(report):
        console.print(part)


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Show on stderr what is being done: a line that changes on a terminal, else a line a stage."""
    console = Console(stderr=True, highlight=False)
    stages: list[str] = []

    def print_new_stage(text: str) -> None:
        stage = text.partition(":")[0]
        if stages[-1:] != [stage]:
            stages.append(stage)
            console.print(stage)

    if not console.is_terminal:
        yield print_new_stage
        return
    with console.status("starting") as status:
        yield status.update
