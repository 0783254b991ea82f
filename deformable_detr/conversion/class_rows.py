"""Meaning of the class-head rows, and mappings between row layouts."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deformable_detr.conversion.coco_categories import COCO, NUM_RAW_ROWS
from deformable_detr.labels import MAX_RAW_LABELS, LabelSpace
from deformable_detr.models.heads import PRIOR_PROB

LABEL_EMBED = "denoising.label_embed.weight"
UNUSED_NAME = "N/A"  # transformers' name of rows without a category
_DECODER_HEAD = re.compile(r"^decoder\.class_heads\.\d+\.(weight|bias)$")
_PROPOSAL_HEAD = re.compile(r"^queries\.class_head\.(weight|bias)$")
_ROWS_BY_ID = ("official", "dino")
_ROWS_OF_COCO = ("detrex", "mmdet", "detrex-dino", "mmdet-dino")


@dataclass(frozen=True)
class ClassRows:
    """Meaning of the class-head rows of a file.

    Attributes:
        count: number of rows R.
        used: rows that belong to a category, in the order of `label_space`.
        label_space: these categories, or None if neither file nor format defines them.
    """

    count: int
    used: tuple[int, ...]
    label_space: LabelSpace | None


def class_rows(source: str, count: int, content: Mapping[str, Any]) -> ClassRows:
    """Determine the meaning of `count` rows.

    Args:
        source: implementation that wrote the file.
        count: number of rows R.
        content: other content of the file, if present: "categories" (written by this package),
            "id2label" (transformers), "classes" (mmdetection).
    """
    everything = tuple(range(count))
    if content.get("categories"):
        space = LabelSpace.from_categories(content["categories"])
        if has_rows_by_id(source) and max(space.category_ids) < count:
            return ClassRows(count, space.category_ids, space)
        if space.num_classes == count:
            return ClassRows(count, everything, _renamed(space, content))
    if has_rows_by_id(source) and count == NUM_RAW_ROWS:
        return ClassRows(count, COCO.category_ids, COCO)
    names = content.get("id2label") or content.get("classes")
    if names is not None and len(names) == count:
        return _rows_with_names(names)
    if source in _ROWS_OF_COCO and count == COCO.num_classes:
        return ClassRows(count, everything, COCO)
    return ClassRows(count, everything, None)


def has_rows_by_id(source: str) -> bool:
    """Return whether the row of a category is its id in the files of a source."""
    return source in _ROWS_BY_ID


def row_names(label_space: LabelSpace) -> tuple[str, ...]:
    """Return the name of each class row, with transformers' name for unused rows."""
    return tuple(
        UNUSED_NAME if label in label_space.unused else name
        for label, name in enumerate(label_space.names)
    )


def _renamed(space: LabelSpace, content: Mapping[str, Any]) -> LabelSpace:
    """Return the space with the names that the file's own format gives, should they differ."""
    names = content.get("id2label") or content.get("classes") or row_names(space)
    if len(names) != space.num_classes or tuple(names) == row_names(space):
        return space
    return replace(space, names=tuple(names))


def _rows_with_names(names: Sequence[str]) -> ClassRows:
    count = len(names)
    if tuple(names) == COCO.names:
        return ClassRows(count, tuple(range(count)), COCO)
    if count == NUM_RAW_ROWS and tuple(names[i] for i in COCO.category_ids) == COCO.names:
        return ClassRows(count, COCO.category_ids, COCO)
    used = tuple(row for row, name in enumerate(names) if name != UNUSED_NAME)
    if not used:
        return ClassRows(count, tuple(range(count)), None)
    return ClassRows(count, used, LabelSpace(used, tuple(names[row] for row in used)))


def _is_by_class(name: str, *, ranked_by_class: bool) -> bool:
    """Return whether the rows of a tensor, by our name, belong to the classes."""
    if name == LABEL_EMBED or _DECODER_HEAD.match(name):
        return True
    return ranked_by_class and bool(_PROPOSAL_HEAD.match(name))


def number_of_rows(state: Mapping[str, Tensor]) -> int:
    """Return K of a state_dict with our names."""
    return len(state["decoder.class_heads.0.bias"])


def select_rows(
    state: Mapping[str, Tensor], rows: Sequence[int], *, ranked_by_class: bool
) -> dict[str, Tensor]:
    """Keep the given rows of the class heads and of the label embedding of denoising.

    The head of proposals that are not ranked by class keeps its first rows: its row 0 separates
    objects from background, independently of category 0.
    """
    chosen = torch.tensor(rows)
    selected = dict(state)
    for name, tensor in state.items():
        if _is_by_class(name, ranked_by_class=ranked_by_class):
            selected[name] = tensor[chosen]
        elif _PROPOSAL_HEAD.match(name):
            selected[name] = tensor[: len(rows)].clone()
    return selected


def spread_rows(
    state: Mapping[str, Tensor], rows: Sequence[int], count: int, *, ranked_by_class: bool
) -> dict[str, Tensor]:
    """Invert `select_rows`: row k becomes row `rows[k]` of `count`.

    Rows in between are those of an unseen class: zero weights, prior bias.
    """
    spread = dict(state)
    for name, tensor in state.items():
        by_class = _is_by_class(name, ranked_by_class=ranked_by_class)
        if not by_class and not _PROPOSAL_HEAD.match(name):
            continue
        value = 0.0 if name.endswith("weight") else -math.log((1 - PRIOR_PROB) / PRIOR_PROB)
        wide = tensor.new_full((count, *tensor.shape[1:]), value)
        wide[list(rows) if by_class else slice(len(rows))] = tensor
        spread[name] = wide
    return spread


def official_rows(num_classes: int, label_space: LabelSpace | None) -> tuple[Sequence[int], int]:
    """Return the row of each of K classes in the official layout, and its number of rows.

    The official layout indexes rows by category id. Without a label space, 80 classes are assumed
    to be COCO's, and any other number of rows is unchanged.

    Raises:
        ValueError: a category id is negative or too large.
    """
    if label_space is None:
        if num_classes != COCO.num_classes:
            return range(num_classes), num_classes
        label_space = COCO
    low, high = min(label_space.category_ids), max(label_space.category_ids)
    if low < 0 or high >= MAX_RAW_LABELS:
        raise ValueError(
            f"category ids must be between 0 and {MAX_RAW_LABELS - 1} for the official layout, "
            f"which has a row for every id up to the largest, got {low} to {high}"
        )
    return label_space.category_ids, high + 1
