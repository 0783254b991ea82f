"""Preprocessing in files of transformers: reproduced, or refused with the fields that differ."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.foreign_files import without_stored, write_foreign

from deformable_detr import Detector
from deformable_detr.conversion.preprocessing import preprocessor_config, read_preprocessing
from deformable_detr.data.transforms import Resize
from deformable_detr.pixels.normalization import IMAGENET_MEAN, IMAGENET_STD
from deformable_detr.workflows.conversion import convert
from deformable_detr.workflows.finetuning import FinetuneSource

SIZES = {"eval_size": 480, "eval_max_size": 900}
OURS = preprocessor_config(480, 900)
IN_LEVELS = {
    "image_mean": [255 * value for value in IMAGENET_MEAN],
    "image_std": [255 * value for value in IMAGENET_STD],
}
THE_SAME: dict[str, dict[str, Any]] = {
    "as we write it": {},
    "as on the hub": {"image_processor_type": None, "size": 480, "max_size": 900}
    | {"feature_extractor_type": "DeformableDetrFeatureExtractor", "rescale_factor": None},
    "in levels": {"do_rescale": False, **IN_LEVELS},
    "in half levels": {"rescale_factor": 2 / 255, "image_mean": [0.97, 0.912, 0.812]}
    | {"image_std": [0.458, 0.448, 0.45]},
    "through float32": {"image_mean": [0.48500001430511475, 0.4560000002384, 0.40599998831]},
    "without padding": {"do_pad": False},
    "a related model": {"image_processor_type": "DetrImageProcessorFast"},
}
DIFFERENT: dict[str, dict[str, Any]] = {
    "do_resize": {"do_resize": False},
    "size": {"size": {"height": 640, "width": 640}},
    "size ": {"size": {"shortest_edge": 800}},
    "size  ": {"size": {"max_height": 800, "max_width": 800}},
    "size   ": {"size": {"shortest_edge": 0, "longest_edge": True}},
    "resample": {"resample": 3},
    "do_rescale": {"do_rescale": False},
    "rescale_factor": {"rescale_factor": 1 / 127.5},
    "rescale_factor ": {"rescale_factor": 0},
    "do_normalize": {"do_normalize": False},
    "image_mean": {"image_mean": [0.5, 0.5, 0.5]},
    "image_mean ": {"image_mean": "imagenet"},
    "image_std": {"image_std": 0.5},
    "pad_size": {"pad_size": {"height": 1333, "width": 1333}},
    "image_processor_type": {"image_processor_type": "RTDetrImageProcessor"},
}


def write(folder: Path, changed: dict[str, Any], *, name: str = "preprocessor_config.json") -> None:
    content: dict[str, Any] = OURS | changed
    if name == "processor_config.json":
        content = {"image_processor": content}
    (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize("changed", THE_SAME.values(), ids=THE_SAME)
@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_settings_that_say_the_same_are_accepted(
    tmp_path: Path, changed: dict[str, Any], name: str
) -> None:
    write(tmp_path, changed, name=name)

    found = read_preprocessing(tmp_path)

    assert found is not None
    assert (found.sizes, found.differences) == (SIZES, ())


@pytest.mark.parametrize(("size", "shorter"), [(480, 480), (None, 800)])
def test_a_limit_that_is_not_given_is_that_of_transformers(
    tmp_path: Path, size: int | None, shorter: int
) -> None:
    write(tmp_path, {"size": size})
    found = read_preprocessing(tmp_path)
    assert found is not None
    assert found.sizes == {"eval_size": shorter, "eval_max_size": 1333}


@pytest.mark.parametrize("field", DIFFERENT)
def test_settings_that_differ_are_named(tmp_path: Path, field: str) -> None:
    write(tmp_path, DIFFERENT[field])

    found = read_preprocessing(tmp_path)

    assert found is not None
    named = {difference.partition(":")[0] for difference in found.differences}
    assert field.strip() in named
    normalization = {"do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"}
    assert named in ({field.strip()}, normalization)


def test_folder_whose_preprocessing_cannot_be_reproduced_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = without_stored(write_foreign(tmp_path, "transformers"))
    write(folder, {"resample": 3, "size": {"height": 640, "width": 640}})

    message = (
        r"^preprocessing of checkpoint .*transformers must be a resize .*; preprocessor_config.json"
        r' has size: \{"height": 640, "width": 640\}, resample: 3: detections would differ .*, or '
        r"remove .*preprocessor_config.json to ignore the difference$"
    )
    with pytest.raises(ValueError, match=message):
        Detector.from_checkpoint(folder, device="cpu")
    with pytest.raises(ValueError, match=message):
        convert(folder, tmp_path / "out.pth")

    with caplog.at_level(logging.WARNING):
        FinetuneSource.read(folder)
    (warning,) = caplog.messages
    assert "has size: {" in warning

    (folder / "preprocessor_config.json").unlink()
    assert Detector.from_checkpoint(folder, device="cpu").transform == Resize(800, 1333)


def test_what_other_programs_go_by_comes_before_what_is_stored(tmp_path: Path) -> None:
    folder = write_foreign(tmp_path, "transformers", "two_stage")
    write(folder, {})
    config = json.loads((folder / "config.json").read_text())
    config |= {"dropout": 0.25, "two_stage_num_proposals": 17}
    config["id2label"]["0"] = "somebody"
    (folder / "config.json").write_text(json.dumps(config))

    convert(folder, tmp_path / "native.pth")
    detector = Detector.from_checkpoint(tmp_path / "native.pth", device="cpu")

    assert detector.transform == Resize(480, 900)
    assert detector.label_space.names[:2] == ("somebody", "bicycle")
    assert detector.label_space.category_ids[-1] == 90
    assert detector.model.get_submodule("queries").num_queries == 17
    dropout = detector.model.get_submodule("encoder.layers.0.dropout")
    assert isinstance(dropout, torch.nn.Dropout)
    assert dropout.p == 0.25
