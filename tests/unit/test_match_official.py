"""Effects of `match_official: true` on each component; tests/parity compares the results."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.coco_files import CocoFiles, write_coco_set
from helpers.command_line import CommandLine
from helpers.models import make_target
from helpers.official_losses import cost_matrix
from helpers.small_run import SMALL_RUN, data_settings
from helpers.tiny_checkpoint import write_checkpoint
from torch import nn

from deformable_detr import Detector, build_criterion, build_model, load_config
from deformable_detr.builders import build_dataset, build_sampler
from deformable_detr.config import ConfigError
from deformable_detr.data.coco import CocoDataset
from deformable_detr.data.samplers import DistributedOrderSampler, MicroBatchSampler
from deformable_detr.data.transforms import Resize
from deformable_detr.engine import evaluate as engine_evaluate
from deformable_detr.engine.checkpoints.checkpoint import RULES, load_checkpoint, save_checkpoint
from deformable_detr.evaluation.postprocess import to_detections
from deformable_detr.labels import LabelSpace
from deformable_detr.structures import ImageBatch, ModelOutput, Predictions
from deformable_detr.workflows.evaluation import open_detector
from deformable_detr.workflows.measuring import measure
from deformable_detr.workflows.training import train

OFFICIAL = "match_official=true"


def config_with(*overrides: str):
    return load_config("deformable_detr_r50", [*SMALL_RUN, *overrides])


@pytest.fixture
def files(tmp_path: Path) -> CocoFiles:
    return write_coco_set(tmp_path / "set", num_images=4, size=(48, 64))  # categories 3 and 7


def write_as_an_earlier_version(path: Path) -> None:
    checkpoint = load_checkpoint(path)
    assert checkpoint.config.pop("match_official")
    config = {**checkpoint.config, "compat": "official"}
    save_checkpoint(path, replace(checkpoint, config=config, rules=1))


@pytest.mark.parametrize(("overrides", "count"), [([], 80), ([OFFICIAL], 91)])
def test_the_default_number_of_classes_is_that_of_coco(overrides, count):
    model = build_model(config_with(*overrides))
    assert model.decoder.class_heads[0].out_features == count


def test_the_number_of_classes_can_be_given():
    model = build_model(config_with(OFFICIAL), num_classes=4)
    assert model.decoder.class_heads[0].out_features == 4


def test_the_matching_cost_has_the_official_alpha_and_gamma():
    target = make_target(1, 0)
    logits, boxes = torch.randn(6, 3).double(), torch.rand(6, 4).double() * 0.5 + 0.2
    expected = cost_matrix(logits, boxes, target.labels.tolist(), target.boxes.tolist())
    losses = ("loss.focal_alpha=0.7", "loss.focal_gamma=1")
    official = build_criterion(config_with(OFFICIAL, *losses))
    assert (official.class_loss.alpha, official.class_loss.gamma) == (0.7, 1.0)
    cost = official.matcher.cost(logits, boxes, target)
    torch.testing.assert_close(cost, torch.from_numpy(expected))
    own = build_criterion(config_with(*losses)).matcher.cost(logits, boxes, target)
    assert not torch.allclose(own, cost, atol=1e-3)


@pytest.mark.parametrize(
    ("num_objects", "own", "official"), [(0, 1 / 4, 1), (3, 3 / 4, 1), (6, 1.5, 1.5)]
)
def test_losses_of_few_objects_have_the_official_divisor(monkeypatch, num_objects, own, official):
    monkeypatch.setattr("deformable_detr.distributed.world_size", lambda: 4)
    assert build_criterion(config_with()).divisor(num_objects) == own
    assert build_criterion(config_with(OFFICIAL)).divisor(num_objects) == official


@pytest.mark.parametrize("auxiliary", ["true", "false"])
@pytest.mark.parametrize("match_official", ["false", "true"])
def test_proposals_have_no_weight_without_auxiliary_losses_if_match_official(
    match_official, auxiliary
):
    config = config_with(f"match_official={match_official}", f"loss.auxiliary={auxiliary}")
    expected = not (match_official == "true" and auxiliary == "false")
    assert build_criterion(config).weigh_proposals == expected


@pytest.mark.parametrize(
    ("overrides", "kind"),
    [
        ([], MicroBatchSampler),
        (["train.sample_order=official"], DistributedOrderSampler),
        ([OFFICIAL], DistributedOrderSampler),
        ([OFFICIAL, "train.sample_order=global_batches"], DistributedOrderSampler),
    ],
)
def test_match_official_selects_the_official_sampler(overrides, kind):
    config = config_with(*overrides)
    assert type(build_sampler(config, num_samples=8, rank=0, world_size=1)) is kind
    if kind is DistributedOrderSampler:
        with pytest.raises(ConfigError, match="repeat_threshold: must be null in the official"):
            build_sampler(config, num_samples=8, rank=0, world_size=1, factors=np.ones(8))


def test_the_official_order_does_not_depend_on_the_seed():
    orders = [
        list(build_sampler(config_with(OFFICIAL, seed), num_samples=8, rank=0, world_size=1))
        for seed in ("train.seed=1", "train.seed=2")
    ]
    assert orders[0] == orders[1]


def test_labels_are_category_ids(files):
    dataset = build_dataset(config_with(OFFICIAL, *data_settings(files, files)), "train")
    assert dataset.label_space.num_classes == 8
    annotated = [annotation["category_id"] for annotation in files.read()["annotations"]]
    labels = [label for index in range(4) for label in dataset[index].labels.tolist()]
    assert labels == annotated


def test_a_data_set_uses_the_layout_of_the_given_label_space(files):
    raw = build_dataset(config_with(OFFICIAL, *data_settings(files, files)), "train").label_space
    config = config_with(*data_settings(files, files))
    assert build_dataset(config, "val", label_space=raw).label_space == raw
    with pytest.raises(ValueError, match=r"the file must have the categories of"):
        build_dataset(config, "val", label_space=LabelSpace((3, 8), ("a", "b")).with_raw_labels())


class Official(nn.Module):
    """Model with four queries whose best class rows, in order, are 0, 3, 2 and 1."""

    def forward(self, images: ImageBatch) -> ModelOutput:
        logits = torch.full((4, 4), -9.0)
        logits[range(4), [0, 3, 2, 1]] = torch.tensor([4.0, 3.0, 2.0, 1.0])
        boxes = torch.tensor([0.1, 0.5, 0.4, 0.4]).expand(4, 4)  # beyond the left border
        N = len(images)
        return ModelOutput(Predictions(logits.expand(N, 4, 4), boxes.expand(N, 4, 4)), (), None)


@pytest.mark.parametrize(("limit", "found"), [(1, []), (2, [3]), (3, [3]), (4, [3, 1])])
def test_class_rows_of_no_category_compete_and_are_dropped_in_evaluation_and_prediction(
    tmp_path, limit, found
):
    files = write_coco_set(tmp_path, num_images=1, categories={1: "cat", 3: "bus"})
    detector = Detector(
        Official(),
        LabelSpace((1, 3), ("cat", "bus")).with_raw_labels(),
        transform=Resize(32, 64),
        device=torch.device("cpu"),
        clip_in_evaluation=False,
    )
    dataset = CocoDataset(files.images, files.annotations, label_space=detector.label_space)
    evaluator, _ = measure(detector, dataset, batch_size=1, num_workers=0, max_detections=limit)
    predicted = detector.predict(dataset[0].image, threshold=0, max_detections=limit)
    assert evaluator.table.category_ids.tolist() == predicted.labels.tolist() == found
    # The official code does not clip in evaluation.
    assert evaluator.table.boxes_xywh[:, 0].tolist() == pytest.approx([-0.1 * 128] * len(found))
    assert predicted.boxes_xyxy[:, 0].tolist() == [0] * len(found)


def test_an_official_run_is_trained_resumed_evaluated_and_used_for_prediction(
    files: CocoFiles,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    clipped = []

    def watched(*arguments, clip, **options):
        clipped.append(clip)
        return to_detections(*arguments, clip=clip, **options)

    monkeypatch.setattr(engine_evaluate, "to_detections", watched)
    config = config_with(OFFICIAL, *data_settings(files, files), "train.max_steps=1")
    folder = tmp_path / "run"
    with caplog.at_level(logging.INFO):
        train(config, run_dir=folder, device="cpu")
    assert "match_official true" in caplog.text
    assert "{3: red thing, 7: blue thing} as labels of 8" in caplog.text
    write_as_an_earlier_version(folder / "last.pth")
    longer = config_with(OFFICIAL, *data_settings(files, files), "train.max_steps=2")
    caplog.clear()
    with caplog.at_level(logging.INFO):
        train(longer, run_dir=folder, device="cpu", resume=True)
    (change,) = (line for line in caplog.messages if "has changed" in line)
    assert change.endswith("train.max_steps: 1 -> 2")
    (warning,) = (line for line in caplog.messages if "earlier version" in line)
    assert "last.pth is of an earlier version; from here on, samples have another order" in warning
    checkpoint = load_checkpoint(folder / "last.pth")
    assert checkpoint.rules == RULES
    assert checkpoint.step == 2
    assert checkpoint.label_space.num_classes == 8

    results = tmp_path / "results.json"
    outcome = CommandLine(monkeypatch, capsys)(
        "evaluate",
        *("--checkpoint", folder / "last.pth", "--images", files.images, "--device", "cpu"),
        *("--annotations", files.annotations, "--num-workers", "0", "--out", results),
    )
    assert outcome.code == 0, outcome.err
    assert {result["category_id"] for result in json.loads(results.read_text())} == {3, 7}

    again = open_detector(config, folder / "last.pth", torch.device("cpu"))
    assert (again.clip_boxes, again.clip_in_evaluation) == (True, False)
    assert set(clipped) == {False}  # in training, and in the evaluation after it

    detector = Detector.from_checkpoint(folder / "last.pth", device="cpu")
    image = sorted(files.images.iterdir())[0]
    assert set(detector.predict(image, threshold=0).labels.tolist()) == {3, 7}
    assert set(detector.predict(image, threshold=0, classes=["red thing"]).labels.tolist()) == {3}
    with pytest.raises(ValueError, match=r"got no category 4; it knows \{3: red thing, 7: blue"):
        detector.predict(image, classes=["no category 4"])


def test_a_run_cannot_be_resumed_with_other_labels(files, tmp_path):
    settings = data_settings(files, files)
    folder = tmp_path / "run"
    train(config_with(*settings, "train.max_steps=1"), run_dir=folder, device="cpu")
    with pytest.raises(ValueError, match="as labels of 8 where checkpoint"):
        train(config_with(OFFICIAL, *settings), run_dir=folder, device="cpu", resume=True)


def test_ids_too_large_for_raw_labels_are_refused_before_training(tmp_path):
    files = write_coco_set(tmp_path, num_images=1, categories={10**9: "a"})
    config = config_with(OFFICIAL, *data_settings(files, files))
    with pytest.raises(ValueError, match=r"in 0\.\.2047 to be labels.*use match_official: false"):
        build_dataset(config, "train")


def test_a_checkpoint_with_settings_of_another_version_is_read(tmp_path, caplog):
    path = tmp_path / "last.pth"
    write_checkpoint(path)
    content = torch.load(path, weights_only=True)
    del content["config"]["match_official"]
    content["config"]["model"]["gone"] = 1
    torch.save(content, path)
    assert Detector.from_checkpoint(path, device="cpu").label_space.num_classes == 3
    assert "unknown settings are ignored: model.gone" in caplog.text
