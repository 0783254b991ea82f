import json

import pytest

from deformable_detr.labels import MAX_RAW_LABELS, LabelSpace

SPARSE = [{"id": 90, "name": "toothbrush"}, {"id": 0, "name": "person"}, {"id": 7, "name": "train"}]


def test_labels_follow_the_order_of_the_ids():
    space = LabelSpace.from_categories(SPARSE)
    assert space.category_ids == (0, 7, 90)
    assert space.names == ("person", "train", "toothbrush")
    assert space.num_classes == 3
    assert [space.label(category_id) for category_id in (0, 7, 90)] == [0, 1, 2]


def test_ids_outside_the_space_are_unknown():
    space = LabelSpace.from_categories(SPARSE)
    assert 90 in space
    assert 1 not in space
    with pytest.raises(KeyError):
        space.label(1)


def test_a_category_without_a_name_is_named_by_its_id():
    assert LabelSpace.from_categories([{"id": 5}]).names == ("5",)


def test_json_round_trip():
    space = LabelSpace.from_categories(SPARSE)
    assert LabelSpace.from_categories(space.to_json()) == space


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([], "at least one category, got none"),
        ([{"name": "cat"}], r"categories\[0\].id must be an integer, got None"),
        ([{"id": 1}, {"id": "2"}], r"categories\[1\].id must be an integer, got '2'"),
        ([{"id": True}], "must be an integer, got True"),
        ([{"id": 4}, {"id": 4}], r"category ids must be distinct, got 4 more than once"),
    ],
)
def test_wrong_categories_are_refused(categories, message):
    with pytest.raises(ValueError, match=message):
        LabelSpace.from_categories(categories)


def test_ids_and_names_must_have_the_same_length():
    with pytest.raises(ValueError, match="one per category id, got 1 names and 2 ids"):
        LabelSpace((1, 2), ("cat",))


@pytest.mark.parametrize(
    "other", [LabelSpace((1,), ("cat",)), LabelSpace((0, 7, 90), ("person", "bus", "toothbrush"))]
)
def test_the_error_for_another_space_describes_both(other):
    space = LabelSpace.from_categories(SPARSE)
    space.require_same(LabelSpace.from_categories(SPARSE), this="the model", that="val.json")
    with pytest.raises(
        ValueError, match=r"val.json must have the categories of the model"
    ) as caught:
        space.require_same(other, this="the model", that="val.json")
    assert "7: train" in str(caught.value)
    assert other.describe() in str(caught.value)


def test_the_error_for_long_lists_names_the_differences():
    names = [f"thing {number}" for number in range(80)]
    space = LabelSpace(tuple(range(80)), tuple(names))
    names[50] = "other"
    other = LabelSpace((*range(79), 90), tuple(names))
    with pytest.raises(ValueError, match="categories") as caught:
        space.require_same(other, this="the model", that="val.json")
    assert str(caught.value).endswith(
        "; only val.json has {50: other, 90: thing 79}; "
        "only the model has {50: thing 50, 79: thing 79}"
    )


def test_the_same_categories_in_another_order_are_refused():
    space = LabelSpace((1, 2), ("a", "b"))
    with pytest.raises(ValueError, match=r"; the same categories have other labels$"):
        space.require_same(LabelSpace((2, 1), ("b", "a")), this="the model", that="val.json")


def test_a_long_description_is_truncated():
    space = LabelSpace(tuple(range(80)), ("thing",) * 80)
    assert space.describe(2) == "{0: thing, 1: thing, and 78 more}"


def raw_space():
    return LabelSpace.from_categories(
        [{"id": 3, "name": "bus"}, {"id": 1, "name": "cat"}]
    ).with_raw_labels()


def test_raw_labels_are_the_ids():
    space = raw_space()
    assert space.num_classes == 4
    assert [space.label(category_id) for category_id in (1, 3)] == [1, 3]
    assert space.category_ids[3] == 3
    assert (space.names[1], space.names[3]) == ("cat", "bus")
    assert space.category_labels == (1, 3)


def test_coco_has_91_raw_labels():
    ids = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
    space = LabelSpace.from_categories([{"id": i} for i in ids])
    assert space.num_classes == 80
    assert space.with_raw_labels().num_classes == 91
    assert space.with_raw_labels().unused == {0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83}


def test_unused_labels_are_unknown():
    space = raw_space()
    for category_id in (0, 2):
        assert category_id not in space
        with pytest.raises(KeyError):
            space.label(category_id)


def test_raw_labels_round_trip_through_json():
    assert LabelSpace.from_categories(json.loads(json.dumps(raw_space().to_json()))) == raw_space()


def test_raw_labels_convert_back_to_contiguous_ones():
    space = LabelSpace((1, 3), ("cat", "bus"))
    assert raw_space().contiguous() == space
    assert raw_space().with_raw_labels() == raw_space()
    assert space.contiguous() == space


def test_a_raw_space_is_described_by_its_categories_and_its_size():
    assert raw_space().describe() == "{1: cat, 3: bus} as labels of 4"


def test_another_layout_of_the_same_categories_is_a_different_space():
    with pytest.raises(ValueError, match="as labels of 4"):
        raw_space().require_same(LabelSpace((1, 3), ("cat", "bus")), this="a", that="b")


@pytest.mark.parametrize("category_id", [-1, MAX_RAW_LABELS, 10**12])
def test_ids_that_cannot_be_labels_are_refused_with_the_remedy(category_id):
    space = LabelSpace.from_categories([{"id": 5}, {"id": category_id}])
    message = rf"must be in 0..2047 to be labels .* got {category_id}; use match_official: false"
    with pytest.raises(ValueError, match=message):
        space.with_raw_labels()
