"""`deformable-detr report`: a run folder on one page."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    run_dir: Annotated[
        Path, typer.Argument(metavar="RUN_DIR", help="The folder of a run.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Settings that replace the run's, such as data.val.images=DIR where its "
            "validation set has moved.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps; auto takes the fastest.")
    ] = "auto",
) -> None:
    """Write report.html: curves, AP of each class, confusion, the worst mistakes, settings.

    Training does so at its end. Where the detections of the best checkpoint on the validation set
    are not in the folder, as in old runs, the checkpoint is evaluated first.
    """
    # What needs PyTorch is imported when the command runs, so that help is there at once.
    from deformable_detr import distributed
    from deformable_detr.builders import build_dataset
    from deformable_detr.cli.evaluate import measure
    from deformable_detr.config.loading import load_config
    from deformable_detr.engine.checkpoints.checkpoint import load_checkpoint
    from deformable_detr.engine.run.folder import RunFolder
    from deformable_detr.workflows.evaluation import open_detector
    from deformable_detr.workflows.run_report import stored_detections, write_run_report

    files = RunFolder(run_dir)
    if not files.config.is_file():
        raise FileNotFoundError(
            f"RUN_DIR must be the folder of a run, got {run_dir}, which has no config.yaml; "
            "give the --run-dir of `deformable-detr train`"
        )
    config = load_config(str(files.config), overrides or [])
    checkpoint = load_checkpoint(files.best_or_last)
    dataset = build_dataset(config, "val", label_space=checkpoint.label_space)
    if stored_detections(files, checkpoint.step) is None:
        evaluator, _ = measure(
            open_detector(config, files.best_or_last, distributed.choose_device(device)),
            dataset,
            batch_size=config.train.micro_batch,
            num_workers=config.data.num_workers,
        )
        evaluator.table.write(files.detections, step=checkpoint.step)
    write_run_report(config, files, dataset)
    typer.echo(f"the report is {files.report}")
