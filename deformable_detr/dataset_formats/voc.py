"""Pascal VOC: one XML file per image, with the corners of each object in pixels."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from deformable_detr.dataset_formats.annotated_set import (
    AnnotatedSet,
    Fault,
    annotation_entry,
    category_entries,
    image_entry,
    images_below,
    read_lines,
    require_unique_stems,
    upright_size_of,
)
from deformable_detr.files import require_regular_file
from deformable_detr.messages import in_brief, listed, printable, shown
from deformable_detr.structures import Size

NAME = "Pascal VOC"
_SPLITS = {"train": ("train",), "val": ("val", "valid", "validation")}
_MAX_BYTES = 16 << 20  # of an XML file
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_LABEL_MAP = "labelmap.txt"  # of CVAT: name:color:parts:actions
_BACKGROUND = "background"
_KEPT_FOLDERS = ("Annotations", "annotations", "labels", "xml")


@dataclass(frozen=True)
class _Object:
    """An object of an XML file; corners as they are written."""

    name: str
    corners: tuple[float, float, float, float]
    is_difficult: bool
    place: str


@dataclass
class _Page:
    """Content of an XML file."""

    file: Path
    file_name: str
    size: Size | None
    is_of_devkit: bool
    objects: list[_Object]


def is_voc(folder: Path) -> bool:
    """Return whether a folder holds a data set of Pascal VOC."""
    return next(_xml_files(folder), None) is not None


def read_voc(folder: Path) -> dict[str, AnnotatedSet]:
    """Read a data set of Pascal VOC.

    Args:
        folder: with `ImageSets/Main/train.txt`, `JPEGImages` and `Annotations`; or with folders of
            images and XML files, together or in parallel, for each set or for all.

    Returns:
        The sets "train" and "val", as far as there are any.

    Raises:
        ValueError: names the file, and what is wrong with it.
    """
    lists = folder / "ImageSets" / "Main"
    if (lists / "train.txt").is_file():
        pairs = {split: _listed(folder, lists, words) for split, words in _SPLITS.items()}
    else:
        pairs = {split: _in_folders(folder, words) for split, words in _SPLITS.items()}
        if not pairs["train"]:
            pairs = {"train": _pairs(images_below(folder), list(_xml_files(folder)))}
    pages: dict[str, list[tuple[Path | None, _Page | Fault]]] = {
        split: [(image, _read_page(xml)) for image, xml in found]
        for split, found in pairs.items()
        if found
    }
    every = [page for found in pages.values() for _, page in found if isinstance(page, _Page)]
    names = _class_names(folder, every)
    devkit = _is_one_based(every)
    return {
        split: _as_set(folder, found, names, one_based=devkit) for split, found in pages.items()
    }


def _xml_files(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.rglob("*.xml")) if file.is_file())


def _listed(folder: Path, lists: Path, words: Sequence[str]) -> list[tuple[Path | None, Path]]:
    """Return image and XML file of each name in a list of the devkit."""
    file = next(
        (lists / f"{word}.txt" for word in words if (lists / f"{word}.txt").is_file()), None
    )
    if file is None:
        return []
    images = {image.stem: image for image in images_below(folder / "JPEGImages")}
    found: list[tuple[Path | None, Path]] = []
    for number, line in enumerate(read_lines(file), 1):
        name = line.split()[0] if line.strip() else ""
        if not name:
            continue
        xml = folder / "Annotations" / f"{name}.xml"
        if name not in images or not xml.is_file():
            missing = xml if name in images else folder / "JPEGImages" / f"{name}.jpg"
            raise ValueError(
                f"{shown(file)} line {number}: {shown(name)} must have an image and an XML file, "
                f"there is no {shown(missing)}"
            )
        found.append((images[name], xml))
    return found


def _in_folders(folder: Path, words: Sequence[str]) -> list[tuple[Path | None, Path]]:
    """Return image and XML file of a set with a folder of its own."""
    for word in words:
        own = [folder / word, *(folder / kind / word for kind in ("images", "JPEGImages"))]
        xml = [folder / word, *(folder / kind / word for kind in _KEPT_FOLDERS)]
        images = [image for place in own if place.is_dir() for image in images_below(place)]
        files = [file for place in xml if place.is_dir() for file in _xml_files(place)]
        if images and files:
            return _pairs(images, files)
    return []


def _pairs(images: Sequence[Path], files: Sequence[Path]) -> list[tuple[Path | None, Path]]:
    """Return each XML file with the image of the same name, the nearer one if there are several.

    Raises:
        ValueError: two images are equally near, or two files belong to one image.
    """
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for one in images:
        by_stem[one.stem].append(one)
    pairs = [(_image_of(file, by_stem[file.stem]), file) for file in files]
    first: dict[Path, Path] = {}
    for image, file in pairs:
        if image is not None and (twin := first.setdefault(image, file)) is not file:
            raise ValueError(
                f"{shown(file)}: its image {shown(image)} has another XML file, {shown(twin)}; "
                "remove one of them"
            )
    return pairs


def _image_of(file: Path, images: Sequence[Path]) -> Path | None:
    """Return the image of an XML file among those of the same name, or None if there are none."""
    if len(images) < 2:
        return images[0] if images else None
    folders = [file.parent, *(_parallel(file.parent, kind) for kind in ("images", "JPEGImages"))]
    near = [image for image in images if image.parent in folders]
    if len(near) != 1:
        raise ValueError(
            f"{shown(file)}: its image may be any of {listed(near or images)}; rename all but one "
            "of them, with their XML files"
        )
    return near[0]


def _parallel(folder: Path, kind: str) -> Path:
    """Return the folder of images beside a folder of XML files: `images/a` for `Annotations/a`."""
    parts = list(folder.parts)
    for place in range(len(parts) - 1, -1, -1):
        if parts[place] in _KEPT_FOLDERS:
            parts[place] = kind
            break
    return Path(*parts)


def _read_page(file: Path) -> _Page | Fault:
    try:
        return _parse(file)
    except (OSError, ValueError) as error:
        return Fault("label-file", shown(file), str(error))


def _parse(file: Path) -> _Page:
    require_regular_file(file, "XML file")
    if file.stat().st_size > _MAX_BYTES:
        raise ValueError(f"must have at most {_MAX_BYTES >> 20} MiB")
    root = _tree(file.read_bytes())
    if root.tag != "annotation":
        raise ValueError(f"must be an annotation of Pascal VOC, got <{printable(root.tag)[:80]}>")
    source = " ".join(
        text for key in ("database", "annotation") for text in [_text(root, f"source/{key}")]
    )
    sides = [_number(root, f"size/{key}") for key in ("height", "width")]
    size = None
    if all(side is not None and side >= 1 for side in sides):
        size = (int(sides[0] or 0), int(sides[1] or 0))
    page = _Page(file, _text(root, "filename"), size, "VOC" in source.upper(), [])
    for number, one in enumerate(root.iter("object"), 1):
        page.objects.append(_object(one, f"{shown(file)} object {number}"))
    return page


def _object(one: ElementTree.Element, place: str) -> _Object:
    """Read an object; NaN stands for what is missing, which is refused with its place later."""
    name = _text(one, "name")
    corners = [_number(one, f"bndbox/{key}") for key in _CORNERS]
    left, top, right, bottom = (math.nan if value is None else value for value in corners)
    is_difficult = _text(one, "difficult") in ("1", "true", "True")
    return _Object(name, (left, top, right, bottom), is_difficult, place)


def _tree(content: bytes) -> ElementTree.Element:
    """Parse XML without document type declarations, which may name other files or grow."""

    def refuse(*_: object) -> None:
        raise ValueError("must have no document type declaration (<!DOCTYPE); remove it")

    scan = expat.ParserCreate()
    scan.StartDoctypeDeclHandler = refuse
    try:
        scan.Parse(content, True)
        return ElementTree.fromstring(content)
    except (expat.ExpatError, ElementTree.ParseError, LookupError, RecursionError) as error:
        raise ValueError(f"must be XML, got {printable(str(error))[:200]}") from error


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _number(element: ElementTree.Element, path: str) -> float | None:
    try:
        return float(_text(element, path))
    except ValueError:
        return None


def _class_names(folder: Path, pages: Sequence[_Page]) -> dict[int, str]:
    """Return the class names by id, from 1: those of CVAT's label map first, then by name."""
    used = sorted({one.name for page in pages for one in page.objects if one.name})
    label_map = folder / _LABEL_MAP
    given: list[str] = []
    if label_map.is_file():
        lines = read_lines(label_map)
        names = [line.partition(":")[0].strip() for line in lines if not line.startswith("#")]
        given = [name for name in names if name and name != _BACKGROUND]
    ordered = list(dict.fromkeys([*given, *used]))
    return dict(enumerate(ordered, 1))


