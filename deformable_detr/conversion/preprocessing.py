"""Preprocessing of images in transformers' files: what is written, and what can be reproduced.

Here, images are resized to a shorter side with a limit for the longer one, and normalized by
ImageNet's mean and standard deviation. A file that says the same in other words is accepted.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deformable_detr.arguments import MOST_ENTRIES, MOST_LEVELS, require_bounded
from deformable_detr.files import require_regular_file
from deformable_detr.messages import shown
from deformable_detr.pixels.channels import RGB
from deformable_detr.pixels.normalization import IMAGENET_MEAN, IMAGENET_STD, normalization

MOST_CHARACTERS = 1 << 24  # of a JSON file, for 100,000 classes
PREPROCESSOR_FILE = "preprocessor_config.json"
_PROCESSOR_FILE = "processor_config.json"  # holds the former in files of a whole processor
_NESTED = "image_processor"
_BILINEAR = 2  # in Pillow's numbering
_LEVELS = 255
_DEFAULT_MAX_SIZE = 1333  # transformers' own, beside a size given as one number
_TOLERANCE = 1e-6  # of mean and standard deviation, for values that went through float32
_TYPES = ("DeformableDetr", "ConditionalDetr", "Detr")  # with the same arithmetic and defaults
_ENDINGS = ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing that a file of transformers describes.

    Attributes:
        sizes: `eval_size` and `eval_max_size` in pixels, as far as the file has them.
        differences: what differs from this package's preprocessing, `field: value` each; empty if
            it can be reproduced.
        path: the file.
    """

    path: Path
    sizes: dict[str, int] = field(default_factory=dict)
    differences: tuple[str, ...] = ()


def preprocessor_config(
    eval_size: int, eval_max_size: int, *, channels: int = RGB
) -> dict[str, Any]:
    """Return the content of `PREPROCESSOR_FILE`: every field that changes pixels.

    Args:
        eval_size: shorter side of images in pixels.
        eval_max_size: maximum of the longer side in pixels.
        channels: number of channels of the images.
    """
    mean, std = normalization(channels)
    return {
        "image_processor_type": "DeformableDetrImageProcessor",
        "format": "coco_detection",
        "do_resize": True,
        "size": {"shortest_edge": eval_size, "longest_edge": eval_max_size},
        "resample": _BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / _LEVELS,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
        "do_pad": True,
    }


def read_preprocessing(folder: Path) -> Preprocessing | None:
    """Read the preprocessing that transformers would apply; None if the folder does not say.

    Raises:
        ValueError: a file is not JSON.
    """
    for name in (_PROCESSOR_FILE, PREPROCESSOR_FILE):
        path = folder / name
        if not path.is_file():
            continue
        content = read_json_object(path)
        if name == _PROCESSOR_FILE:
            content = content.get(_NESTED)
        if isinstance(content, dict):
            return _preprocessing(path, content)
    return None


def read_json_object(path: Path) -> Any:
    """Read a JSON file that must hold an object.

    Raises:
        ValueError: it does not, or is larger than any that transformers writes.
    """
    require_regular_file(path, "file")
    with path.open(encoding="utf-8") as file:
        content = parse_json(file.read(MOST_CHARACTERS + 1), shown(path))
    if not isinstance(content, dict):
        raise ValueError(f"{shown(path)} must hold a JSON object, got {type(content).__name__}")
    return content


def parse_json(text: str, what: str) -> Any:
    """Parse JSON of a bounded size.

    Raises:
        ValueError: it is no JSON, is too long, or is nested too deeply.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"{what} must have at most {MOST_CHARACTERS} characters, got more")
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError(f"{what} must be nested at most {MOST_LEVELS} deep, got more") from None
    except ValueError as error:
        raise ValueError(f"{what} must be JSON, got {error}") from error
    require_bounded(content, what, most=MOST_ENTRIES)
    return content


def _preprocessing(path: Path, content: Mapping[str, Any]) -> Preprocessing:
    """Interpret a file as transformers does; fields that are absent or null have its defaults."""
    content = {name: value for name, value in content.items() if value is not None}
    sizes = _sizes(content)
    pairs = {
        "do_resize": content.get("do_resize", True) is True,
        "size": sizes is not None,
        "resample": content.get("resample", _BILINEAR) == _BILINEAR,
        "pad_size": "pad_size" not in content,
    }
    differences = [
        f"{name}: {shown(json.dumps(content.get(name)))}"
        for name, same in pairs.items()
        if not same
    ]
    kind = content.get("image_processor_type", content.get("feature_extractor_type"))
    if kind is not None and kind not in {f"{k}{end}" for k in _TYPES for end in _ENDINGS}:
        differences.insert(0, f"image_processor_type: {shown(json.dumps(kind))}")
    if not _is_normalized_as_here(content):
        names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        differences += [f"{n}: {shown(json.dumps(content[n]))}" for n in names if n in content]
    return Preprocessing(path, sizes or {}, tuple(differences))


def _sizes(content: Mapping[str, Any]) -> dict[str, int] | None:
    """Return our two sizes; None if the file has another kind of size."""
    size = content.get("size", {"shortest_edge": 800, "longest_edge": _DEFAULT_MAX_SIZE})
    if _is_positive(size):
        size = {
            "shortest_edge": size,
            "longest_edge": content.get("max_size", _DEFAULT_MAX_SIZE),
        }
    if not isinstance(size, Mapping):
        return None
    given = {name: value for name, value in size.items() if value is not None}
    if given.keys() != {"shortest_edge", "longest_edge"} or not all(
        map(_is_positive, given.values())
    ):
        return None
    return {"eval_size": given["shortest_edge"], "eval_max_size": given["longest_edge"]}


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_normalized_as_here(content: Mapping[str, Any]) -> bool:
    """Return whether a pixel value becomes the same number as here, whichever way it is said."""
    factor = content.get("rescale_factor", 1 / _LEVELS) if content.get("do_rescale", True) else 1.0
    mean: Any = content.get("image_mean", IMAGENET_MEAN)
    std: Any = content.get("image_std", IMAGENET_STD)
    if not content.get("do_normalize", True):
        mean, std = 0.0, 1.0
    if not _is_number(factor) or not factor:
        return False
    # (pixel * factor - mean) / std = (pixel / 255 - mean / s) / (std / s) with s = 255 * factor
    scale = _LEVELS * factor
    our_mean, our_std = normalization(len(mean) if isinstance(mean, list | tuple) else RGB)
    return _is_near(mean, our_mean, scale) and _is_near(std, our_std, scale)


def _is_near(given: object, wanted: Sequence[float], scale: float) -> bool:
    values = [given] * len(wanted) if _is_number(given) else given
    if not isinstance(values, list | tuple) or len(values) != len(wanted):
        return False
    return all(
        _is_number(value) and math.isclose(value / scale, target, rel_tol=0, abs_tol=_TOLERANCE)
        for value, target in zip(values, wanted, strict=True)
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
