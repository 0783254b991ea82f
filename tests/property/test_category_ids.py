"""Round trip of category ids: JSON, labels, training, checkpoint, prediction, JSON."""

import json
import tempfile
from pathlib import Path

import torch
from helpers.coco_files import CocoFiles, write_coco_set
from helpers.recipe import paper_groups
from helpers.tiny_training import CONSTANT, TinyDetector
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deformable_detr import build_criterion, load_config
from deformable_detr.builders import build_dataset
from deformable_detr.data.collate import collate
from deformable_detr.data.samplers import SampleKey
from deformable_detr.data.transformed import TransformedDataset
from deformable_detr.data.transforms import Resize
from deformable_detr.detector import Detector
from deformable_detr.engine.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from deformable_detr.engine.evaluate import evaluate
from deformable_detr.engine.optimizer import adamw
from deformable_detr.engine.state import TrainState
from deformable_detr.engine.train import train_step
from deformable_detr.evaluation.coco_eval import CocoEvaluator, evaluate_results
from deformable_detr.evaluation.detection_table import DetectionTable
from deformable_detr.labels import MAX_RAW_LABELS
from deformable_detr.visualize.objects import draw_detections

STEPS = 30
CPU = torch.device("cpu")
RAW_IDS = st.integers(0, 5) | st.integers(0, MAX_RAW_LABELS - 1)
ANY_IDS = RAW_IDS | st.integers(-(2**62), 2**62)


def sets_of(ids):
    return st.lists(ids, min_size=1, max_size=4, unique=True)


def write_set(folder: Path, ids: list[int]) -> CocoFiles:
    names = {category_id: f"thing {number}" for number, category_id in enumerate(ids)}
    return write_coco_set(folder, num_images=2, size=(24, 32), categories=names)


def annotated(files: CocoFiles) -> dict[int, set[int]]:
    """Return the category ids per image, read from the file itself."""
    found: dict[int, set[int]] = {}
    for annotation in files.read()["annotations"]:
        found.setdefault(annotation["image_id"], set()).add(annotation["category_id"])
    return found


def check_round_trip(folder: Path, ids: list[int], *, match_official: bool) -> None:
    files = write_set(folder / "set", ids)
    paths = {"images": files.images, "annotations": files.annotations}
    settings = {f"data.train.{key}": str(path) for key, path in paths.items()}
    config = load_config("deformable_detr_r50", {"match_official": match_official, **settings})
    dataset = build_dataset(config, "train")
    space = dataset.label_space
    samples = TransformedDataset(dataset, Resize(24, 1333), seed=0)
    batch = collate([samples[SampleKey(0, index)] for index in range(2)])

    torch.manual_seed(0)
    model = TinyDetector(num_classes=space.num_classes)
    optimizer = adamw(paper_groups(model, lr=2e-2))
    state = TrainState(model, optimizer, CONSTANT, label_space=space, config={})
    for _ in range(STEPS):
        train_step(state, [batch], build_criterion(config), seed=0, max_grad_norm=0)

    save_checkpoint(folder / "last.pth", state.to_checkpoint())
    checkpoint = load_checkpoint(folder / "last.pth")
    assert checkpoint.label_space == space
    model.load_state_dict(checkpoint.model)

    evaluator = CocoEvaluator(dataset.annotations, checkpoint.label_space)
    measured = evaluate(model, [batch], evaluator, device=CPU)
    results = folder / "results.json"
    results.write_text(json.dumps(evaluator.results()))
    assert {result["category_id"] for result in json.loads(results.read_text())} <= set(ids)
    assert evaluate_results(results, files.annotations).num_detections == measured.num_detections

    detector = Detector(model, checkpoint.label_space, transform=Resize(24, 1333), device=CPU)
    for index, sample in enumerate(dataset[position] for position in range(2)):
        found = detector.predict(sample.image, threshold=0)
        best = found.select(found.scores == found.scores.max())
        table = DetectionTable.from_detections(sample.image_id, best, space)
        assert set(table.category_ids.tolist()) <= annotated(files)[index + 1]
        everything = DetectionTable.from_detections(sample.image_id, found, space)
        assert set(everything.category_ids.tolist()) == set(ids)
        assert draw_detections(sample.image, found, space).width > 0


@settings(max_examples=4)
@given(sets_of(ANY_IDS))
@example([0, 1, 2])
@example([90, 1, 17])
@example([2**62])
def test_any_category_ids_survive_training_and_prediction(ids):
    with tempfile.TemporaryDirectory() as folder:
        check_round_trip(Path(folder), ids, match_official=False)


@settings(max_examples=4)
@given(sets_of(RAW_IDS))
@example([0, 1, 2])
@example([90, 1, 17])
@example([MAX_RAW_LABELS - 1])
def test_raw_labels_survive_training_and_prediction(ids):
    with tempfile.TemporaryDirectory() as folder:
        check_round_trip(Path(folder), ids, match_official=True)
