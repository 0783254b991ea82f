"""Matching of the rows of two class heads by the names of their classes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from deformable_detr.labels import LabelSpace
from deformable_detr.messages import shown

_MAX_NAMES = 12  # in one line


@dataclass(frozen=True)
class MatchedRows:
    """Rows of a new class head that have a counterpart in an old one.

    Attributes:
        pairs: (row of the new head, row of the old head).
        notes: summary of the classes kept, started from scratch and dropped.
    """

    pairs: tuple[tuple[int, int], ...]
    notes: tuple[str, ...]


def match_rows(
    old_classes: LabelSpace | None,
    new_classes: LabelSpace,
    *,
    num_old: int,
    num_new: int,
    what: str,
) -> MatchedRows:
    """Match the rows of two class heads by the names of their classes.

    Case and spacing of names are ignored. If the old classes are unknown, rows are matched in
    order if both heads have the same number of rows, and not at all otherwise.

    Args:
        old_classes: classes of the trained head, or None if unknown.
        new_classes: classes of the head to be trained.
        num_old: number of rows of the trained head.
        num_new: number of rows of the head to be trained.
        what: source of the trained head, for errors.

    Raises:
        ValueError: a name that both heads have stands for several classes of one of them, or a
            head does not have one row per class.
    """
    if old_classes is None:
        same = num_old == num_new
        fate = "rows keep their order" if same else f"all {num_new} start from scratch"
        note = f"the file does not name its {num_old} classes; {fate}"
        return MatchedRows(tuple((row, row) for row in range(num_new if same else 0)), (note,))
    for classes, num_rows, where in (
        (old_classes, num_old, what),
        (new_classes, num_new, "the model"),
    ):
        if classes.num_classes != num_rows:
            raise ValueError(
                f"the class heads of {where} must have a row for each of its "
                f"{classes.num_classes} classes, got {num_rows}"
            )
    old, new = _row_names(old_classes), _row_names(new_classes)
    pairs = _match(old, new)
    return MatchedRows(pairs, tuple(_notes(old, new, dict(pairs))))


def _row_names(classes: LabelSpace) -> list[str | None]:
    """Return the class of each row; None for rows without a category."""
    return [None if row in classes.unused else name for row, name in enumerate(classes.names)]


def _match(old: Sequence[str | None], new: Sequence[str | None]) -> tuple[tuple[int, int], ...]:
    if old == new:  # rows without a category, and names that repeat, included
        return tuple((row, row) for row in range(len(new)))
    rows_old, rows_new = _rows_by_name(old), _rows_by_name(new)
    pairs = []
    for name, rows in rows_new.items():
        others = rows_old.get(name, [])
        if others and (len(rows) > 1 or len(others) > 1):
            raise ValueError(
                f"a class name that new and old classes share must stand for one class of each, "
                f"got {[new[row] for row in rows]} and {[old[row] for row in others]}; "
                "rename classes in the annotation file"
            )
        pairs += [(row, other) for row in rows for other in others]
    return tuple(pairs)


def _rows_by_name(names: Sequence[str | None]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        if name is not None:
            rows.setdefault(" ".join(name.split()).casefold(), []).append(row)
    return rows


def _notes(
    old: Sequence[str | None], new: Sequence[str | None], kept: dict[int, int]
) -> Iterator[str]:
    dropped = set(range(len(old))) - set(kept.values())
    for fate, names in (
        ("kept", [new[row] for row in kept]),
        ("from scratch", [name for row, name in enumerate(new) if row not in kept]),
        ("dropped", [old[row] for row in sorted(dropped)]),
    ):
        named = [name for name in names if name is not None]
        if named:
            more = f", and {len(named) - _MAX_NAMES} more" if len(named) > _MAX_NAMES else ""
            yield f"{len(named)} {fate}: {', '.join(map(shown, named[:_MAX_NAMES]))}{more}"
