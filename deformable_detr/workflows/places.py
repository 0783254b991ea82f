"""Paths of data and run folders, and of the files that a run reads."""

from collections.abc import Iterable
from itertools import product
from pathlib import Path

from deformable_detr.config import ConfigError, RunConfig
from deformable_detr.engine.run.folder import RunFolder
from deformable_detr.files import as_path
from deformable_detr.files.formats import TO_COCO
from deformable_detr.messages import shown

BASELINE = "deformable_detr_r50"


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
