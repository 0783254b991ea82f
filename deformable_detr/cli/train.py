"""`deformable-detr train`: train a detector from a config; results go to a run folder."""

import logging
from pathlib import Path
from typing import Annotated, Final

import typer

import deformable_detr
from deformable_detr.cli.launcher import end_with_launcher, is_launched, warn_only_beside_main
from deformable_detr.cli.options import Device, Overrides, complete_config, whole
from deformable_detr.cli.outputs import print_metrics, printed_if_unwritten

EXIT_PREEMPTED = 75  # sysexits.h: EX_TEMPFAIL, "try again later"
AUTO: Final = "auto"  # after --resume, where an optional value would swallow KEY=VALUE


def train(
    config: Annotated[
        str | None,
        typer.Option(
            metavar="NAME_OR_FILE",
            autocompletion=complete_config,
            help="YAML file, or the name of a config of the package; needed without --data.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Images with annotations as COCO JSON, YOLO or Pascal VOC; a fifth of them "
            "becomes the validation set if there is none.",
        ),
    ] = None,
    split_by: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="Where a validation set is split off, keep images together if this finds the "
            "same text in their names.",
        ),
    ] = None,
    overrides: Overrides = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Run folder to write to.", show_default="runs/NAME"),
    ] = None,
    device: Device = "auto",
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the run in the folder exactly. `--resume auto`: continue from its "
            "newest intact checkpoint, or start the run if there is none.",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the run in the folder first.")
    ] = False,
    finetune_from: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Start a new run with the weights of this checkpoint, which may have other "
            "classes.",
        ),
    ] = None,
    evaluate_only: Annotated[
        bool,
        typer.Option(
            "--evaluate-only",
            help="Do not train; evaluate the run's best.pth, else its last.pth, or the file of "
            "--finetune-from, on the validation set.",
        ),
    ] = False,
    max_detections: Annotated[
        int | None,
        typer.Option(
            parser=whole(1),
            metavar="N",
            help="With --evaluate-only: maximum number of detections per image, as for `evaluate`.",
            show_default=False,
        ),
    ] = None,
    overfit: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            parser=whole(1),
            help="Overfit the first N training images as a sanity check (minutes); do this first "
            "with new data.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train a detector; results go to a run folder.

    These are checkpoints, metrics, curves and the report. In place of deformable-detr, several
    processes need torchrun --nproc-per-node N -m deformable_detr.

    SIGTERM, SIGUSR1 and Ctrl-C stop the run after the current step and save it. The exit code is
    then 75, or 0 under torchrun, and state.json in the run folder has the state "preempted". A
    second Ctrl-C ends at once, without saving.

    Examples:
        deformable-detr train --data photos
        deformable-detr train --data photos --config quickstart train.epochs=20
        deformable-detr train --config quickstart --resume auto
    """
    if config is None and data is None:
        raise ValueError("--config or --data must be given, got neither")
    if data is not None and evaluate_only:
        raise ValueError("--data must be given without --evaluate-only")
    if split_by is not None and overfit:
        raise ValueError("--split-by must be given without --overfit, which needs no validation")
    end_with_launcher()
    warn_only_beside_main()
    if overfit and (resume or evaluate_only):
        raise ValueError("--overfit must be given without --resume and --evaluate-only")
    if evaluate_only and (resume or overwrite):
        raise ValueError(
            "--evaluate-only must be given without --resume and --overwrite, as it changes no run"
        )
    if max_detections is not None and not evaluate_only:
        raise ValueError(
            "--max-detections must be given with --evaluate-only; training evaluates as COCO does"
        )
    settings = list(overrides or [])
    resume_auto = resume and AUTO in settings
    if resume_auto:
        settings.remove(AUTO)
    try:
        if evaluate_only:
            from deformable_detr.evaluation.postprocess import MAX_DETECTIONS
            from deformable_detr.workflows.evaluation import evaluate_run

            assert config is not None  # --data, its alternative, excludes --evaluate-only
            with printed_if_unwritten():
                result = evaluate_run(
                    config,
                    overrides=settings,
                    run_dir=run_dir,
                    checkpoint=finetune_from,
                    max_detections=max_detections or MAX_DETECTIONS,
                    device=device,
                )
            print_metrics(result)
        elif overfit:
            deformable_detr.overfit(
                config,
                overfit,
                data=data,
                overrides=settings,
                run_dir=run_dir,
                overwrite=overwrite,
                finetune_from=finetune_from,
                device=device,
            )
        else:
            deformable_detr.train(
                config,
                data=data,
                split_by=split_by,
                overrides=settings,
                run_dir=run_dir,
                resume=AUTO if resume_auto else resume,
                overwrite=overwrite,
                finetune_from=finetune_from,
                device=device,
            )
    except deformable_detr.PreemptedError as reason:
        remedy = "--overwrite starts the check again" if overfit else "--resume continues the run"
        logging.getLogger(__name__).info("saved and stopped: %s; %s", reason, remedy)
        raise typer.Exit(0 if is_launched() else EXIT_PREEMPTED) from None
