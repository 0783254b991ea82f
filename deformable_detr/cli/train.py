"""`deformable-detr train`: a config and data become a run folder."""

import logging
from pathlib import Path
from typing import Annotated, Final

import typer

from deformable_detr.cli.launcher import end_with_launcher

AUTO: Final = "auto"  # after --resume, where an optional value would swallow KEY=VALUE


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
        bool,
        typer.Option(
            "--resume",
            help="Continue the run in the folder, exactly. With the word auto: from the newest of "
            "its checkpoints that is whole, or start it where there is none.",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the run in the folder first.")
    ] = False,
    finetune_from: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Start a new run with the weights of this checkpoint, of any classes.",
        ),
    ] = None,
    evaluate_only: Annotated[
        bool,
        typer.Option(
            "--evaluate-only",
            help="Measure the run's best.pth, else its last.pth, or the file of --finetune-from, "
            "on the validation set, and do not train.",
        ),
    ] = False,
    overfit: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Try whether the first N training images can be learnt by heart, which takes "
            "minutes; the first thing to do with new data.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train a detector; checkpoints, metrics and curves go to the run folder.

    For several processes: torchrun --nproc-per-node N -m deformable_detr train ...

    SIGTERM and SIGUSR1 end the run after the step: it is saved, and the exit code is 75, or 0 under
    torchrun; state.json in the run folder says preempted.
    """
    end_with_launcher()
    # What needs PyTorch is imported when the command runs, so that help is there at once.
    from deformable_detr import distributed
    from deformable_detr.config.loading import load_config
    from deformable_detr.engine.run.stopping import EXIT_PREEMPTED, PreemptedError
    from deformable_detr.workflows.evaluation import run_evaluation
    from deformable_detr.workflows.overfitting import overfit_config, report_overfit
    from deformable_detr.workflows.training import run_training

    if overfit and (resume or evaluate_only):
        raise ValueError("--overfit must stand without --resume and --evaluate-only")
    if evaluate_only and (resume or overwrite):
        raise ValueError(
            "--evaluate-only must stand without --resume and --overwrite, as it changes no run"
        )
    given = list(overrides or [])
    resume_auto = resume and AUTO in given
    if resume_auto:
        given.remove(AUTO)
    settings = load_config(config, given)
    folder = run_dir or Path("runs") / (Path(config).stem + ("_overfit" if overfit else ""))
    chosen = distributed.choose_device(device)
    distributed.start(chosen, timeout_s=settings.train.timeout_s)
    try:
        if overfit:
            subset = folder.with_name(f"{folder.name}_images.json")
            settings = overfit_config(settings, overfit, subset=subset)
        if evaluate_only:
            run_evaluation(settings, folder=folder, device=chosen, checkpoint=finetune_from)
        else:
            run_training(
                settings,
                folder=folder,
                device=chosen,
                resume=AUTO if resume_auto else resume,
                overwrite=overwrite,
                finetune_from=finetune_from,
            )
        if overfit:
            report_overfit(settings, folder)
    except PreemptedError as reason:
        logging.getLogger(__name__).info("saved and stopped: %s; --resume goes on", reason)
        raise typer.Exit(0 if distributed.is_started() else EXIT_PREEMPTED) from None
    finally:
        distributed.stop()