def _is_one_based(pages: Sequence[_Page]) -> bool:
    """Return whether corners are those of the devkit: counted from 1, the last one inclusive."""
    has_zero = any(min(one.corners) < 1 for page in pages for one in page.objects)
    return bool(pages) and all(page.is_of_devkit for page in pages) and not has_zero


def _as_set(
    folder: Path,
    found: Sequence[tuple[Path | None, _Page | Fault]],
    names: dict[int, str],
    *,
    one_based: bool,
) -> AnnotatedSet:
    images = [image for image, _ in found if image is not None]
    root = folder
    if images and len({image.parent for image in images}) == 1:
        root = images[0].parent
    made = AnnotatedSet(NAME, root, {"images": [], "annotations": []})
    made.record["categories"] = category_entries(names)
    made.places = {
        "images": [],
        "annotations": [],
        "categories": [f"{shown(folder)}: class {in_brief(name)}" for name in names.values()],
    }
    made.faults += require_unique_stems(images)
    made.notes.append(
        "corners are those of the devkit: counted from 1, the last pixel included"
        if one_based
        else "corners are coordinates in pixels, counted from 0, as annotation tools write them"
    )
    ids = {name: category_id for category_id, name in names.items()}
    ordered = sorted((pair for pair in found if pair[0] is not None), key=lambda pair: str(pair[0]))
    for _, page in (pair for pair in found if pair[0] is None):
        made.leave_out(
            "XML file without an image", page.place if isinstance(page, Fault) else shown(page.file)
        )
    for image_id, (image, page) in enumerate(ordered, 1):
        assert image is not None  # filtered above
        if isinstance(page, Fault):
            made.faults.append(page)
            continue
        _add_page(made, image, page, ids, image_id=image_id, one_based=one_based)
    _note_images_without_page(made, images)
    return made


