"""`deformable-detr benchmark`: measure the speed of this machine."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import typer
from rich.console import Console

from deformable_detr.cli.help import Command, Group
from deformable_detr.cli.options import whole
from deformable_detr.cli.terminal import echo

# Commands import PyTorch code when they run, so that --help is fast.
EXIT_LIMIT_MISSED = 1
MOST_ROUNDS = 1000

app = typer.Typer(cls=Group, no_args_is_help=True)


@app.callback()
def _root() -> None:
    """Measure the speed of this machine.

    Examples:
        deformable-detr benchmark ops --shape encoder
        deformable-detr benchmark training train.precision=bfloat16
    """


_OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Override settings of the config, such as model.backbone.depth=18.",
        show_default=False,
    ),
]
_SizeOption = Annotated[
    int,
    typer.Option(
        parser=whole(64, 8192), metavar="N", help="Height and width of the images in pixels."
    ),
]
_ImagesOption = Annotated[
    int,
    typer.Option(parser=whole(1, 1024), metavar="N", help="Images per batch and process."),
]
_RoundsOption = Annotated[
    int,
    typer.Option(
        parser=whole(2, MOST_ROUNDS),
        metavar="N",
        help="Number of rounds; each measures all variants once.",
    ),
]


@app.command(cls=Command)
def training(
    overrides: _OverridesArgument = None,
    size: _SizeOption = 256,
    images: _ImagesOption = 2,
    rounds: _RoundsOption = 9,
    compare: Annotated[
        Literal["settings", "dino"],
        typer.Option(help="settings: memory and speed; dino: the parts of DINO."),
    ] = "settings",
) -> None:
    """Measure time and memory of a training step in several settings.

    The settings are plain float32, gradient checkpointing, channels last and bfloat16 of
    `deformable_detr_r50`, or the parts of DINO, added to `deformable_detr_r50_two_stage` one by one
    and together. Runs forward and backward on the CPU, alternating between the settings, each in a
    process of one thread. The machine should be idle.

    Examples:
        deformable-detr benchmark training --size 512 --images 1
        deformable-detr benchmark training --compare dino
    """
    from deformable_detr.benchmark.training import measure_settings

    options = {"size": size, "images": images, "rounds": rounds}
    for line in measure_settings(overrides=overrides or (), compare=compare, **options):
        echo(line)


@app.command(cls=Command)
def processes(
    overrides: _OverridesArgument = None,
    size: _SizeOption = 256,
    images: _ImagesOption = 2,
    rounds: _RoundsOption = 9,
) -> None:
    """Measure images per second of two training processes and of one.

    Each has one thread. Runs complete training steps of `deformable_detr_r50` on the CPU,
    alternating between the two. Two cores should be idle.

    Examples:
        deformable-detr benchmark processes --size 512 --images 1
    """
    from deformable_detr.benchmark.training import measure_processes

    options = {"size": size, "images": images, "rounds": rounds}
    for line in measure_processes(overrides=overrides or (), **options):
        echo(line)


@app.command(cls=Command)
def layers(
    rounds: Annotated[
        int,
        typer.Option(
            parser=whole(1, MOST_ROUNDS),
            metavar="N",
            help="Number of rounds; each measures all variants once.",
        ),
    ] = 15,
) -> None:
    """Time deformable layers and fused backbones against plain ones.

    Alternates between both sides, and prints their CPU time over all threads and their ratio with
    quartiles. The exit code is 1 if a ratio is above its limit. The machine should be idle.

    Examples:
        deformable-detr benchmark layers --rounds 5
    """
    from deformable_detr.benchmark.layers import measure

    missed = False
    with _progress() as report:
        for comparison in measure(rounds, report):
            echo(comparison.describe())
            missed |= not comparison.holds
    if missed:
        raise typer.Exit(EXIT_LIMIT_MISSED)


@app.command(cls=Command)
def ops(
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Device to measure.")] = "cpu",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option(help="Data type of the sampled values; points and weights are float32."),
    ] = "float32",
    shape: Annotated[
        Literal["encoder", "decoder", "all"],
        typer.Option(help="encoder: one query per cell, 17,821 in all; decoder: 300 queries."),
    ] = "all",
    rounds: Annotated[
        int,
        typer.Option(
            parser=whole(1, MOST_ROUNDS),
            metavar="N",
            help="Number of rounds; each measures all implementations once.",
        ),
    ] = 9,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of tables.")
    ] = False,
) -> None:
    """Time deformable attention: reference, compiled, other code.

    Alternates between the implementations in one process, once with the default allocator and once
    with one that keeps freed memory. Takes about six minutes on two cores, which should be idle.

    Examples:
        deformable-detr benchmark ops
        deformable-detr benchmark ops --device cuda --dtype float16 --shape decoder
    """
    from deformable_detr.benchmark.machine import describe_machine
    from deformable_detr.benchmark.ops import record, suite, tables
    from deformable_detr.finite import to_json

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
        typer.echo(to_json(record.as_record(report), "report", indent=2))
        return
    console = Console(highlight=False)
    if not console.is_terminal:  # rich would cut the columns at its default width
        console = Console(highlight=False, width=100)
    for part in tables.show(report):
        console.print(part)


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Show progress on stderr: one line that is updated on a terminal, else one line per stage."""
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
