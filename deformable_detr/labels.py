"""LabelSpace: the one translation between a dataset's categories and labels 0..K-1.

Everything inside the package counts labels 0..K-1. Category ids, which may be sparse, 0-based
or huge, and names exist at the edges only: reading annotations, writing results, drawing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class LabelSpace:
    """The K categories of a dataset; the label of a category is its place in these tuples.

    Attributes:
        category_ids: K distinct integers, as the annotation file numbers the categories.
        names: K names, for people.
    """

    category_ids: tuple[int, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.category_ids:
            raise ValueError("categories must hold at least one category, got none")
        if len(self.names) != len(self.category_ids):
            raise ValueError(
                f"names must be one per category id, got {len(self.names)} names "
                f"and {len(self.category_ids)} ids"
            )
        repeated = sorted({c for c in self.category_ids if self.category_ids.count(c) > 1})
        if repeated:
            raise ValueError(f"category ids must be distinct, got {repeated} more than once")

    @classmethod
    def from_categories(cls, categories: Sequence[Mapping[str, Any]]) -> "LabelSpace":
        """Build the space from the `categories` of a COCO file, in the order of their ids."""
        for position, category in enumerate(categories):
            category_id = category.get("id")
            if not isinstance(category_id, int) or isinstance(category_id, bool):
                raise ValueError(
                    f"categories[{position}].id must be an integer, got {category_id!r}"
                )
        ordered = sorted(categories, key=lambda category: category["id"])
        return cls(
            tuple(category["id"] for category in ordered),
            tuple(str(category.get("name", category["id"])) for category in ordered),
        )

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.category_ids)

    @cached_property
    def _labels(self) -> dict[int, int]:
        return {category_id: label for label, category_id in enumerate(self.category_ids)}

    def label(self, category_id: int) -> int:
        """The label of a category id; KeyError where the space does not hold it."""
        return self._labels[category_id]

    def __contains__(self, category_id: object) -> bool:
        return category_id in self._labels

    def _without(self, other: "LabelSpace") -> "LabelSpace | None":
        """The categories that `other` does not have under the same name; None if it has all."""
        theirs = {(category_id, other.names[label]) for category_id, label in other._labels.items()}
        ours = ((category_id, self.names[label]) for category_id, label in self._labels.items())
        rest = {
            category_id: name for category_id, name in ours if (category_id, name) not in theirs
        }
        return LabelSpace(tuple(rest), tuple(rest.values())) if rest else None

    def to_json(self) -> list[dict[str, int | str]]:
        """The categories in COCO's form; `from_categories` reads it back."""
        return [
            {"id": category_id, "name": name}
            for category_id, name in zip(self.category_ids, self.names, strict=True)
        ]

    def require_same(self, other: "LabelSpace", *, this: str, that: str) -> None:
        """Refuse another space: ValueError with both and their difference, as `this` and `that`."""
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
        """The categories in one line, the first `limit` of them."""
        pairs = list(zip(self.category_ids, self.names, strict=True))
        text = ", ".join(f"{category_id}: {name}" for category_id, name in pairs[:limit])
        return "{" + text + (f", and {len(pairs) - limit} more" if len(pairs) > limit else "") + "}"
