import pytest

from deformable_detr.engine.checkpoints.row_matching import match_rows
from deformable_detr.labels import LabelSpace


def space(*names: str, first_id: int = 1) -> LabelSpace:
    return LabelSpace(tuple(range(first_id, first_id + len(names))), names)


def pairs(old: LabelSpace, new: LabelSpace) -> object:
    rows = match_rows(old, new, num_old=old.num_classes, num_new=new.num_classes, what="a.pth")
    return rows.pairs


def test_rows_of_classes_with_the_same_name_are_matched() -> None:
    assert pairs(space("a", "b", "c"), space("c", "a", "new")) == ((0, 2), (1, 0))


def test_category_ids_are_ignored() -> None:
    assert pairs(space("a", "b"), space("b", "a", first_id=70)) == ((0, 1), (1, 0))


def test_case_and_spacing_are_ignored() -> None:
    assert pairs(space("traffic  light", "Dog"), space("dog", " Traffic light")) == ((0, 1), (1, 0))


def test_classes_without_a_common_name_match_no_rows() -> None:
    assert pairs(space("a"), space("b")) == ()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (space("Car", "car", "bus"), space("bus", "car")),
        (space("car", "bus"), space("car", "CAR")),
    ],
)
def test_a_shared_name_of_several_classes_raises(old: LabelSpace, new: LabelSpace) -> None:
    with pytest.raises(ValueError, match=r"must stand for one class of each, got \['") as caught:
        pairs(old, new)
    assert "car" in str(caught.value)
    assert "bus" not in str(caught.value)


def test_a_name_repeated_only_in_the_old_classes_is_allowed() -> None:
    assert pairs(space("N/A", "cat", "N/A"), space("dog", "cat")) == ((1, 1),)


def test_the_same_classes_keep_every_row_even_with_repeated_names() -> None:
    assert pairs(space("x", "x", "y"), space("x", "x", "y", first_id=5)) == ((0, 0), (1, 1), (2, 2))


@pytest.mark.parametrize(
    ("num_old", "expected", "note"),
    [
        (3, ((0, 0), (1, 1), (2, 2)), "does not name its 3 classes; rows keep their order"),
        (2, (), "does not name its 2 classes; all 3 start from scratch"),
        (91, (), "does not name its 91 classes; all 3 start from scratch"),
    ],
)
def test_unknown_classes_keep_their_order_only_if_their_number_is_equal(
    num_old: int, expected: object, note: str
) -> None:
    rows = match_rows(None, space("a", "b", "c"), num_old=num_old, num_new=3, what="a.pth")
    assert rows.pairs == expected
    assert [note in line for line in rows.notes] == [True]


@pytest.mark.parametrize(("num_old", "num_new", "where"), [(7, 2, r"a\.pth"), (2, 91, "the model")])
def test_a_wrong_number_of_rows_raises(num_old: int, num_new: int, where: str) -> None:
    two = space("a", "b")
    with pytest.raises(
        ValueError, match=rf"heads of {where} must have a row for each of its 2 classes, got [79]"
    ):
        match_rows(two, two, num_old=num_old, num_new=num_new, what="a.pth")


def test_notes_list_kept_new_and_dropped_classes() -> None:
    rows = match_rows(
        space("a", "b", "c"), space("C", "a", "new"), num_old=3, num_new=3, what="a.pth"
    )
    assert rows.notes == ("2 kept: C, a", "1 from scratch: new", "1 dropped: b")


def test_a_long_list_of_classes_is_truncated() -> None:
    many = space(*(f"class {number}" for number in range(80)))
    rows = match_rows(many, many, num_old=80, num_new=80, what="a.pth")
    assert [note.endswith("class 11, and 68 more") for note in rows.notes] == [True]


def test_rows_without_a_category_are_not_matched_and_not_named() -> None:
    contiguous = LabelSpace((2, 4), ("cat", "dog"))
    raw = contiguous.with_raw_labels()
    to_raw = match_rows(contiguous, raw, num_old=2, num_new=5, what="file")
    from_raw = match_rows(raw, contiguous, num_old=5, num_new=2, what="file")
    assert to_raw.pairs == ((2, 0), (4, 1))
    assert from_raw.pairs == ((0, 2), (1, 4))
    assert to_raw.notes == from_raw.notes == ("2 kept: cat, dog",)
    same = match_rows(raw, raw, num_old=5, num_new=5, what="file")
    assert same.pairs == tuple((row, row) for row in range(5))
