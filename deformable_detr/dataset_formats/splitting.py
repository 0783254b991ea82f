"""Splitting of one set into training and validation."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deformable_detr.messages import in_brief, shown

VAL_FRACTION = 0.2


@dataclass
class _Group:
    """Images that stay together.

    Attributes:
        name: name of the group.
        images: ids of its images.
        classes: category ids of its objects.
        num_objects: their number.
    """

    name: str
    images: list[int] = field(default_factory=list)
    classes: set[int] = field(default_factory=set)
    num_objects: int = 0


def split_images(
    record: Mapping[str, Any],
    *,
    val_fraction: float = VAL_FRACTION,
    seed: int = 0,
    split_by: str | None = None,
) -> set[int]:
    """Choose the images of a validation set.

    Images are divided by the rarest class that they show, and within it by their number of objects.
    Every class that at least two groups show is in both sets as far as possible. The choice depends
    on file names, annotations, `seed` and the other arguments only.

    Args:
        record: content of a sound COCO annotation file.
        val_fraction: share of the images, in (0, 1).
        seed: seed of the choice.
        split_by: regular expression; images for which it finds the same text, that of its groups if
            it has any, are kept in one set. None keeps nothing together.

    Returns:
        Ids of the images for validation.

    Raises:
        ValueError: there are fewer than two groups, or the expression is not valid.
    """
    groups = _groups(record, split_by)
    if len(groups) < 2:
        together = "" if split_by is None else f", kept together by {in_brief(split_by)}"
        raise ValueError(
            f"data must have at least two images to split off a validation set, got "
            f"{len(groups)}{together}; give a validation set, or another --split-by"
        )
    strata = _strata(groups)
    numbers = _shares([len(own) for own in strata], len(groups), val_fraction)
    chosen = [
        group
        for own, number in zip(strata, numbers, strict=True)
        for group in _spread(own, number, seed)
    ]
    return {image for group in chosen for image in group.images}


def _strata(groups: Sequence[_Group]) -> list[list[_Group]]:
    """Divide groups by the rarest class that they show, those of rare classes first."""
    shown_by = Counter(one for group in groups for one in group.classes)
    strata: dict[int | None, list[_Group]] = defaultdict(list)
    for group in groups:
        rarest = min(group.classes, key=lambda one: (shown_by[one], one), default=None)
        strata[rarest].append(group)
    order = sorted(strata, key=lambda one: (len(strata[one]), one is None, one or 0))
    return [strata[key] for key in order]


def _shares(sizes: Sequence[int], total: int, fraction: float) -> list[int]:
    """Return how many groups of each stratum are for validation; their sum is the fraction.

    A stratum of two or more gives at least one, as far as the sum allows, and keeps at least one;
    the rest goes to the largest remainders.

    Args:
        sizes: number of groups of each stratum.
        total: their sum, at least 2.
        fraction: share for validation, in (0, 1).
    """
    wanted = max(1, min(round(fraction * total), total - 1))
    shares = [0] * len(sizes)

    def give(most: Callable[[int], float]) -> None:
        """Give one more to strata below `most`, in turns, those that lack most first."""
        while sum(shares) < wanted:
            open_ones = [one for one, size in enumerate(sizes) if shares[one] < most(size)]
            if not open_ones:
                return
            shares[max(open_ones, key=lambda one: fraction * sizes[one] - shares[one])] += 1

    give(lambda size: min(size - 1, 1))
    give(lambda size: min(size - 1, fraction * size))
    give(lambda size: size - 1)
    give(lambda size: size)  # each stratum is one group
    return shares


def _groups(record: Mapping[str, Any], split_by: str | None) -> list[_Group]:
    try:
        pattern = None if split_by is None else re.compile(split_by)
    except re.error as error:
        raise ValueError(
            f"split_by must be a regular expression, got {in_brief(split_by)}: {error}"
        ) from error
    groups: dict[str, _Group] = {}
    of_image: dict[int, _Group] = {}
    unmatched = []
    for image in record["images"]:
        name, key = str(image["file_name"]), str(image["file_name"])
        if pattern is not None:
            match = pattern.search(name)
            if match is None:
                unmatched.append(name)
            else:
                key = "\0" + "\0".join(one or "" for one in match.groups() or [match.group()])
        group = groups.setdefault(key, _Group(key))
        group.images.append(image["id"])
        of_image[image["id"]] = group
    if unmatched and len(unmatched) == len(record["images"]):
        raise ValueError(
            f"split_by must match file names, got {in_brief(split_by)}, which matches none, such "
            f"as {shown(unmatched[0])}"
        )
    for one in record["annotations"]:
        group = of_image[one["image_id"]]
        group.classes.add(one["category_id"])
        group.num_objects += 1
    return [groups[key] for key in sorted(groups)]


def _spread(groups: Sequence[_Group], number: int, seed: int) -> list[_Group]:
    """Choose groups at equal distances in the order of their number of objects."""
    if number <= 0:
        return []
    ordered = sorted(groups, key=lambda one: (one.num_objects, _noise(one.name, seed)))
    start = int(_noise("start", seed)[:8], 16) / 16**8
    step = len(ordered) / number
    return [ordered[min(int((start + index) * step), len(ordered) - 1)] for index in range(number)]


def _noise(name: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogatepass")).hexdigest()


def part_of(record: Mapping[str, Any], images: set[int]) -> dict[str, Any]:
    """Return the content with some of the images, and their annotations."""
    return {
        **record,
        "images": [one for one in record["images"] if one["id"] in images],
        "annotations": [one for one in record["annotations"] if one["image_id"] in images],
    }