def _note_images_without_page(made: AnnotatedSet, images: Sequence[Path]) -> None:
    """Count the images beside those of the set that have no XML file: nobody has looked at them."""
    annotated = set(images)
    for folder in sorted({image.parent for image in images}):
        for other in images_below(folder):
            if other not in annotated and other.parent == folder:
                made.leave_out("image without an XML file", shown(other))


def _add_page(
    made: AnnotatedSet,
    image: Path,
    page: _Page,
    ids: dict[str, int],
    *,
    image_id: int,
    one_based: bool,
) -> None:
    """Add an image and its objects."""
    size = upright_size_of(image)
    if isinstance(size, str):
        made.faults.append(Fault("label-file", shown(image), f"no readable image: {size}"))
        return
    name = image.relative_to(made.images).as_posix()
    made.record["images"].append(image_entry(image_id, name, page.size or size))
    made.places["images"].append(shown(page.file))
    annotations = made.record["annotations"]
    for one in page.objects:
        if problem := _problem(one):
            made.faults.append(Fault("label-entry", one.place, problem))
            continue
        left, top, right, bottom = one.corners
        if one_based:
            left, top = left - 1, top - 1
        corners = (left, top, right, bottom)
        entry = annotation_entry(len(annotations) + 1, image_id, ids[one.name], corners)
        entry["iscrowd"] = int(one.is_difficult)
        annotations.append(entry)
        made.places["annotations"].append(one.place)


def _problem(one: _Object) -> str:
    """Return what is wrong with an object; "" if nothing is."""
    if not one.name:
        return "must have a <name>, got none"
    if not all(math.isfinite(value) for value in one.corners):
        named = ", ".join(
            f"{key} {value:g}" for key, value in zip(_CORNERS, one.corners, strict=True)
        )
        return f"<bndbox> must hold the numbers {', '.join(_CORNERS)}, got {named}"
    left, top, right, bottom = one.corners
    if right < left or bottom < top:
        return (
            f"xmax and ymax must be at least xmin and ymin, got x {left:g} to {right:g}, "
            f"y {top:g} to {bottom:g}; exchange them"
        )
    return ""
