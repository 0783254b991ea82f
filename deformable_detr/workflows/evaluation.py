"""`train --evaluate-only`: the detector of a run, or of a file, on the config's validation set."""

import logging
from pathlib import Path

import torch

from deformable_detr import distributed
from deformable_detr.builders import build_dataset, build_eval_transform
from deformable_detr.cli.evaluate import evaluate_detector
from deformable_detr.config import RunConfig
from deformable_detr.detector import Detector
from deformable_detr.engine.run.folder import RunFolder

logger = logging.getLogger(__name__)


def run_evaluation(
    config: RunConfig, *, folder: Path, device: torch.device, checkpoint: Path | None = None
) -> None:
    """Measure as `deformable-detr evaluate` does; every process must call it.

    Model and classes are the checkpoint's; of the config, the validation set and the size that
    photos are brought to count. The detections go to the run folder.

    Args:
        config: of the run; training data need not be there.
        folder: of the run.
        device: of this process.
        checkpoint: what to measure; None for the best of the run, or else its last.

    Raises:
        ValueError: the validation set has other classes than the checkpoint.
        FileNotFoundError: there is no checkpoint.
    """
    if not distributed.is_main():
        logging.getLogger("deformable_detr").setLevel(logging.WARNING)
    files = RunFolder(folder)
    path = checkpoint or files.best_or_last
    detector = open_detector(config, path, device)
    dataset = build_dataset(config, "val", label_space=detector.label_space)
    logger.info("evaluating %s", path)
    evaluate_detector(
        detector,
        dataset,
        batch_size=config.train.micro_batch,
        num_workers=config.data.num_workers,
        out=files.results,
    )
    logger.info("the detections are in %s", files.results)


def open_detector(config: RunConfig, checkpoint: Path, device: torch.device) -> Detector:
    """The detector of a checkpoint, for photos of the size that the config says."""
    detector = Detector.from_checkpoint(checkpoint, str(device))
    transform = build_eval_transform(config.data)
    if transform != detector.transform:
        logger.info(
            "photos are brought to the config's size, %d, at most %d, not to the checkpoint's",
            config.data.eval_size,
            config.data.eval_max_size,
        )
    return Detector(detector.model, detector.label_space, transform=transform, device=device)
