"""HTML report of a run: curves, data, errors and settings on one page."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from deformable_detr import distributed
from deformable_detr.arguments import checked
from deformable_detr.builders import build_dataset
from deformable_detr.config import RunConfig
from deformable_detr.config.loading import Overrides, load_run_config, to_yaml
from deformable_detr.data.coco import CocoDataset
from deformable_detr.engine.checkpoints.checkpoint import Checkpoint, load_checkpoint
from deformable_detr.engine.checkpoints.sealed_file import content_hash
from deformable_detr.engine.metrics import read_records
from deformable_detr.engine.run.folder import RunFolder
from deformable_detr.engine.run.header import describe_device
from deformable_detr.engine.run.tracking import Callback
from deformable_detr.environment import cpu_name, current_versions, num_cores
from deformable_detr.evaluation.detection_table import DetectionTable
from deformable_detr.files import as_path
from deformable_detr.files.output_folder import require_folder_place
from deformable_detr.messages import shown
from deformable_detr.photos import Exif
from deformable_detr.pixels.channels import to_rgb
from deformable_detr.reporting.findings import Findings
from deformable_detr.reporting.gallery import Photo
from deformable_detr.reporting.report import RunFacts, write_report
from deformable_detr.workflows.evaluation import measure_validation_set, open_detector
from deformable_detr.workflows.recipe import nearest_recipe
from deformable_detr.workflows.session import kept_torch_state

logger = logging.getLogger(__name__)


def describe_environment(config: RunConfig, device: torch.device) -> dict[str, str]:
    """Return versions and hardware of a run by name, for the report."""
    return {
        **current_versions(),
        "device": describe_device(device, config.model.attention.backend),
        "GPU": torch.cuda.get_device_name(device) if device.type == "cuda" else "none",
        "CPU": cpu_name(),
        "cores": str(num_cores()),
        "threads": str(torch.get_num_threads()),
        "processes": str(distributed.world_size()),
    }


@checked
def report(
    run_dir: str | Path,
    *,
    overrides: Overrides = (),
    device: str = "auto",
    callback: Callback | None = None,
) -> Path:
    """Write `report.html` of a run: curves, AP per class, confusion matrix, worst errors, settings.

    Training writes the report at its end. If the folder lacks the detections of the best checkpoint
    on the validation set, the checkpoint is evaluated first.

    Args:
        run_dir: the run folder.
        overrides: settings that override the run's, such as "data.val.images=DIR" if its
            validation set has moved.
        device: device of the evaluation, as for `train`.
        callback: as for `evaluate`.

    Returns:
        Path of the page.

    Raises:
        FileNotFoundError: the folder is not a run folder, or has no checkpoint yet.
        ValueError: a file is damaged, or the folder cannot be written to.
        WriteError: the report could not be written, as on a full disk.
    """
    files = RunFolder(as_path("run_dir", run_dir))
    if not files.config.is_file():
        raise FileNotFoundError(
            f"RUN_DIR must be a run folder, got {run_dir}, which has no config.yaml; "
            "give the --run-dir of `deformable-detr train`"
        )
    require_folder_place("run_dir", files.path)
    config = load_run_config(files.config, overrides)
    checkpoint = load_checkpoint(files.best_or_last)
    dataset = build_dataset(
        config,
        "val",
        label_space=checkpoint.label_space,
        exif_otherwise=recorded_exif(checkpoint),
    )
    table = stored_detections(files, checkpoint.step)
    if table is None:
        with kept_torch_state(device) as chosen:
            detector = open_detector(config, files.best_or_last, chosen)
            evaluator, _ = measure_validation_set(config, detector, dataset, callback=callback)
        table = evaluator.table
        table.write(files.detections, step=checkpoint.step)
    write_run_report(config, files, dataset, checkpoint, table)
    return files.report


def recorded_exif(checkpoint: Checkpoint) -> Exif:
    """Return how the run of a checkpoint reads its training images."""
    # Versions without the setting trained and evaluated on stored pixels.
    recorded = checkpoint.config["data"].get("exif", "stored")
    return "upright" if recorded == "upright" else "stored"


def report_after_training(config: RunConfig, files: RunFolder, dataset: CocoDataset) -> None:
    """Write the report of a run that has just ended; any error becomes a warning.

    Uses the detections stored during training. Nothing is evaluated here, since the other processes
    would have to wait, on COCO for many minutes.
    """
    if not distributed.is_main():
        return
    try:
        checkpoint = load_checkpoint(files.best_or_last)
        table = stored_detections(files, checkpoint.step)
        write_run_report(config, files, dataset, checkpoint, table)
    except Exception as error:  # a failed report must not fail a finished run
        logger.warning(
            "the report could not be written (%s: %s); the run is complete. Try again with: "
            "deformable-detr report %s",
            type(error).__name__,
            shown(error),
            shown(files.path),
        )


def write_run_report(
    config: RunConfig,
    files: RunFolder,
    dataset: CocoDataset,
    checkpoint: Checkpoint,
    table: DetectionTable | None,
) -> None:
    """Write `report.html` from the content of the run folder.

    Args:
        config: config of the run.
        files: its run folder.
        dataset: its validation set.
        checkpoint: the content of `files.best_or_last`.
        table: its detections on `dataset`, or None if there are none.

    Raises:
        ValueError: a file is damaged.
    """
    records = read_records(files.metrics) if files.metrics.is_file() else []
    recipe, deviations = nearest_recipe(config)

    def read_photo(image_id: int) -> Photo:
        index = dataset.index_of(image_id)
        return Photo(to_rgb(dataset[index].image), dataset.files[index].name)

    write_report(
        files.report,
        RunFacts(
            name=files.path.resolve().name,
            records=records,
            recipe=recipe,
            deviations=deviations,
            config=to_yaml(config),
            checkpoint=_identity(files.best_or_last, checkpoint) | _early_end(records),
            environment=_environment(records, checkpoint),
        ),
        None if table is None else Findings.of(table, dataset.annotations),
        read_photo,
    )


def stored_detections(files: RunFolder, step: int) -> DetectionTable | None:
    """Read the stored detections; None if there are none, or they are of another step."""
    if not files.detections.is_file():
        return None
    table, stored_step = DetectionTable.read(files.detections)
    return table if stored_step == step else None


def _identity(path: Path, checkpoint: Checkpoint) -> dict[str, str]:
    best = checkpoint.best_ap
    return {
        "file": path.name,
        "step": str(checkpoint.step),
        "epochs finished": str(checkpoint.epoch),
        "highest AP until then": "none" if best is None else f"{best:.4f}",
        "weights": "moving average" if checkpoint.ema is not None else "of the last step",
        "started from": checkpoint.origin or "the config's weights",
        "classes": checkpoint.label_space.describe(),
        "size": f"{path.stat().st_size:,} bytes",
        "SHA-256 of its content": content_hash(path),
    }


def _early_end(records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return why the run has ended early, if it has and was not continued since."""
    last = max((one["step"] for one in records), default=0)
    reasons = [one["reason"] for one in records if one["kind"] == "early_stop"]
    steps = [one["step"] for one in records if one["kind"] == "early_stop"]
    return {"end of the run": shown(reasons[-1])} if steps and steps[-1] == last else {}


def _environment(records: Sequence[dict[str, Any]], checkpoint: Checkpoint) -> dict[str, str]:
    """Return the environment of the last start of the run; old runs recorded versions only."""
    starts = [record for record in records if record["kind"] == "start"]
    values: dict[str, str] = starts[-1]["environment"] if starts else checkpoint.versions
    if len(starts) > 1:
        values = {**values, "started at steps": ", ".join(str(one["step"]) for one in starts)}
    return values
