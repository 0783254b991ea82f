"""Data of the user's own: sets of any format, as the COCO annotation files that a run reads."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deformable_detr import distributed
from deformable_detr.arguments import checked
from deformable_detr.config import ConfigError
from deformable_detr.config.loading import load_run_config
from deformable_detr.dataset_formats.annotated_set import AnnotatedSet
from deformable_detr.dataset_formats.recognition import FoundData, recognize_data
from deformable_detr.dataset_formats.splitting import VAL_FRACTION, part_of, split_images
from deformable_detr.engine.run.folder import Resume, RunFolder
from deformable_detr.files import write_whole
from deformable_detr.finite import to_json
from deformable_detr.messages import counted, shown

SPLITS = ("train", "val")


@dataclass(frozen=True)
class OwnData:
    """Data of a run that were given as one folder or file.

    Attributes:
        settings: the settings that name them, by dotted key.
        decisions: what was decided about them, one line each.
    """

    settings: Mapping[str, Any]
    decisions: tuple[str, ...]


@checked
def own_data(
    path: Path, files: RunFolder, *, resume: Resume, split_by: str | None = None, seed: int = 0
) -> OwnData:
    """Recognize data of any format, and write the annotations that a run needs.

    A run that is resumed keeps its own.

    Images stay where they are. COCO files for training and validation are read where they are too;
    of other formats, and of a set that is split, COCO files are written to the run folder. Their
    names hold a digest of their content, so that a new start does not change those of a run.

    Rank 0 does the work; all processes get the same result, or the same error.

    Args:
        path: folder of the data, COCO file, or YAML file of YOLO.
        files: the run folder.
        resume: as for `RunFolder.check`.
        split_by: see `split_images`; only for data without a validation set.
        seed: seed of the split.

    Raises:
        ConfigError: the data are not recognized, or break a rule.
    """

    def prepare() -> OwnData:
        if resume and files.config.is_file():
            kept = load_run_config(files.config).model_dump(mode="json")
            return OwnData(_kept(kept), ("those of the run, as it is resumed",))
        try:
            found = recognize_data(path)
            return _prepare(path, found, files, split_by=split_by, seed=seed)
        except (OSError, ValueError) as error:
            raise ConfigError(str(error)) from error

    return distributed.from_main(prepare)


def _kept(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the data of a run that is resumed, by dotted key.

    Args:
        config: plain content of its `config.yaml`.
    """
    data = config["data"]
    settings = {
        f"data.{split}.{key}": data[split][key]
        for split in SPLITS
        for key in ("images", "annotations")
    }
    return {**settings, "data.image_order": data["image_order"]}


def _prepare(
    path: Path, found: FoundData, files: RunFolder, *, split_by: str | None, seed: int
) -> OwnData:
    if split_by is not None and "val" in (found.coco or found.sets):
        raise ValueError(
            "split_by must be given for data without a validation set only, got both; leave it out"
        )
    decisions = [f"{found.format} in {shown(path)}"]
    if set(found.coco) == {*SPLITS}:
        settings = {
            f"data.{split}.{key}": str(getattr(one, key))
            for split, one in found.coco.items()
            for key in ("images", "annotations")
        }
        _write_decisions(files, decisions)
        return OwnData({**settings, "data.image_order": "file_name"}, tuple(decisions))
    sets = found.open_all()
    for one in sets.values():
        one.require_sound()
        decisions += [*one.notes, *one.describe_left_out()]
    if "val" not in sets:
        sets, line = _split(sets["train"], split_by=split_by, seed=seed)
        decisions.append(line)
    else:
        _unite_categories(sets)
    settings = {"data.image_order": "file_name"}
    for split, one in sets.items():
        file = _write(files, split, one.record)
        settings[f"data.{split}.images"] = str(one.images)
        settings[f"data.{split}.annotations"] = str(file)
        number = counted(len(one.record["annotations"]), "object")
        decisions.append(f"{split}: {counted(len(one.record['images']), 'image')}, {number}")
    _write_decisions(files, decisions)
    return OwnData(settings, tuple(decisions))


def _split(
    train: AnnotatedSet, *, split_by: str | None, seed: int
) -> tuple[dict[str, AnnotatedSet], str]:
    """Return both sets, and a line about the split."""
    record = train.record
    chosen = split_images(record, seed=seed, split_by=split_by)
    every = {one["id"] for one in record["images"]}
    sets = {
        split: AnnotatedSet(train.format, train.images, part_of(record, images))
        for split, images in (("train", every - chosen), ("val", chosen))
    }
    kept = "" if split_by is None else f", images of one group of {split_by!r} together"
    return sets, (
        f"no validation set: {len(chosen)} of {len(every)} images were split off "
        f"({VAL_FRACTION:.0%}, by class and number of objects, seed {seed}{kept})"
    )


def _unite_categories(sets: Mapping[str, AnnotatedSet]) -> None:
    """Give both sets the categories of either; ids are the same, as one reader has read both."""
    categories = {one["id"]: one for found in sets.values() for one in found.record["categories"]}
    for found in sets.values():
        found.record["categories"] = [categories[key] for key in sorted(categories)]


def _write(files: RunFolder, split: str, record: Mapping[str, Any]) -> Path:
    """Write an annotation file of the run, and return its path."""
    content = {key: record[key] for key in ("images", "categories", "annotations")}
    text = to_json(content, f"annotations of {split}")
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    file = files.annotations / f"{split}_{digest}.json"
    if not file.is_file():
        files.annotations.mkdir(parents=True, exist_ok=True)
        with write_whole(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return file


def _write_decisions(files: RunFolder, lines: Sequence[str]) -> None:
    files.annotations.mkdir(parents=True, exist_ok=True)
    with write_whole(files.annotations / "decisions.txt") as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
