"""Selection of the checkpoint that a resumed run continues from."""

import logging
from pathlib import Path

from deformable_detr import distributed
from deformable_detr.engine.checkpoints.checkpoint import Checkpoint, load_checkpoint
from deformable_detr.engine.run.folder import Resume, RunFolder
from deformable_detr.messages import shown

logger = logging.getLogger(__name__)


def checkpoint_to_resume(files: RunFolder, resume: Resume) -> tuple[Path, Checkpoint] | None:
    """Return the checkpoint and its path, or None for a new run; every process must call.

    Args:
        files: the run folder, locked.
        resume: True takes the newest checkpoint only; "auto" takes the newest that is not damaged,
            and starts from scratch if there is no checkpoint.

    Raises:
        ValueError: the checkpoint to resume from is damaged.
        FileNotFoundError: there is no checkpoint to resume from.
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
            f"{error}; --resume auto continues from the one before, {files.previous}"
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
                "%s; continuing from %s, step %d; the damaged file is now %s",
                problems[0],
                shown(path),
                checkpoint.step,
                shown(files.damaged),
            )
        return path, checkpoint
    if problems:
        raise ValueError("; ".join([*problems, "start from scratch with --overwrite"]))
    if files.best.is_file():
        raise FileNotFoundError(
            f"run folder {shown(files.path)} has a best.pth but neither last.pth nor "
            "previous.pth to resume from; a new run would overwrite it: choose another --run-dir"
        )
    return None


def _agree_on(path: Path, checkpoint: Checkpoint) -> None:
    """Raise if ranks have found different files, as on a shared disk that lags behind."""
    found = distributed.all_gather_objects(f"step {checkpoint.step} in {path}")
    if len(set(found)) > 1:
        raise ValueError(f"every process must resume from the same checkpoint, got {found}")
