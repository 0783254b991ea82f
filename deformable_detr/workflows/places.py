"""Paths of data and run folders, and checks of output paths before any work is done."""

from pathlib import Path

from deformable_detr.config import ConfigError, RunConfig
from deformable_detr.files import as_path
from deformable_detr.formats import TO_COCO
from deformable_detr.messages import shown

BASELINE = "deformable_detr_r50"


def require_folder_place(name: str, folder: Path) -> None:
    """Raise if `folder` is not a directory and cannot be created.

    Args:
        name: name of the argument, for the error.
        folder: folder to write to.

    Raises:
        ValueError: `folder` or one of its parents is a file.
    """
    for place in (folder, *folder.parents):
        if place.is_dir():
            return
        if place.exists():
            raise ValueError(
                f"{name} must be a folder, or a path where one can be created, got "
                f"{shown(folder)}, where {shown(place)} is a file; choose another path"
            )


def require_file_place(name: str, file: Path) -> None:
    """Raise if `file` cannot be written.

    Args:
        name: name of the argument, for the error.
        file: file to write.

    Raises:
        ValueError: `file` is a directory, or its parent cannot be created.
    """
    if file.is_dir():
        raise ValueError(f"{name} must be a file, got the folder {shown(file)}; name a file in it")
    require_folder_place(name, file.parent)


def run_folder(
    run_dir: str | Path | None, config: str | Path | RunConfig | None, *, suffix: str = ""
) -> Path:
    """Return the folder of a run: `run_dir`, or `runs/NAME` with the name of the config.

    Raises:
        ValueError: `run_dir` is None, and the config has no name.
    """
    if run_dir is not None:
        return as_path("run_dir", run_dir)
    if isinstance(config, RunConfig):
        raise ValueError("run_dir must be given where config is a RunConfig, got None")
    return Path("runs") / (Path(config or BASELINE).stem + suffix)


def data_settings(folder: Path) -> dict[str, str]:
    """Return the settings, by dotted key, for a data folder of the standard layout.

    Args:
        folder: folder with `train.json`, `train`, `val.json` and `val`.

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
            f"got {shown(folder)}, {_layout(folder)}which lacks {', '.join(missing)}; for other "
            "layouts override data.train.images, data.train.annotations, data.val.images and "
            "data.val.annotations"
        )
    return {key: str(path) for key, path in places.items()}


def _layout(folder: Path) -> str:
    """Describe a folder of another layout, with what to do; "" if it is not recognized."""
    if (folder / "Annotations").is_dir() or (folder / "JPEGImages").is_dir():
        return f"a folder of Pascal VOC ({TO_COCO}), "
    if (folder / "labels").is_dir() or any(
        (folder / name).is_file() for name in ("data.yaml", "dataset.yaml", "classes.txt")
    ):
        return f"a folder of YOLO ({TO_COCO}), "
    if (folder / "annotations" / "instances_train2017.json").is_file():
        return "the layout of COCO 2017 (annotations/instances_train2017.json, train2017), "
    return "" if folder.is_dir() else "where there is no folder, "
