import pytest

from deformable_detr.config import upgrade as module
from deformable_detr.config.loading import validate_config
from deformable_detr.config.upgrade import Added, Renamed, upgrade


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (Renamed("a.kind", "a.kind", {"old": "new"}), Renamed("b", "c.d"), Renamed("x.y", "e"))
    monkeypatch.setattr(module, "RENAMED", rows)


@pytest.mark.usefixtures("rows")
def test_keys_and_values_are_renamed_and_all_others_are_kept() -> None:
    content = {"a": {"kind": "old", "k": 1}, "b": [1], "c": {"f": 2}, "x": {"y": None, "z": 3}}
    before = str(content)
    expected = {"a": {"kind": "new", "k": 1}, "c": {"d": [1], "f": 2}, "e": None, "x": {"z": 3}}
    assert upgrade(content) == expected == upgrade(expected)
    assert str(content) == before


@pytest.mark.usefixtures("rows")
def test_missing_keys_are_not_added() -> None:
    assert upgrade({"a": 1}) == {"a": 1}


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ({"kind": "timm", "name": "vgg11"}, {"padding": "required"}),
        ({"kind": "timm", "name": "vgg11", "padding": "full"}, {}),
        ({"kind": "resnet", "depth": 50}, {}),
    ],
)
def test_backbones_of_earlier_versions_are_not_padded(
    backbone: dict[str, object], expected: dict[str, object]
) -> None:
    upgraded = upgrade({"model": {"backbone": backbone}})
    assert upgraded == {"model": {"backbone": backbone | expected}}
    validate_config(upgraded, source="a checkpoint")


@pytest.mark.parametrize(("old", "new"), [("none", False), ("official", True), ("on", "on")])
def test_compat_is_renamed_to_match_official(old: str, new: object) -> None:
    assert upgrade({"compat": old}) == {"match_official": new}


@pytest.mark.parametrize(("old", "new"), [(False, []), (True, ["tensorboard"])])
def test_tensorboard_is_one_of_the_trackers(old: bool, new: list[str]) -> None:
    assert upgrade({"train": {"tensorboard": old}}) == {"train": {"trackers": new}}


def test_settings_that_a_whole_config_lacks_get_their_former_meaning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "ADDED", (Added("a.new", 7), Added("b.c.new", None)))
    assert upgrade({"a": {"k": 1}, "b": {"c": {"k": 2}}}) == {
        "a": {"k": 1, "new": 7},
        "b": {"c": {"k": 2, "new": None}},
    }
    assert upgrade({"a": {"new": 8}, "b": {}}) == {"a": {"new": 8}, "b": {}}
