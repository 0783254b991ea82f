"""Paths of data and run folders, and of the files that a run reads."""

from collections.abc import Iterable
from itertools import product
from pathlib import Path

from deformable_detr.config import RunConfig
from deformable_detr.engine.run.folder import RunFolder
from deformable_detr.files import as_path
from deformable_detr.messages import shown

BASELINE = "deformable_detr_r50"


def run_folder(
    run_dir: str | Path | None,
    config: str | Path | RunConfig | None,
    *,
    suffix: str = "",
    data: str | Path | None = None,
) -> Path:
    """Return the folder of a run: `run_dir`, or `runs/NAME` with the name of the config.

    Without a config, NAME is that of the data.

    Raises:
        ValueError: `run_dir` is None, and the config has no name.
    """
    if run_dir is not None:
        return as_path("run_dir", run_dir)
    if config is None and data is not None:
        return Path("runs") / (as_path("data", data).absolute().stem + suffix)
    if isinstance(config, RunConfig):
        raise ValueError("run_dir must be given where config is a RunConfig, got None")
    return Path("runs") / (Path(config or BASELINE).stem + suffix)


def require_kept_inputs(
    files: RunFolder, inputs: Iterable[Path], images: Iterable[Path] = ()
) -> None:
    """Raise if `--overwrite` would delete a file that the new run reads.

    Args:
        files: the run folder.
        inputs: files that the run reads.
        images: images that it reads; looked at if they have the name of a file of the run.
    """
    own = files.files_to_delete()
    names = {file.name.casefold() for file in own}
    read = [*inputs, *(file for file in images if file.name.casefold() in names)]
    for file, one in product(own, filter(Path.is_file, read)):
        if file.is_file() and file.samefile(one):
            raise ValueError(
                f"--overwrite must not delete an input of the run, got {shown(file)}; copy it out "
                "of the run folder, or choose another --run-dir"
            )


def input_files(config: RunConfig, *given: object) -> list[Path]:
    """Return the files that a run reads, apart from images: those of its config, and those given.

    Args:
        config: config of the run.
        given: paths; anything else is passed over.
    """
    sets = (config.data.train, config.data.val)
    paths = [Path(one.annotations) for one in sets if one.annotations is not None]
    weights = getattr(config.model.backbone, "weights", None)
    return paths + [Path(one) for one in (weights, *given) if isinstance(one, str | Path)]
