"""Read and validate files of COCO results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deformable_detr.ground_truth import (
    check_box,
    check_known,
    check_number,
    check_objects,
    kind_of,
    read_json,
)


def read_results(path: Path, ground_truth: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Read a COCO results file for the images and categories of `ground_truth`.

    Args:
        path: path of the results file.
        ground_truth: output of `GroundTruth.to_coco`.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: the file is not a list of COCO box results, or names an image or a category
            that `ground_truth` does not have.
    """
    results = read_json(path, "results file")
    if not isinstance(results, list):
        raise ValueError(f"results file {path} must hold a list of results, got {kind_of(results)}")
    where = f"results of {path}"
    check_objects(results, ("image_id", "category_id"), where)
    check_known(results, "image_id", ground_truth["images"], where)
    check_known(results, "category_id", ground_truth["categories"], where)
    for position, result in enumerate(results):
        check_box(result, position, where)
        check_number(result.get("score"), "score", position, where)
    return results
