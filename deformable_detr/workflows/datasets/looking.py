"""A page and a contact sheet of a data set of any format."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from deformable_detr.arguments import checked, require_integer
from deformable_detr.data.channel_images import decode_image
from deformable_detr.data.image_headers import read_header
from deformable_detr.dataset_formats.annotated_set import AnnotatedSet
from deformable_detr.dataset_formats.recognition import recognize_data
from deformable_detr.files import as_path
from deformable_detr.files.output_folder import OutputFile
from deformable_detr.labels import LabelSpace
from deformable_detr.messages import in_brief, listed, shown
from deformable_detr.photos import Exif
from deformable_detr.pixels.channels import RGB, to_rgb
from deformable_detr.pixels.npy import SUFFIX as NPY_SUFFIX
from deformable_detr.preset.statistics import SetStatistics, measure
from deformable_detr.preset.views import choose_view
from deformable_detr.reporting.data_findings import DataFindings, Layer
from deformable_detr.reporting.data_page import write_data_page
from deformable_detr.visualize.objects import draw_annotations

PAGE_PICTURES = 6
_PICTURE_PX = 480  # longer side, on the page and on the sheet
_GAP_PX = 8
_BACKGROUND = (32, 32, 32)
MOST_PICTURES = 400  # of a sheet


@dataclass(frozen=True)
class _Sets:
    """The sets of a data set, sound, and the classes of all of them."""

    format: str
    sets: Mapping[str, AnnotatedSet]
    categories: LabelSpace

    @classmethod
    def open(cls, path: Path) -> "_Sets":
        found = recognize_data(path)
        sets = found.open_all()
        for one in sets.values():
            one.require_sound()
        every = {row["id"]: row for one in sets.values() for row in one.record["categories"]}
        return cls(found.format, sets, LabelSpace.from_categories(list(every.values())))

    def images(self) -> Iterator[tuple[str, int]]:
        """Iterate over all images, as the name of the set and the position in it."""
        for split, one in self.sets.items():
            for position in range(len(one.record["images"])):
                yield split, position

    def labels_of(self, split: str) -> list[list[int]]:
        """Return the labels of the objects of each image of a set."""
        record = self.sets[split].record
        labels: dict[int, list[int]] = {one["id"]: [] for one in record["images"]}
        for one in record["annotations"]:
            labels[one["image_id"]].append(self.categories.label(one["category_id"]))
        return list(labels.values())

    def picture(self, split: str, position: int) -> Image.Image:
        """Return an image with its annotations drawn."""
        found = self.sets[split]
        entry = found.record["images"][position]
        file = found.images / entry["file_name"]
        is_stored = read_header(file).upright != (entry["height"], entry["width"])
        image = _read(file, "stored" if is_stored else "upright")
        own = [one for one in found.record["annotations"] if one["image_id"] == entry["id"]]
        boxes = torch.tensor([one["bbox"] for one in own], dtype=torch.float32).view(-1, 4)
        boxes_xyxy = torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1)
        labels = torch.tensor([self.categories.label(one["category_id"]) for one in own])
        picture = draw_annotations(image, boxes_xyxy, labels.long(), self.categories)
        picture.thumbnail((_PICTURE_PX, _PICTURE_PX))
        return picture

    def layer(self, split: str) -> Layer:
        """Return the numbers of a set."""
        record = self.sets[split].record
        rows = {one["id"]: row for row, one in enumerate(record["images"])}
        objects = record["annotations"]
        return Layer(
            split,
            [one["file_name"] for one in record["images"]],
            np.array([(one["height"], one["width"]) for one in record["images"]]).reshape(-1, 2),
            np.array([one["bbox"] for one in objects], float).reshape(-1, 4),
            np.array([rows[one["image_id"]] for one in objects], int),
            np.array([self.categories.label(one["category_id"]) for one in objects], int),
        )


@checked
def describe_data(
    path: str | Path, out: str | Path, *, size: int | None = None, overwrite: bool = False
) -> DataFindings:
    """Write a page about a data set: classes, sizes, numbers and places of objects, and images.

    Args:
        path: the data set, in any format that `train` takes.
        out: HTML file to write.
        size: shorter side in pixels of images as the model sees them; None for what the preset
            chooses on a CPU.
        overwrite: replace a file that no command of this package has written.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: the data set breaks a rule, or `out` is an input or a file of the user.
    """
    if size is not None:
        require_integer("size", size, at_least=1)
    path, out = as_path("path", path), as_path("out", out)
    target = OutputFile(out, "out", overwrite=overwrite)
    target.check(inputs=[path] if path.is_file() else [])
    opened = _Sets.open(path)
    layers = [opened.layer(split) for split in opened.sets]
    findings = DataFindings(
        opened.format,
        layers,
        opened.categories.names,
        size or _eval_size(layers),
        [line for one in opened.sets.values() for line in one.describe_left_out()],
    )
    chosen = _chosen(list(opened.images()), PAGE_PICTURES, seed=0)
    pictures = [
        (
            opened.sets[split].record["images"][position]["file_name"],
            opened.picture(split, position),
        )
        for split, position in chosen
    ]
    target.write(lambda file: write_data_page(file, path.absolute().stem, findings, pictures))
    return findings


@checked
def show_data(
    path: str | Path,
    out: str | Path,
    *,
    count: int = 16,
    seed: int = 0,
    class_name: str | None = None,
    overwrite: bool = False,
) -> int:
    """Write a contact sheet of random images with their annotations.

    Args:
        path: the data set, in any format that `train` takes.
        out: picture to write; its suffix names the format.
        count: number of images; fewer if there are fewer.
        seed: seed of the choice.
        class_name: show only images with an object of this class.
        overwrite: as for `describe_data`.

    Returns:
        The number of images on the sheet.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: the data set breaks a rule, has no such class or no image with it, or `out` has
            no suffix of a picture, is an input or a file of the user.
    """
    require_integer("count", count, at_least=1)
    if count > MOST_PICTURES:
        raise ValueError(f"count must be at most {MOST_PICTURES}, got {count}")
    path, out = as_path("path", path), as_path("out", out)
    if out.suffix.lower() not in (".jpg", ".jpeg", ".png"):
        raise ValueError(f"out must end with .jpg or .png, got {shown(out)}")
    target = OutputFile(out, "out", overwrite=overwrite)
    target.check(inputs=[path] if path.is_file() else [])
    opened = _Sets.open(path)
    every = list(opened.images())
    if class_name is not None:
        names = opened.categories.names
        if class_name not in names:
            raise ValueError(f"class must be one of {listed(names)}, got {in_brief(class_name)}")
        label = names.index(class_name)
        labels = {split: opened.labels_of(split) for split in opened.sets}
        every = [(split, row) for split, row in every if label in labels[split][row]]
    if not every:
        raise ValueError(f"data must have an image to show, got none in {shown(path)}")
    pictures = [opened.picture(*one) for one in _chosen(every, count, seed=seed)]
    sheet = contact_sheet(pictures)
    kind = "PNG" if out.suffix.lower() == ".png" else "JPEG"
    target.write(lambda file: sheet.save(file, kind, quality=90))
    return len(pictures)


def _read(file: Path, exif: Exif) -> Image.Image:
    """Read an image of any number of channels, for a picture."""
    header = read_header(file)
    is_array = file.suffix.lower() == NPY_SUFFIX
    channels = header.num_planes * header.num_pages if is_array else RGB
    return to_rgb(decode_image(file, shown(file), exif=exif, channels=channels))


def _chosen(images: Sequence[tuple[str, int]], count: int, *, seed: int) -> list[tuple[str, int]]:
    """Draw some of the images, in their order."""
    rows = random.Random(seed).sample(range(len(images)), min(count, len(images)))
    return [images[row] for row in sorted(rows)]


def contact_sheet(pictures: Sequence[Image.Image]) -> Image.Image:
    """Arrange pictures in a grid, about as wide as it is high, each in the middle of its cell."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    width = max(one.width for one in pictures) + _GAP_PX
    height = max(one.height for one in pictures) + _GAP_PX
    sheet = Image.new("RGB", (columns * width + _GAP_PX, rows * height + _GAP_PX), _BACKGROUND)
    for index, one in enumerate(pictures):
        row, column = divmod(index, columns)
        left = _GAP_PX + column * width + (width - _GAP_PX - one.width) // 2
        top = _GAP_PX + row * height + (height - _GAP_PX - one.height) // 2
        sheet.paste(one, (left, top))
    return sheet


def _eval_size(layers: Sequence[Layer]) -> int:
    """Return the shorter side that the preset chooses for evaluation on a CPU."""
    sets = {one.name: _statistics(one) for one in layers if len(one.files)}
    train = sets.get("train") or next(iter(sets.values()))
    return choose_view(train, sets.get("val", train), "cpu").eval_size


def _statistics(layer: Layer) -> SetStatistics:
    boxes = layer.boxes_xywh.copy()
    boxes[:, 2:] = boxes[:, :2] + boxes[:, 2:].clip(0)
    order = np.argsort(layer.owners, kind="stable")
    return measure(
        layer.sizes,
        boxes[order].astype(np.float32),
        layer.labels[order],
        layer.per_image,
        num_classes=int(layer.labels.max(initial=0)) + 1,
    )
