"""Data sets of YOLO and Pascal VOC, written from a COCO set without the package."""

import shutil
from pathlib import Path
from typing import Any

from helpers.coco_files import CocoFiles


def objects_of(record: dict[str, Any], image: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in record["annotations"] if one["image_id"] == image["id"]]


def write_yolo(folder: Path, **sets: CocoFiles) -> Path:
    """Write data.yaml, images/SPLIT and labels/SPLIT; an image without objects gets no file."""
    names: list[str] = []
    for split, files in sets.items():
        record = files.read()
        names = [one["name"] for one in record["categories"]]
        index = {one["id"]: place for place, one in enumerate(record["categories"])}
        labels = folder / "labels" / split
        labels.mkdir(parents=True)
        shutil.copytree(files.images, folder / "images" / split)
        for image in record["images"]:
            width, height = image["width"], image["height"]
            lines = [
                f"{index[one['category_id']]} {(x + w / 2) / width:.6f} {(y + h / 2) / height:.6f} "
                f"{w / width:.6f} {h / height:.6f}\n"
                for one in objects_of(record, image)
                for x, y, w, h in [one["bbox"]]
            ]
            if lines:
                (labels / image["file_name"]).with_suffix(".txt").write_text("".join(lines))
    splits = "".join(f"{split}: images/{split}\n" for split in sets)
    (folder / "data.yaml").write_text(f"path: .\n{splits}names: {names}\n")
    return folder


def voc_page(record: dict[str, Any], image: dict[str, Any], *, shift: int = 0) -> str:
    """Return an XML file; `shift` is 1 for the devkit's corners, which count from 1."""
    names = {one["id"]: one["name"] for one in record["categories"]}
    objects = "".join(
        f"<object><name>{names[one['category_id']]}</name><difficult>0</difficult><bndbox>"
        f"<xmin>{x + shift}</xmin><ymin>{y + shift}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
        "</bndbox></object>"
        for one in objects_of(record, image)
        for x, y, w, h in [one["bbox"]]
    )
    database = "The VOC2007 Database" if shift else "Unknown"
    return (
        f"<annotation><filename>{image['file_name']}</filename><source><database>{database}"
        f"</database></source><size><width>{image['width']}</width><height>{image['height']}"
        f"</height><depth>3</depth></size>{objects}</annotation>"
    )


def write_voc(folder: Path, **sets: CocoFiles) -> Path:
    """Write a folder of images and XML files per set, as Roboflow does."""
    for split, files in sets.items():
        record = files.read()
        shutil.copytree(files.images, folder / split)
        for image in record["images"]:
            place = (folder / split / image["file_name"]).with_suffix(".xml")
            place.write_text(voc_page(record, image))
    return folder


def write_devkit(folder: Path, **sets: CocoFiles) -> Path:
    """Write the layout of the devkit: ImageSets/Main, JPEGImages, Annotations."""
    for name in ("ImageSets/Main", "JPEGImages", "Annotations"):
        (folder / name).mkdir(parents=True)
    for split, files in sets.items():
        record = files.read()
        stems = []
        for image in record["images"]:
            stem = f"{split}_{Path(image['file_name']).stem}"
            stems.append(stem)
            shutil.copy(files.images / image["file_name"], folder / "JPEGImages" / f"{stem}.png")
            page = voc_page(record, image, shift=1)
            (folder / "Annotations" / f"{stem}.xml").write_text(page)
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems))
    return folder
