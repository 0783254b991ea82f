"""Which checkpoint of a run folder training goes on from."""

import logging
from pathlib import Path

from deformable_detr import distributed
from deformable_detr.engine.checkpoints.checkpoint import Checkpoint, load_checkpoint
from deformable_detr.engine.run.folder import Resume, RunFolder

logger = logging.getLogger(__name__)


def checkpoint_to_resume(files: RunFolder, resume: Resume) -> tuple[Path, Checkpoint] | None:
    """The checkpoint and where it is, or None for a run that starts anew; every process must call.

    Args:
        files: the run folder, locked.
        resume: True takes the newest and nothing else; "auto" the newest that is whole, and starts
            anew where there is none of either kind.

    Raises:
        ValueError: what should be resumed is damaged.
        FileNotFoundError: there is nothing where there should be.
    """
    match resume:
        case False:
            return None
        case "auto":
            return _newest_whole(files)
        case _:
            return files.last, _load_last(files)


def _load_last(files: RunFolder) -> Checkpoint:
    try:
        return load_checkpoint(files.last)
    except ValueError as error:
        if not files.previous.is_file():
            raise
        raise ValueError(
            f"{error}; --resume auto goes on from the one before, {files.previous}"
        ) from error


def _newest_whole(files: RunFolder) -> tuple[Path, Checkpoint] | None:
    problems = []
    for path in (files.last, files.previous):
        if not path.is_file():
            continue
        try:
            checkpoint = load_checkpoint(path)
        except ValueError as error:
            problems.append(str(error))
            continue
        _agree_on(path, checkpoint)
        if problems and distributed.is_main():
            files.last.replace(files.damaged)  # else it would become the previous one
            logger.warning(
                "%s; going on from %s, step %d; the damaged file is now %s",
                problems[0],
                path,
                checkpoint.step,
                files.damaged,
            )
        return path, checkpoint
    if problems:
        raise ValueError("; ".join([*problems, "start anew with --overwrite"]))
    if files.best.is_file():
        raise FileNotFoundError(
            f"run folder {files.path} has a best.pth but neither last.pth nor previous.pth to "
            "resume from; a new run would overwrite it: choose another --run-dir"
        )
    return None


def _agree_on(path: Path, checkpoint: Checkpoint) -> None:
    """Raise where processes have found different files, as on a shared disk that lags behind."""
    found = distributed.all_gather_objects(f"step {checkpoint.step} in {path}")
    if len(set(found)) > 1:
        raise ValueError(f"every process must resume from the same checkpoint, got {found}")
