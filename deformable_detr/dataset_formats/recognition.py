"""Recognition of the format of a data set."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deformable_detr.coco_json.reading import read_json
from deformable_detr.dataset_formats import coco_layouts, voc, yolo
from deformable_detr.dataset_formats.annotated_set import AnnotatedSet, images_below
from deformable_detr.dataset_formats.coco_layouts import CocoFiles
from deformable_detr.messages import shown

LAYOUTS = (
    "COCO JSON (train.json and val.json with image folders train and val), YOLO (data.yaml) or "
    "Pascal VOC (XML files)"
)


@dataclass(frozen=True)
class FoundData:
    """A data set that was recognized.

    Attributes:
        format: "COCO JSON", "YOLO" or "Pascal VOC".
        coco: annotation files of the sets "train" and "val", of COCO JSON; not read yet.
        sets: the sets, of other formats.
    """

    format: str
    coco: Mapping[str, CocoFiles]
    sets: Mapping[str, AnnotatedSet]

    def open_all(self) -> dict[str, AnnotatedSet]:
        """Return the sets, those of COCO JSON read and not checked."""
        if not self.coco:
            return dict(self.sets)
        return {
            split: AnnotatedSet(
                self.format,
                files.images,
                read_json(files.annotations, "annotation file"),
                file=files.annotations,
            )
            for split, files in self.coco.items()
        }


def recognize_data(path: Path) -> FoundData:
    """Recognize a data set, and read it if it is not in COCO JSON.

    Args:
        path: its folder; or a COCO annotation file, or the YAML file of YOLO.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: the format is not recognized, or something in the files prevents reading.
    """
    if not path.exists():
        raise FileNotFoundError(f"data must be a folder or a file, got {shown(path)}: no such file")
    if path.is_file():
        if path.suffix.lower() in (".yaml", ".yml"):
            return FoundData(yolo.NAME, {}, yolo.read_yolo(path))
        if path.suffix.lower() == ".json":
            return FoundData(coco_layouts.NAME, coco_layouts.find_coco(path), {})
        raise ValueError(f"data must be a folder, a JSON or a YAML file, got {shown(path)}")
    found = coco_layouts.find_coco(path)
    if found:
        return FoundData(coco_layouts.NAME, found, {})
    if yolo.is_yolo(path):
        return FoundData(yolo.NAME, {}, yolo.read_yolo(path))
    if voc.is_voc(path):
        return FoundData(voc.NAME, {}, voc.read_voc(path))
    raise ValueError(f"data must be a folder with {LAYOUTS}, got {shown(path)}, {_content(path)}")


def _content(folder: Path) -> str:
    """Describe what a folder holds, for an error."""
    images = images_below(folder)
    if images:
        return f"which has {len(images)} images, but no annotations that are recognized"
    return "which has neither images nor annotations"
