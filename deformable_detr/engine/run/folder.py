"""Run folder: paths of its files, checks before its use, and records."""

import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from deformable_detr import distributed
from deformable_detr.engine.metrics import append_record, forget_records_after
from deformable_detr.engine.run.tracker_process import TRACKERS
from deformable_detr.engine.run.tracking import Tracking
from deformable_detr.evaluation.detection_table import DetectionTable
from deformable_detr.evaluation.partial_results import partial_results_files
from deformable_detr.files import partial_path
from deformable_detr.files.output_folder import MANIFEST
from deformable_detr.messages import listed, shown

logger = logging.getLogger(__name__)
Resume = bool | Literal["auto"]  # "auto": resume if there is a run
_FAILURE = "failure_step_"


@dataclass(frozen=True)
class RunFolder:
    """The files of one training run.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def last(self) -> Path:
        """Path of the newest checkpoint."""
        return self.path / "last.pth"

    @property
    def previous(self) -> Path:
        """Path of the checkpoint before the newest."""
        return self.path / "previous.pth"

    @property
    def damaged(self) -> Path:
        """Path of a damaged newest checkpoint, after the run was resumed from the previous one."""
        return self.path / "damaged.pth"

    @property
    def best(self) -> Path:
        """Path of the checkpoint of the highest AP."""
        return self.path / "best.pth"

    @property
    def metrics(self) -> Path:
        """Path of the metrics file, which holds one JSON record per line."""
        return self.path / "metrics.jsonl"

    @property
    def curves(self) -> Path:
        """Path of the plot of loss and AP."""
        return self.path / "curves.png"

    @property
    def state(self) -> Path:
        """Path of the file with the state: running, preempted, finished or failed."""
        return self.path / "state.json"

    @property
    def lock(self) -> Path:
        """Path of an empty file, which is locked by the process that writes to the folder."""
        return self.path / ".lock"

    @property
    def tensorboard(self) -> Path:
        """Path of the folder of TensorBoard's event files, if the run writes them."""
        return self.path / "tensorboard"

    def tracker_run(self, name: str) -> Path:
        """Return the path of the file with a tracker's id of the run, by which it is continued."""
        return self.path / f"{name}_run.txt"

    @property
    def config(self) -> Path:
        """Path of the resolved configuration."""
        return self.path / "config.yaml"

    @property
    def annotations(self) -> Path:
        """Path of the folder of annotation files that were written for the run."""
        return self.path / "annotations"

    @property
    def results(self) -> Path:
        """Path of the detections of a separate evaluation, as COCO results."""
        return self.path / "results.json"

    def failure(self, step: int, rank: int) -> Path:
        """Return the path of the bundle of a rank whose share of a step was not finite."""
        return self.path / f"{_FAILURE}{step}_rank_{rank}.pth"

    @property
    def detections(self) -> Path:
        """Path of the best checkpoint's detections on the validation set."""
        return self.path / "best_detections.npz"

    @property
    def report(self) -> Path:
        """Path of the report of the run, an HTML page."""
        return self.path / "report.html"

    @property
    def best_or_last(self) -> Path:
        """Path of the checkpoint of the highest AP, or of the newest before any evaluation.

        Raises:
            FileNotFoundError: there is neither.
        """
        for checkpoint in (self.best, self.last):
            if checkpoint.is_file():
                return checkpoint
        raise FileNotFoundError(
            f"run folder {shown(self.path)} has neither best.pth nor last.pth to evaluate; "
            "give the --run-dir of a run, or a file with --finetune-from"
        )

    @property
    def holds_run(self) -> bool:
        """True if a run has been started in the folder."""
        return any(file.exists() for file in (self.lock, self.state, self.metrics))

    def files_to_delete(self) -> list[Path]:
        """List the existing files of a run, which `claim` deletes with `overwrite`."""
        checkpoints = (self.last, self.previous, self.damaged, self.best)
        records = (self.metrics, self.curves, self.config, self.state)
        # Before a run, only an evaluation has written results, which may be of the user.
        has_results = self.state.exists() or self.metrics.exists()
        pages = (self.detections, self.report, *((self.results,) if has_results else ()))
        failures = self.path.glob(f"{_FAILURE}*.pth")
        events = self.tensorboard.glob("events.out.tfevents.*")
        trackers = (self.tracker_run(name) for name in TRACKERS)
        files = (*checkpoints, *records, *pages, *failures, *events, *trackers)
        return [file for file in files if os.path.lexists(file)]

    def check(self, *, resume: Resume = False, overwrite: bool = False) -> None:
        """Raise if `claim` would, before any expensive work is done.

        Args:
            resume: continue the run in the folder; "auto": if there is one.
            overwrite: delete the files of the run in the folder.

        Raises:
            ValueError: the folder is in use and neither is given, or both are, or it holds files
                that have names of a run's, but no run.
            FileNotFoundError: there is no run to resume.
        """
        if resume and overwrite:
            raise ValueError("resume and overwrite must not both be given, got both")
        has_checkpoint = self.last.exists() or self.previous.exists()
        if not self.holds_run and (overwrite or (resume == "auto" and not has_checkpoint)):
            self._require_no_names_of_ours()
        if resume == "auto":
            return
        if resume and not self.last.is_file():
            remedy = "start without --resume"
            if self.previous.is_file():
                remedy = f"--resume auto continues from {shown(self.previous)}"
            raise FileNotFoundError(
                f"run folder {shown(self.path)} has no last.pth to resume from; {remedy}"
            )
        if not resume and not overwrite and self._is_in_use():
            raise ValueError(
                f"run folder must be new or empty, got {shown(self.path)}, which holds files; "
                "choose another --run-dir, or give --resume or --overwrite"
            )

    def claim(
        self,
        *,
        resume: Resume = False,
        overwrite: bool = False,
        annotations: Collection[Path] = (),
    ) -> None:
        """Prepare the folder for a run, after `check`; every process must call.

        Args:
            resume: as for `check`.
            overwrite: as for `check`; annotation files that were written for the former run are
                deleted too.
            annotations: annotation files of the new run, which are kept.
        """
        self.check(resume=resume, overwrite=overwrite)
        distributed.barrier()
        if distributed.is_main():
            self.path.mkdir(parents=True, exist_ok=True)
            checkpoints = (self.last, self.previous, self.damaged, self.best)
            for file in checkpoints:
                partial_path(file).unlink(missing_ok=True)  # of a process that was killed
            if overwrite:
                unfinished = partial_results_files(self.results)
                kept = {file.absolute() for file in annotations}
                former = [
                    file
                    for split in ("train", "val")
                    for file in self.annotations.glob(f"{split}_????????.json")
                    if file.absolute() not in kept
                ]
                for file in (*self.files_to_delete(), *unfinished, *former):
                    file.unlink(missing_ok=True)
        distributed.barrier()

    def _is_in_use(self) -> bool:
        """Return whether it has files other than those of an evaluation before the run."""
        ours = (
            self.results,
            self.lock,
            self.annotations,  # written before the run
            self.path / MANIFEST,
            *partial_results_files(self.results),
        )
        return self.path.exists() and any(file not in ours for file in self.path.iterdir())

    def _require_no_names_of_ours(self) -> None:
        """Raise if a run would replace files here, where there is no run that they could be of."""
        found = [file.name for file in self.files_to_delete()]
        if found:
            raise ValueError(
                f"run folder must hold a run, or no files with names of a run's, got "
                f"{shown(self.path)}, which holds {listed(found)}; choose another --run-dir"
            )

    @cached_property
    def tracking(self) -> Tracking:
        """Trackers of the records: the metrics file, and those added later."""
        tracking = Tracking()

        def append(kind: str, values: Mapping[str, Any]) -> None:
            append_record(self.metrics, {"kind": kind, **values})

        tracking.open(str(self.metrics), lambda: append)
        return tracking

    def record(self, kind: str, values: Mapping[str, Any]) -> None:
        """Append a record to the metrics file and other trackers, in the main process only.

        It raises the errors of callbacks only.
        """
        if distributed.is_main():
            self.tracking.record(kind, values)

    def keep_detections(self, table: DetectionTable, step: int) -> None:
        """Save the best checkpoint's detections for the report; an error is only logged.

        Args:
            table: the detections, in the main process.
            step: step of the checkpoint.
        """
        if distributed.is_main():
            try:
                table.write(self.detections, step=step)
            except OSError as error:
                logger.warning(
                    "detections %s could not be written (%s)", shown(self.detections), error
                )

    def rewind(self, step: int, *, is_evaluated: bool = True) -> None:
        """Drop the records after `step`, in the main process only.

        Args:
            step: the run continues after this step.
            is_evaluated: whether the evaluation of that step, if there is one, is kept.
        """
        if distributed.is_main() and self.metrics.exists():
            forget_records_after(self.metrics, step, is_evaluated=is_evaluated)
