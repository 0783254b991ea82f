"""Writing of data sets in COCO JSON, YOLO and Pascal VOC."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import yaml

from deformable_detr.dataset_formats.annotated_set import AnnotatedSet
from deformable_detr.dataset_formats.yolo import SLACK
from deformable_detr.finite import to_json
from deformable_detr.messages import in_brief, shown

Format = Literal["coco", "yolo", "voc"]
_DIGITS = 10  # after the point, of coordinates in [0, 1]


def write_data(folder: Path, sets: Mapping[str, AnnotatedSet], to: Format) -> None:
    """Write the sets of a data set, images included.

    Args:
        folder: a new folder.
        sets: sound sets by name, "train" and "val".
        to: the format. "coco": `train.json` and `train/`, and so on; "yolo": `data.yaml`,
            `images/train/` and `labels/train/`; "voc": images and XML files in `train/`, and
            `labelmap.txt` with the classes in their order.

    Raises:
        ValueError: the format cannot hold something.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for split, found in sets.items():
        images = folder / "images" / split if to == "yolo" else folder / split
        for image in found.record["images"]:
            target = images / image["file_name"]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found.images / image["file_name"], target)
        if to == "coco":
            _write_text(folder / f"{split}.json", to_json(found.record, f"annotations of {split}"))
        elif to == "yolo":
            _write_labels(folder / "labels" / split, found.record)
        else:
            _write_pages(images, found.record)
    names = list(_names(next(iter(sets.values())).record).values())
    if to == "yolo":
        content: dict[str, Any] = {"path": "."}
        content |= {split: f"images/{split}" for split in sets}
        content["names"] = dict(enumerate(names))
        _write_text(folder / "data.yaml", yaml.safe_dump(content, sort_keys=False))
    elif to == "voc":
        _write_text(folder / "labelmap.txt", "".join(f"{name}:::\n" for name in names))


def require_writable(found: AnnotatedSet, to: Format) -> None:
    """Raise a ValueError if a format cannot hold a set.

    YOLO has no crowds; where labels are found by the name of the image, two images must not have
    one name without the suffix; and a box must not reach so far out that it could not be read.
    """
    names = list(_names(found.record).values())
    if len(set(names)) < len(names) and to == "voc":
        raise ValueError("classes must have different names in Pascal VOC, got a name twice")
    bad = [name for name in names if ":" in name or "\n" in name]
    if bad and to == "voc":
        raise ValueError(
            f"names of classes must have no colon in Pascal VOC, got {in_brief(bad[0])}"
        )
    if to == "yolo":
        crowds = sum(one.get("iscrowd", 0) for one in found.record["annotations"])
        if crowds:
            raise ValueError(
                f"YOLO has no regions to ignore, got {crowds} annotations with iscrowd 1; delete "
                "them, or convert to voc, where they are difficult objects"
            )
    if to != "coco":
        _require_boxes(found, to)
        first: dict[str, str] = {}
        for image in found.record["images"]:
            stem = str(Path(image["file_name"]).with_suffix(""))
            twin = first.setdefault(stem, image["file_name"])
            if twin != image["file_name"]:
                raise ValueError(
                    f"images must have different names without their suffixes, got {shown(twin)} "
                    f"and {shown(image['file_name'])}; rename one of them"
                )


def _require_boxes(found: AnnotatedSet, to: Format) -> None:
    """Raise a ValueError for a box that the format could not be read with again."""
    sizes = {one["id"]: (one["width"], one["height"]) for one in found.record["images"]}
    files = {one["id"]: one["file_name"] for one in found.record["images"]}
    for one in found.record["annotations"]:
        values = _relative(one["bbox"], *sizes[one["image_id"]])
        is_outside = to == "yolo" and not all(-SLACK <= value <= 1 + SLACK for value in values)
        if is_outside or min(one["bbox"][2:]) < 0:
            must = "inside their image" if is_outside else "at least 0 wide and high"
            raise ValueError(
                f"boxes must be {must} in {to}, got {one['bbox']} in "
                f"{shown(files[one['image_id']])}; `deformable-detr doctor data` lists them all"
            )


def _relative(bbox: Sequence[float], width: int, height: int) -> tuple[float, float, float, float]:
    """Return center and size in [0, 1] of a box inside the image."""
    x, y, w, h = bbox
    return (x + w / 2) / width, (y + h / 2) / height, w / width, h / height


def _names(record: Mapping[str, Any]) -> dict[int, str]:
    """Return the names of the classes by id, in the order of the ids, which is that of labels."""
    names = {one["id"]: str(one.get("name", one["id"])) for one in record["categories"]}
    return dict(sorted(names.items()))


def _objects(record: Mapping[str, Any]) -> dict[int, list[dict[str, Any]]]:
    objects: dict[int, list[dict[str, Any]]] = {one["id"]: [] for one in record["images"]}
    for one in record["annotations"]:
        objects[one["image_id"]].append(one)
    return objects


def _write_labels(folder: Path, record: Mapping[str, Any]) -> None:
    """Write a label file per image; that of an image without objects is empty."""
    index = {key: place for place, key in enumerate(_names(record))}
    objects = _objects(record)
    for image in record["images"]:
        lines = []
        for one in objects[image["id"]]:
            values = _relative(one["bbox"], image["width"], image["height"])
            numbers = " ".join(f"{value:.{_DIGITS}f}" for value in values)
            lines.append(f"{index[one['category_id']]} {numbers}\n")
        target = (folder / image["file_name"]).with_suffix(".txt")
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_text(target, "".join(lines))


def _write_pages(folder: Path, record: Mapping[str, Any]) -> None:
    """Write an XML file per image; corners count from 0, as annotation tools write them."""
    names, objects = _names(record), _objects(record)
    for image in record["images"]:
        root = ElementTree.Element("annotation")
        _add(root, "filename", Path(image["file_name"]).name)
        _add(_add(root, "source"), "database", "Unknown")
        size = _add(root, "size")
        for key, value in (("width", image["width"]), ("height", image["height"]), ("depth", 3)):
            _add(size, key, value)
        for one in objects[image["id"]]:
            x, y, w, h = one["bbox"]
            entry = _add(root, "object")
            _add(entry, "name", names[one["category_id"]])
            _add(entry, "difficult", one.get("iscrowd", 0))
            box = _add(entry, "bndbox")
            for key, value in (("xmin", x), ("ymin", y), ("xmax", x + w), ("ymax", y + h)):
                _add(box, key, f"{value:.10g}")
        ElementTree.indent(root)
        page = ElementTree.tostring(root, encoding="unicode")
        _write_text((folder / image["file_name"]).with_suffix(".xml"), f"{page}\n")


def _add(parent: ElementTree.Element, tag: str, text: object = None) -> ElementTree.Element:
    element = ElementTree.SubElement(parent, tag)
    if text is not None:
        element.text = str(text)
    return element


def _write_text(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
