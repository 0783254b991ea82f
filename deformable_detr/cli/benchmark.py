"""`deformable-detr benchmark`: how fast this machine computes."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

# What needs PyTorch is imported when the command runs, so that help is there at once.
if TYPE_CHECKING:
    from deformable_detr.benchmark.goals import Verdict
    from deformable_detr.benchmark.suite import Report

EXIT_GOAL_MISSED = 1
_CHECKED = ("cpu", "float32", "all")  # what the goals are about: device, dtype, shape

app = typer.Typer(help="Measure how fast this machine computes.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    """Measure how fast this machine computes."""


@app.command()
def deform_kernel(
    rounds: Annotated[int, typer.Option(min=2, help="Turns of each.")] = 50,
) -> None:
    """Time deformable kernels beside their reference, forward and backward, on one thread.

    In turns, at (1, 96, 50, 67), scope 4, kernel 3, float32. The machine should be idle.
    """
    from deformable_detr.benchmark.deform_kernel import measure

    for line in measure(rounds):
        typer.echo(line)


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
    """Time deformable convolutions beside torchvision's, and fused backbones beside plain ones.

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
        raise typer.Exit(EXIT_GOAL_MISSED)


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
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each contender.")] = 9,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of tables.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Hold the CPU goals; exit code 1 if one is missed.")
    ] = False,
) -> None:
    """Time deformable attention: reference, compiled operators, other implementations.

    The contenders take turns in one process, once with the default allocator and once with one
    that keeps freed memory. Takes about six minutes on two cores, which should be idle.
    """
    if check:
        _check_is_possible((device, dtype, shape), rounds)
    from deformable_detr.benchmark.machine import describe_machine
    from deformable_detr.benchmark.record import as_record
    from deformable_detr.benchmark.suite import SHAPES, Plan, check_device, judge, run

    check_device(device)
    machine = describe_machine(device)
    if machine.warning:
        typer.echo(f"warning: {machine.warning}", err=True)
    plan = Plan(
        device=device,
        dtype=dtype,
        shapes=SHAPES[shape],
        rounds=rounds,
        with_extras=shape != "decoder",
    )
    with _progress() as report_progress:
        report = run(plan, machine, report_progress)
    verdicts = judge(report) if check else None
    if as_json:
        typer.echo(json.dumps(as_record(report, verdicts), indent=2))
    else:
        _print(report, verdicts)
    if verdicts is not None and not all(verdict.passes for verdict in verdicts):
        raise typer.Exit(EXIT_GOAL_MISSED)


def _check_is_possible(chosen: tuple[str, str, str], rounds: int) -> None:
    from deformable_detr.benchmark.goals import LEAST_ROUNDS

    if chosen != _CHECKED:
        raise ValueError(
            f"--check must run on cpu, in float32 and at all shapes, got {', '.join(chosen)}; "
            "leave out --device, --dtype and --shape"
        )
    if rounds < LEAST_ROUNDS:
        raise ValueError(f"--rounds must be at least {LEAST_ROUNDS} with --check, got {rounds}")


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


def _print(report: "Report", verdicts: "list[Verdict] | None") -> None:
    from deformable_detr.benchmark.tables import show, show_goals

    console = Console(highlight=False)
    if not console.is_terminal:  # a file has no width, and its figures must not be cut
        console = Console(highlight=False, width=100)
    for part in show(report):
        console.print(part)
    if verdicts is not None:
        console.print(show_goals(verdicts))
