"""`deformable-detr train`: a config and data become a run folder."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[
        str,
        typer.Option(metavar="NAME_OR_PATH", help="A YAML file, or the name of one of ours."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Settings that replace the config's, such as train.micro_batch=4.",
            show_default=False,
        ),
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where to write.", show_default="runs/NAME"),
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps; auto takes the fastest.")
    ] = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in the folder, exactly.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the run in the folder first.")
    ] = False,
) -> None:
    """Train a detector; checkpoints, metrics and curves go to the run folder.

    For several processes: torchrun --nproc-per-node N -m deformable_detr train ...
    """
    # What needs PyTorch is imported when the command runs, so that help is there at once.
    from deformable_detr import distributed
    from deformable_detr.cli.training_run import run_training
    from deformable_detr.config_io import load_config

    settings = load_config(config, overrides or [])
    chosen = distributed.choose_device(device)
    distributed.start(chosen)
    try:
        run_training(
            settings,
            folder=run_dir or Path("runs") / Path(config).stem,
            device=chosen,
            resume=resume,
            overwrite=overwrite,
        )
    finally:
        distributed.stop()
