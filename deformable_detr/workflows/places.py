"""Paths of a workflow: its data, its run folder, and checks of output paths before any work."""

from pathlib import Path

from deformable_detr.config import ConfigError, RunConfig

BASELINE = "deformable_detr_r50"


def require_folder_place(name: str, folder: Path) -> None:
    """Raise if `folder` is not a folder and cannot become one.

    Args:
        name: of the argument, for the error.
        folder: where a workflow is to write.

    Raises:
        ValueError: a file stands where the folder, or one above it, should be.
    """
    for place in (folder, *folder.parents):
        if place.is_dir():
            return
        if place.exists():
            raise ValueError(
                f"{name} must name a folder, or a place for one, got {folder}, "
                f"where {place} is a file; choose another place"
            )


def require_file_place(name: str, file: Path) -> None:
    """Raise if `file` cannot be written.

    Args:
        name: of the argument, for the error.
        file: what a workflow is to write.

    Raises:
        ValueError: `file` is a folder, or its folder cannot be created.
    """
    if file.is_dir():
        raise ValueError(f"{name} must be a file, got the folder {file}; name a file in it")
    require_folder_place(name, file.parent)


def run_folder(
    run_dir: str | Path | None, config: str | Path | RunConfig | None, *, suffix: str = ""
) -> Path:
    """The folder of a run: `run_dir`, or `runs/NAME` with the name of the config.

    Raises:
        ValueError: neither gives a name.
    """
    if run_dir is not None:
        return Path(run_dir)
    if isinstance(config, RunConfig):
        raise ValueError("run_dir must be given where config is a RunConfig, got None")
    return Path("runs") / (Path(config or BASELINE).stem + suffix)


def data_settings(folder: Path) -> dict[str, str]:
    """The settings that name the data of a folder, by their dotted keys.

    Args:
        folder: holds `train.json`, `train`, `val.json` and `val`.

    Raises:
        ConfigError: one of them is missing.
    """
    places = {
        f"data.{split}.{key}": folder / f"{split}{suffix}"
        for split in ("train", "val")
        for key, suffix in (("images", ""), ("annotations", ".json"))
    }
    missing = [path.name for path in places.values() if not path.exists()]
    if missing:
        raise ConfigError(
            f"data must be a folder with train.json, val.json and the image folders train and val, "
            f"got {folder}, which lacks {', '.join(missing)}; else give data.train.images=DIR, "
            "data.train.annotations=JSON, and the same of data.val, as overrides"
        )
    return {key: str(path) for key, path in places.items()}
