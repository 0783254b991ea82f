"""LabelSpace: mapping between the categories of a data set and labels 0..K-1.

The package uses labels 0..K-1 internally. Category ids, which may be sparse, 0-based or huge, and
names are used only where annotations are read, results are written or objects are drawn.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from deformable_detr.messages import in_brief, listed, shown

# If labels are category ids, a class head has one row per id; the largest id of LVIS is 1203.
MAX_RAW_LABELS = 2048


@dataclass(frozen=True)
class LabelSpace:
    """Categories of a data set; the label of a category is its index in these tuples.

    In the official code's layout, `with_raw_labels`, the label of a category is its id. There are
    then labels without a category; they do not occur in results.

    Attributes:
        category_ids: K distinct category ids of the annotation file.
        names: K category names.
        unused: labels without a category.
    """

    category_ids: tuple[int, ...]
    names: tuple[str, ...]
    unused: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if len(self.unused) >= len(self.category_ids):
            raise ValueError("categories must hold at least one category, got none")
        if len(self.names) != len(self.category_ids):
            raise ValueError(
                f"names must be one per category id, got {len(self.names)} names "
                f"and {len(self.category_ids)} ids"
            )
        counts = Counter(self.category_ids)
        if len(counts) < len(self.category_ids):
            repeated = listed(sorted(one for one, count in counts.items() if count > 1))
            raise ValueError(f"category ids must be distinct, got {repeated} more than once")

    @classmethod
    def from_categories(cls, categories: Sequence[Mapping[str, Any]]) -> "LabelSpace":
        """Build the space from the `categories` of a COCO file, in the order of their ids.

        It also reads the output of `to_json`.
        """
        for position, category in enumerate(categories):
            category_id = category.get("id")
            if not isinstance(category_id, int) or isinstance(category_id, bool):
                raise ValueError(
                    f"categories[{position}].id must be an integer, got {in_brief(category_id)}"
                )
        ordered = sorted(categories, key=lambda category: category["id"])
        return cls(
            tuple(category["id"] for category in ordered),
            tuple(str(category.get("name", category["id"])) for category in ordered),
            frozenset(
                label
                for label, category in enumerate(ordered)
                if category.get("is_category", True) is False
            ),
        )

    def with_raw_labels(self) -> "LabelSpace":
        """Return the same categories in the official layout: label = id, K = largest id + 1.

        Raises:
            ValueError: an id is negative, or not below `MAX_RAW_LABELS`.
        """
        lowest, highest = min(self._labels), max(self._labels)
        if lowest < 0 or highest >= MAX_RAW_LABELS:
            raise ValueError(
                f"category ids must be in 0..{MAX_RAW_LABELS - 1} to be labels themselves, got "
                f"{lowest if lowest < 0 else highest}; use match_official: false, "
                "which takes any ids"
            )
        name_of = {category_id: self.names[label] for category_id, label in self._labels.items()}
        ids = range(highest + 1)
        return LabelSpace(
            tuple(ids),
            tuple(name_of.get(category_id, f"no category {category_id}") for category_id in ids),
            frozenset(ids) - name_of.keys(),
        )

    def contiguous(self) -> "LabelSpace":
        """Return the same categories without unused labels."""
        labels = self.category_labels
        return LabelSpace(
            tuple(self.category_ids[label] for label in labels),
            tuple(self.names[label] for label in labels),
        )

    @property
    def num_classes(self) -> int:
        """Number of labels, K."""
        return len(self.category_ids)

    @property
    def category_labels(self) -> tuple[int, ...]:
        """Labels with a category, in order: all of 0..K-1 unless labels are raw."""
        return tuple(self._labels.values())

    @cached_property
    def _labels(self) -> dict[int, int]:
        return {
            category_id: label
            for label, category_id in enumerate(self.category_ids)
            if label not in self.unused
        }

    def ids_of(self, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the category ids of labels in 0..K-1, in their shape."""
        return self._ids[labels]

    @cached_property
    def _ids(self) -> npt.NDArray[np.int64]:
        return np.array(self.category_ids, dtype=np.int64)

    def label(self, category_id: int) -> int:
        """Return the label of a category id; KeyError if the id is unknown."""
        return self._labels[category_id]

    def __contains__(self, category_id: object) -> bool:
        return category_id in self._labels

    def _without(self, other: "LabelSpace") -> "LabelSpace | None":
        """Return the categories that `other` lacks under the same name; None if it has all."""
        theirs = {(category_id, other.names[label]) for category_id, label in other._labels.items()}
        ours = ((category_id, self.names[label]) for category_id, label in self._labels.items())
        rest = {
            category_id: name for category_id, name in ours if (category_id, name) not in theirs
        }
        return LabelSpace(tuple(rest), tuple(rest.values())) if rest else None

    def to_json(self) -> list[dict[str, int | str]]:
        """Return the categories in COCO format, unused labels marked, for `from_categories`."""
        mark: dict[str, int | str] = {"is_category": False}
        pairs = zip(self.category_ids, self.names, strict=True)
        return [
            {"id": category_id, "name": name, **(mark if label in self.unused else {})}
            for label, (category_id, name) in enumerate(pairs)
        ]

    def require_same(self, other: "LabelSpace", *, this: str, that: str) -> None:
        """Raise a ValueError that describes the difference, unless `other` is the same space.

        Args:
            other: the space to compare with.
            this: name of this space in the error.
            that: name of the other space in the error.
        """
        if self != other:
            differences = (
                f"; only {name} has {difference.describe()}"
                for name, difference in ((that, other._without(self)), (this, self._without(other)))
                if difference is not None
            )
            raise ValueError(
                f"{that} must have the categories of {this}, got {other.describe()} "
                f"where {this} has {self.describe()}"
                + ("".join(differences) or "; the same categories have other labels")
            )

    def describe(self, limit: int = 12) -> str:
        """Describe the categories in one line, with at most `limit` of them."""
        pairs = [(category_id, self.names[label]) for category_id, label in self._labels.items()]
        text = ", ".join(f"{category_id}: {shown(name)}" for category_id, name in pairs[:limit])
        more = f", and {len(pairs) - limit} more" if len(pairs) > limit else ""
        layout = f" as labels of {self.num_classes}" if self.unused else ""
        return "{" + text + more + "}" + layout
