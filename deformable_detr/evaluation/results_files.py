"""Read and validate files of COCO results."""

import logging
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from deformable_detr.coco_json.reading import read_json
from deformable_detr.coco_json.rules import check_results, require_known
from deformable_detr.evaluation.image_names import ImageNames
from deformable_detr.ground_truth import GroundTruth
from deformable_detr.messages import in_brief, listed, shown

logger = logging.getLogger(__name__)
_Result = dict[str, Any]


def read_results(path: Path, ground_truth: GroundTruth) -> list[_Result]:
    """Read a COCO results file for the images and categories of `ground_truth`.

    If the entries have a `file_name`, it decides which image they are of, and the result has the
    `image_id` of that image in `ground_truth`. The ids of the file must then agree, be missing, or
    number the images 1, 2, ... in the order of the file, as `predict` does without annotations.

    Args:
        path: path of the results file.
        ground_truth: the annotations to score the results against.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: the file is not a list of COCO box results; or an image or a category is not
            one of `ground_truth`, is ambiguous, or has another id than its name says.
    """
    results: list[_Result] = read_json(path, "results file")
    check_results(results, path)
    where = f"results of {shown(path)}"
    known = ground_truth.label_space.category_ids
    require_known((one["category_id"] for one in results), known, "category_id", where)
    num_named = sum("file_name" in one for one in results)
    if num_named == 0:
        used = (one["image_id"] for one in results)
        require_known(used, ground_truth.image_ids.tolist(), "image_id", where)
        return results
    if num_named < len(results):
        position = next(i for i, one in enumerate(results) if "file_name" not in one)
        raise ValueError(
            f"{where} must all have a file_name or none, got {num_named} of {len(results)}, "
            f"and none in results[{position}]"
        )
    try:
        return _by_name(results, ground_truth, path)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _by_name(results: Sequence[_Result], truth: GroundTruth, path: Path) -> list[_Result]:
    """Return the results with the ids of the images that they name."""
    given: dict[str, int | None] = {}  # name -> id in the results
    for position, one in enumerate(results):
        name, image_id = one["file_name"], one.get("image_id")
        if given.setdefault(name, image_id) != image_id:
            raise ValueError(
                f"an image must have one image_id, got {given[name]} and {image_id} for "
                f"{in_brief(name)} (results[{position}])"
            )
    found = _find_images(given, truth)
    different = [name for name in given if given[name] not in (None, found[name])]
    if different and not _is_numbering(given.values(), len(truth.image_ids)):
        name = different[0]
        raise ValueError(
            f"file_name and image_id must name the same image of {shown(truth.file)}, got "
            f"{in_brief(name)}, whose id is {found[name]}, with {given[name]}, and "
            f"{len(different) - 1} more images like that; leave out one of the two keys, or "
            "predict with --annotations"
        )
    if different:
        logger.info(
            "%s numbers its images; file_name decides: %d of %d images have another id in %s",
            shown(path),
            len(different),
            len(given),
            truth.file,
        )
    return [{**one, "image_id": found[one["file_name"]]} for one in results]


def _is_numbering(given: Iterable[int | None], num_images: int) -> bool:
    """Return whether ids count the images of a file; images without results leave gaps."""
    image_ids = [image_id for image_id in given if image_id is not None]
    increases = all(one < following for one, following in pairwise(image_ids))
    return increases and image_ids[0] >= 1 and image_ids[-1] <= num_images


def _find_images(given: Mapping[str, int | None], truth: GroundTruth) -> dict[str, int]:
    """Return the id of the annotated image that each name means.

    Raises:
        ValueError: there is none, there are several, or two names mean the same image.
    """
    if not any(truth.file_names):
        raise ValueError(
            f"the images of {shown(truth.file)} must have a file_name to find those of the "
            "results, got "
            "none; leave out file_name in the results if their image_id is that of the annotations"
        )
    names = ImageNames(truth)
    found: dict[str, int] = {}
    unknown: list[str] = []
    owner: dict[int, str] = {}
    for name, given_id in given.items():
        ids = truth.image_ids[names.find(name)].tolist()
        if not ids:
            unknown.append(name)
            continue
        if len(ids) > 1 and given_id not in ids:
            raise ValueError(
                f"file_name must name one image of {shown(truth.file)}, got {in_brief(name)}, "
                "which can "
                f"be the images {listed(ids)}; give the path below the image folder"
            )
        found[name] = ids[0] if given_id is None or given_id not in ids else given_id
        other = owner.setdefault(found[name], name)
        if posixpath.normpath(other) != posixpath.normpath(name):
            raise ValueError(
                f"two images must not be the same image of {shown(truth.file)}, got "
                f"{in_brief(other)} and "
                f"{in_brief(name)} for {found[name]}; give the paths below the image folder"
            )
    if unknown:
        raise ValueError(
            f"file_name must name an image of {shown(truth.file)}, got {in_brief(unknown[0])} and "
            f"{len(unknown) - 1} more that it does not have"
        )
    return found
