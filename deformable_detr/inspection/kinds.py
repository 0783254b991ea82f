"""Kinds of findings about a data set: one table."""

from dataclasses import dataclass
from typing import Literal

from deformable_detr.coco_json.rules import RULES

Level = Literal["error", "warning", "count"]


@dataclass(frozen=True)
class Kind:
    """Kind of findings.

    Attributes:
        name: short identifier.
        level: "error" if training or evaluation would refuse the data or silently be wrong,
            "warning" if the data are legal but probably wrong, "count" if they are no problem.
        meaning: description of a finding.
        remedy: what to do; "" for counts.
    """

    name: str
    level: Level
    meaning: str
    remedy: str = ""


_EDIT = "correct or delete the entry, or let --fix do so"
_ERRORS = {
    "file-missing": ("a file of the layout is missing", "export it, or name one file"),
    "file-unreadable": ("no JSON in UTF-8, or cut off", "export or copy the file again"),
    "file-not-an-object": ("the file is no COCO file", "export it in COCO format"),
    "label-file": ("a file of YOLO or Pascal VOC cannot be read", "export or copy it again"),
    "label-entry": ("a line or object of such a file cannot be read", "correct or delete it"),
    "section-missing": ("a section is missing or no list", "export the file in COCO format"),
    "section-empty": ("a section is empty", "export the file with its images and categories"),
    "entry-not-an-object": ("an entry is no object", "delete the entry"),
    "image-id-twice": ("two images have the same id", "give each image its own id"),
    "category-id-twice": ("two categories have the same id", "give each category its own id"),
    "annotation-id-twice": ("two annotations have the same id", "number the annotations again"),
    "unknown-image": ("image_id of no image", "delete the annotation, or add the image"),
    "unknown-category": ("category_id of no category", "add the category, or correct the id"),
    "categories-shifted": (
        "unknown category ids that would be known if all were one lower or higher",
        "shift the category ids of annotations or categories by one",
    ),
    "boxes-xyxy": ("boxes are [x1, y1, x2, y2]", "convert them to [x, y, width, height]"),
    "boxes-centered": ("x and y are those of the center", "convert to those of the upper left"),
    "boxes-normalized": ("boxes are in 0..1", "multiply them by width and height of the image"),
    "no-object": ("there is no object to learn or to find", "annotate objects"),
    "folder-missing": ("the folder of the images is missing", "name it with --images"),
    "image-missing": ("the image file is missing", "add the file, or delete the entry"),
    "image-case": ("the file name has another case", "write the name as it is"),
    "image-suffix": ("the file has another suffix", "write the name as it is"),
    "image-not-regular": ("a folder, pipe, device or socket", "replace it by an image file"),
    "image-unreadable": ("the file is no readable image", "replace the file, or delete the entry"),
    "image-truncated": ("the image cannot be decoded to its end", "copy the file again"),
    "image-depth": ("more than 16 bits per channel, or signed", "save it with 8 or 16 bits"),
    "image-pixels": ("the image has too many pixels", "cut or shrink it"),
    "image-size": ("width and height are not those of the file", "correct width and height"),
    "image-size-swapped": ("width and height are exchanged", "exchange width and height"),
    "images-turned": (
        "some sizes are of upright, some of stored images (EXIF)",
        "export with one tool, or set data.exif",
    ),
    "categories-differ": ("the two sets have other categories", "use one list for both"),
    "image-in-both-sets": (
        "an image is in training and validation: AP is too high",
        "delete it from one of the sets",
    ),
}
_WARNINGS = {
    "category-name": ("a category has no name", "name the category"),
    "category-name-twice": ("categories share a name", "merge them, or rename one"),
    "box-without-extent": (
        "the box has no width or height: not learned, and missed in evaluation",
        "delete the annotation",
    ),
    "box-negative": ("width or height is negative: as without extent", "correct the box"),
    "box-outside": ("the box is outside its image: as without extent", "delete the annotation"),
    "box-partly-outside": ("the box reaches over its image", "clip the box to the image"),
    "box-tiny": ("the box is smaller than a pixel", "check the unit of the boxes"),
    "box-twice": ("the object is there twice", "delete the copy"),
    "box-of-two-categories": ("one box has two categories", "delete the wrong one"),
    "box-whole-image": ("the box is its whole image, which has others", "check the box"),
    "area-zero": ("area is 0, but the box has extent", "leave out area, or correct it"),
    "area-too-large": ("area is larger than that of the box", "leave out area, or correct it"),
    "more-objects-than-queries": (
        "an image has more objects than the model has queries",
        "raise model.queries.num_queries",
    ),
    "more-objects-than-scored": (
        "an image has more than 100 objects, COCO's limit of detections",
        "evaluate with --max-detections",
    ),
    "image-twice": ("an image file has two ids", "give its annotations one image_id"),
    "image-copy": ("two image files have the same content", "delete one of them"),
    "image-blank": ("all pixels of the image are equal", "check the file"),
    "image-no-suffix": ("the file name has no suffix of images", "rename the file"),
    "image-other-format": ("the content is of another format than the suffix", "rename it"),
}
_COUNTS = {
    "crowds": "crowd regions: not learned, ignored in evaluation",
    "images-without-objects": "images without objects: learned as background",
    "categories-unused": "categories without objects",
    "images-unlisted": "images in the folder that the file does not list",
    "images-with-pages": "TIFF images with several pages: with 3 channels the first is read",
    "images-with-orientation": "images with an EXIF orientation",
}
KINDS = {
    **{
        rule.kind: Kind(rule.kind, "error", f"{rule.key} must be {rule.must}", _EDIT)
        for rule in RULES
        if rule.section != "results"
    },
    **{name: Kind(name, "error", *texts) for name, texts in _ERRORS.items()},
    **{name: Kind(name, "warning", *texts) for name, texts in _WARNINGS.items()},
    **{name: Kind(name, "count", meaning) for name, meaning in _COUNTS.items()},
}
