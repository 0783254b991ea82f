"""Training: from a config and data to a run folder; runs in every process."""

import logging
import shlex
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from deformable_detr import distributed
from deformable_detr.arguments import checked
from deformable_detr.config import RunConfig
from deformable_detr.config.flatten import config_changes, flatten
from deformable_detr.config.loading import Overrides, load_config, load_run_config, to_yaml
from deformable_detr.data.coco import CocoDataset
from deformable_detr.detector import Detector
from deformable_detr.engine.checkpoints.checkpoint import CHANGED_RULES, RULES, Checkpoint
from deformable_detr.engine.metrics import read_records
from deformable_detr.engine.precision import deterministic_algorithms
from deformable_detr.engine.run.folder import Resume, RunFolder
from deformable_detr.engine.run.resume import checkpoint_to_resume
from deformable_detr.engine.run.session import locked, recorded_state
from deformable_detr.engine.run.stopping import StopRequest
from deformable_detr.engine.run.tracking import Callback, TrackerProcess
from deformable_detr.engine.state import TrainState
from deformable_detr.engine.train import fit
from deformable_detr.evaluation.coco_eval import STATISTICS
from deformable_detr.files import as_path, write_whole
from deformable_detr.files.output_folder import require_folder_place
from deformable_detr.messages import shown
from deformable_detr.workflows.before_training.micro_batch import (
    measured,
    memory_warning,
    provisional,
)
from deformable_detr.workflows.before_training.run_header import header_lines
from deformable_detr.workflows.before_training.settings import RunSettings, settings_of_run
from deformable_detr.workflows.before_training.warnings import warn_before_training
from deformable_detr.workflows.finetuning import FinetuneSource
from deformable_detr.workflows.places import (
    BASELINE,
    input_files,
    require_kept_inputs,
    run_folder,
)
from deformable_detr.workflows.run_report import (
    describe_environment,
    recorded_exif,
    report_after_training,
)
from deformable_detr.workflows.session import session
from deformable_detr.workflows.training_parts import (
    TrainingData,
    build_loop,
    build_run_model,
    build_state,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """Result of a finished training run.

    Attributes:
        run_dir: the run folder with checkpoints, metrics, curves and report.
        checkpoint: its `best.pth`, or `last.pth` if there was no evaluation.
        metrics: the twelve COCO metrics of the best evaluation by name, such as "AP50"; empty
            if there was no evaluation.
    """

    run_dir: Path
    checkpoint: Path
    metrics: dict[str, float]

    @checked
    def detector(self, device: str = "auto") -> Detector:
        """Load the detector of `checkpoint`.

        Args:
            device: as for `Detector.from_checkpoint`.
        """
        return Detector.from_checkpoint(self.checkpoint, device)


@checked
def train(
    config: str | Path | RunConfig | None = None,
    *,
    data: str | Path | None = None,
    split_by: str | None = None,
    overrides: Overrides = (),
    run_dir: str | Path | None = None,
    resume: Resume = False,
    overwrite: bool = False,
    finetune_from: str | Path | None = None,
    device: str = "auto",
    callback: Callback | None = None,
) -> TrainingResult:
    """Train a detector; write checkpoints, metrics, curves and a report to the run folder.

    Under torchrun every process must call it. SIGTERM, SIGUSR1 and Ctrl-C stop the run after the
    current step and save it, if the function is called in the main thread, the only one that can
    handle signals. A second Ctrl-C, or one before the first step, raises KeyboardInterrupt at once.

    Args:
        config: a YAML file, the name of a config of the package such as "quickstart", or a
            `RunConfig`. None chooses the settings that fit `data`, or is "deformable_detr_r50"
            without `data`; with `resume` it is the config of the run.
        data: a folder of images with annotations as COCO JSON, YOLO or Pascal VOC, a COCO file, or
            the YAML file of YOLO; see docs/annotations.md. A fifth of the images becomes the
            validation set if there is none. None if the config or `overrides` set the paths.
        split_by: regular expression; where a validation set is split off, images are kept together
            if it finds the same text in their names.
        overrides: settings that override the config's, as for `load_config`.
        run_dir: the run folder; None for `runs/NAME` with the config's name.
        resume: continue the run in the folder exactly; "auto" continues from its newest intact
            checkpoint, or starts the run if there is none.
        overwrite: delete the run in the folder first.
        finetune_from: a checkpoint whose weights a new run starts with; its classes may differ.
        device: "auto" (CUDA, else MPS, else CPU), or a PyTorch device name.
        callback: called on rank 0 with the kind and the values of every record of
            `metrics.jsonl`, such as ("train", {"step": 10, "total": 9.1, ...}). An exception that
            it raises ends the run; `resume` continues from the newest checkpoint.

    Returns:
        The result, the same in every process.

    Raises:
        ConfigError: a setting or a data path is wrong.
        ValueError: arguments exclude each other, or a file is invalid.
        PreemptedError: SIGTERM, SIGUSR1 or Ctrl-C stopped the run; it is saved.
        NonFiniteError: a loss or a gradient is infinite or NaN.
        NonFinitePredictionsError: logits or boxes in an evaluation are; `best.pth` is unchanged.
    """
    files = RunFolder(run_folder(run_dir, config, data=data))
    if split_by is not None and data is None:
        raise ValueError("split_by must be given with data, got it alone")
    if config is None and resume and files.config.is_file():
        config = load_run_config(files.config)
    elif config is None and data is None:
        config = BASELINE
    # Where the preset is to be chosen, the overrides can be checked only afterwards.
    known = RunConfig() if config is None else load_config(config, overrides)
    start = None if finetune_from is None else as_path("finetune_from", finetune_from)
    with session(device, timeout_s=known.train.timeout_s) as chosen:
        _check_finetune_from(start, files.path, resume=resume, overwrite=overwrite)
        files.check(resume=resume, overwrite=overwrite)
        require_folder_place("run_dir", files.path)
        settings = settings_of_run(
            config,
            files,
            data=data,
            split_by=split_by,
            overrides=overrides,
            resume=resume,
            finetune_from=start,
            device=chosen,
        )
        _train(
            settings,
            files,
            chosen,
            inputs=input_files(settings.config, config, finetune_from),
            is_overridden=bool(overrides),
            resume=resume,
            overwrite=overwrite,
            finetune_from=start,
            callback=callback,
        )
        return _result(files)


def _train(
    settings: RunSettings,
    files: RunFolder,
    device: torch.device,
    *,
    inputs: Sequence[Path],
    is_overridden: bool,
    resume: Resume,
    overwrite: bool,
    finetune_from: Path | None,
    callback: Callback | None,
) -> None:
    config = settings.config
    if overwrite:
        require_kept_inputs(files, inputs)
    if callback is not None:
        files.tracking.callbacks.append(callback)
    first = provisional(config)
    data = TrainingData.open(first)
    if overwrite:
        require_kept_inputs(files, inputs, images=(*data.train.files, *data.val.files))
    source = None if finetune_from is None else FinetuneSource.read(finetune_from)
    with StopRequest() as stop, locked(files):
        found = checkpoint_to_resume(files, resume)
        model, report = build_run_model(config, data.train.label_space, source, resume=bool(found))
        if config.train.channels_last:  # convolutions take the memory format of their weights
            model.to(memory_format=torch.channels_last)
        state = build_state(first, data, model.to(device))
        if source is not None:
            state.origin = source.describe()
        config = measured(config, state, None if found is None else found[1].config)
        data = data.with_order(config)
        if found is not None:
            _restore(state, *found, data)
        _open_folder(config, files, state, resume=resume, overwrite=overwrite)
        header = header_lines(
            config,
            data,
            state,
            report,
            folder=files.path,
            decisions=settings.decisions,
            reasons=settings.reasons,
            is_overridden=is_overridden,
        )
        for line in header:
            logger.info("%s", line)
        short = memory_warning(config, state)
        if distributed.is_main():
            warn_before_training(config, data)
            if short is not None:
                logger.warning("%s", short)
        environment = describe_environment(config, device)
        exif = {"train": data.train.exif, "val": data.val.exif}
        files.record("start", {"step": state.step, "environment": environment, "exif": exif})
        with (
            stop.taking_interrupts(),
            closing(files.tracking),
            recorded_state(files, state),
            deterministic_algorithms(config.train.deterministic),
        ):
            fit(state, build_loop(config, data, state, files, stop))
        report_after_training(config, files, data.val)
    _log_end(files)


def _log_end(files: RunFolder) -> None:
    """Log where the results are, and what to do next."""
    if not distributed.is_main():
        return
    logger.info("finished; see %s", shown(files.report))
    with suppress(FileNotFoundError):  # no step was saved
        checkpoint = shlex.quote(shown(files.best_or_last))
        logger.info(
            "next: deformable-detr predict --checkpoint %s --out PICTURES IMAGES", checkpoint
        )


def _open_folder(
    config: RunConfig, files: RunFolder, state: TrainState, *, resume: Resume, overwrite: bool
) -> None:
    kept = {Path(one.annotations or "") for one in (config.data.train, config.data.val)}
    files.claim(resume=resume, overwrite=overwrite, annotations=kept)
    files.rewind(state.step, is_evaluated=state.evaluated == state.step)
    if distributed.is_main():
        with write_whole(files.config) as temporary:
            temporary.write_text(to_yaml(config), encoding="utf-8")
        for name in dict.fromkeys(config.train.trackers):
            make = partial(
                TrackerProcess,
                name,
                files.path,
                run_file=files.tracker_run(name),
                first_step=state.step + 1,
                config=dict(flatten(state.config)),
            )
            files.tracking.open(name, make)


def _result(files: RunFolder) -> TrainingResult:
    """Read the result on rank 0, and return it in every process."""
    result = None
    if distributed.is_main():
        records = read_records(files.metrics) if files.metrics.is_file() else []
        evaluations = [record for record in records if record["kind"] == "evaluation"]
        best = max(evaluations, key=lambda record: record["AP"], default={})
        metrics = {name: best[name] for name in STATISTICS if name in best}
        result = TrainingResult(files.path, files.best_or_last, metrics)
    gathered = distributed.all_gather_objects(result)[0]
    assert gathered is not None  # the main process has one
    return gathered


def _check_finetune_from(
    path: Path | None, folder: Path, *, resume: Resume, overwrite: bool
) -> None:
    if path is None:
        return
    if resume:
        raise ValueError(
            "--finetune-from and --resume must not both be given, got both; --finetune-from "
            "starts a new run, --resume continues the one in the folder, which needs no "
            "other file"
        )
    if overwrite and path.resolve().parent == folder.resolve():
        raise ValueError(
            "--finetune-from must be outside the run folder that --overwrite deletes, got "
            f"{shown(path)}; "
            "choose another --run-dir"
        )


def _restore(state: TrainState, path: Path, checkpoint: Checkpoint, data: TrainingData) -> None:
    state.restore(checkpoint, f"checkpoint {path}")
    logger.info("resuming after step %d, epoch %d", checkpoint.step, checkpoint.epoch)
    if checkpoint.rules < RULES and distributed.is_main():
        logger.warning(
            "checkpoint %s is of an earlier version; from here on, %s", shown(path), CHANGED_RULES
        )
    for change in config_changes(checkpoint.config, state.config):
        logger.info("  the config has changed: %s", change)
    warn_of_other_pixels(checkpoint, data.train)


def warn_of_other_pixels(checkpoint: Checkpoint, dataset: CocoDataset) -> None:
    """Warn if the images of a resumed run are read otherwise than before."""
    before = recorded_exif(checkpoint)
    if dataset.num_turned and before != dataset.exif:
        logger.warning(
            "%d training images have an EXIF orientation, and are now read %s; data.exif=%s reads "
            "them as before",
            dataset.num_turned,
            dataset.exif,
            before,
        )
