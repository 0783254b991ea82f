"""A page and a contact sheet of a data set of any format."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from deformable_detr.arguments import checked, require_integer
from deformable_detr.data.coco import CocoDataset
from deformable_detr.data.image_headers import channels_of
from deformable_detr.dataset_formats.coco_layouts import CocoFiles, first_image
from deformable_detr.dataset_formats.recognition import FoundData, recognize_data
from deformable_detr.files import as_path
from deformable_detr.files.output_folder import OutputFile
from deformable_detr.finite import to_json
from deformable_detr.labels import LabelSpace
from deformable_detr.messages import in_brief, listed, shown
from deformable_detr.pixels.channels import to_rgb
from deformable_detr.preset.statistics import SetStatistics, measure
from deformable_detr.preset.views import choose_view
from deformable_detr.reporting.data_findings import DataFindings, Split
from deformable_detr.reporting.data_page import write_data_page
from deformable_detr.visualize.contact_sheet import contact_sheet
from deformable_detr.visualize.objects import draw_annotations

PAGE_PICTURES = 6
PICTURE_PX = 480  # longer side, on the page and on the sheet
MOST_PICTURES = 400  # of a sheet
_SHEETS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}


@dataclass(frozen=True)
class _Data:
    """A data set as training reads it, without splitting off a validation set.

    Attributes:
        format: format of its files.
        sets: the sets "train" and "val", with the same categories.
        left_out: what was left out, one line each.
    """

    format: str
    sets: Mapping[str, CocoDataset]
    left_out: Sequence[str]

    @classmethod
    def open(cls, path: Path) -> "_Data":
        found = recognize_data(path)
        sets: dict[str, CocoDataset] = {}
        left_out = [line for one in found.sets.values() for line in one.describe_left_out()]
        with TemporaryDirectory(prefix="deformable_detr_") as folder:
            for split, files in _coco_files(found, Path(folder)).items():
                train = sets.get("train")
                sets[split] = CocoDataset(
                    files.images,
                    files.annotations,
                    label_space=None if train is None else train.label_space,
                    image_order="file_name",
                    channels=channels_of(files.images / (first_image(files.annotations) or "")),
                )
        for split, one in sets.items():
            left_out += [
                f"left out, {reason} in {split}: {count:,}"
                for reason, count in one.num_dropped.items()
                if count
            ]
        return cls(found.format, sets, left_out)

    @property
    def categories(self) -> LabelSpace:
        """The classes of all sets."""
        return next(iter(self.sets.values())).label_space

    def images(self) -> Iterator[tuple[str, int]]:
        """Iterate over all images, as the name of the set and the index in it."""
        for split, one in self.sets.items():
            for index in range(len(one)):
                yield split, index

    def picture(self, split: str, index: int) -> Image.Image:
        """Return an image with its annotations drawn."""
        sample = self.sets[split][index]
        image = to_rgb(sample.image)
        picture = draw_annotations(image, sample.boxes_xyxy, sample.labels, self.categories)
        picture.thumbnail((PICTURE_PX, PICTURE_PX))
        return picture

    def require_kept(self, target: OutputFile) -> None:
        """Raise if an output would replace an image."""
        name = target.path.name.casefold()
        files = (file for one in self.sets.values() for file in one.files)
        target.check(inputs=[file for file in files if file.name.casefold() == name])


def _coco_files(found: FoundData, folder: Path) -> dict[str, CocoFiles]:
    """Return the COCO files of each set; of other formats they are written to a folder."""
    if found.coco:
        return dict(found.coco)
    files = {}
    for split, one in found.sets.items():
        one.require_sound()
        file = folder / f"{split}.json"
        file.write_text(to_json(one.record, f"annotations of {split}"), encoding="utf-8")
        files[split] = CocoFiles(file, one.images)
    return files


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

    Returns:
        The numbers of the page.

    Raises:
        FileNotFoundError: there is nothing at `path`, or no file of an image.
        ValueError: the data set breaks a rule, or `out` does not end with .html or is a file of
            the user.
    """
    if size is not None:
        require_integer("size", size, at_least=1)
    path, out = as_path("path", path), as_path("out", out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"out must end with .html, got {shown(out)}")
    target = OutputFile(out, "out", overwrite=overwrite)
    target.check()
    data = _Data.open(path)
    findings = DataFindings(data.format, _splits(data, size), data.categories.names, data.left_out)
    chosen = _drawn(list(data.images()), PAGE_PICTURES, seed=0)
    pictures = [
        (data.sets[split].file_name(index), data.picture(split, index)) for split, index in chosen
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
        count: number of images, at most 400; fewer if there are fewer.
        seed: seed of the choice.
        class_name: show only images with an object of this class.
        overwrite: as for `describe_data`.

    Returns:
        The number of images on the sheet.

    Raises:
        FileNotFoundError: as for `describe_data`.
        ValueError: the data set breaks a rule, has no such class or no image with it, or `out` has
            no suffix of a picture, is an image of the set or a file of the user.
    """
    require_integer("count", count, at_least=1)
    if count > MOST_PICTURES:
        raise ValueError(f"count must be at most {MOST_PICTURES}, got {count}")
    path, out = as_path("path", path), as_path("out", out)
    kind = _SHEETS.get(out.suffix.lower())
    if kind is None:
        raise ValueError(f"out must end with .jpg or .png, got {shown(out)}")
    target = OutputFile(out, "out", overwrite=overwrite)
    target.check()
    data = _Data.open(path)
    data.require_kept(target)
    every = list(data.images())
    if class_name is not None:
        label = _label(data.categories, class_name)
        every = [(split, index) for split, index in every if data.sets[split].shows(index, label)]
    if not every:
        raise ValueError(f"data must have an image to show, got none in {shown(path)}")
    pictures = [data.picture(*one) for one in _drawn(every, count, seed=seed)]
    sheet = contact_sheet(pictures)
    target.write(lambda file: sheet.save(file, kind, quality=90))
    return len(pictures)


def _label(categories: LabelSpace, name: str) -> int:
    names = categories.names
    if name not in names:
        raise ValueError(f"class must be one of {listed(names)}, got {in_brief(name)}")
    return names.index(name)


def _drawn(images: Sequence[tuple[str, int]], count: int, *, seed: int) -> list[tuple[str, int]]:
    """Draw some of the images, in their order."""
    rows = random.Random(seed).sample(range(len(images)), min(count, len(images)))
    return [images[row] for row in sorted(rows)]


def _splits(data: _Data, size: int | None) -> list[Split]:
    """Return the numbers of each set, with the sizes that the preset chooses on a CPU."""
    sides = dict.fromkeys(data.sets, float(size or 0))
    if size is None:
        measured = {split: _statistics(one) for split, one in data.sets.items()}
        train = measured["train"]
        view = choose_view(train, measured.get("val", train), "cpu")
        share = 1.0 if view.crop_px is None else train.short_side / view.crop_px
        sides |= {"train": view.size * share}
        sides |= {"val": float(view.eval_size)} if "val" in sides else {}
    return [
        Split(
            split,
            [one.file_name(index) for index in range(len(one))],
            one.sizes,
            one.num_objects,
            one.objects.boxes_xyxy.numpy(),
            one.objects.labels.numpy(),
            sides[split],
        )
        for split, one in data.sets.items()
    ]


def _statistics(dataset: CocoDataset) -> SetStatistics:
    return measure(
        dataset.sizes,
        dataset.objects.boxes_xyxy.numpy(),
        dataset.objects.labels.numpy(),
        dataset.num_objects,
        num_classes=dataset.label_space.num_classes,
    )
