"""Two-stage training trains the proposals: they match the objects, with the highest scores."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from helpers.coco_files import write_coco_set
from helpers.small_run import data_settings
from torch import Tensor
from torchvision.ops import box_iou

from deformable_detr import build_criterion, build_model, load_config
from deformable_detr.boxes import cxcywh_to_xyxy
from deformable_detr.builders import build_dataset
from deformable_detr.data.collate import Batch, collate
from deformable_detr.data.samplers import SampleKey
from deformable_detr.data.transformed import TransformedDataset
from deformable_detr.data.transforms import Resize
from deformable_detr.structures import Predictions

NUM_IMAGES, SIZE, STEPS = 4, 64, 100
SMALL = (
    "model.backbone={kind: mobilenet_v2, out_strides: [4, 8], weights: none, norm: batch_norm,"
    " freeze_up_to_stride: 0}",
    "model.neck.num_levels=2",
    "model.embed_dim=64",
    "model.attention.num_heads=2",
    "model.encoder={num_layers: 1, ffn_dim: 64, dropout: 0}",
    "model.decoder={num_layers: 1, ffn_dim: 64, dropout: 0}",
    "model.queries.num_queries=100",
)


@dataclass
class Training:
    """Proposals of the same images before and after `STEPS` steps."""

    batch: Batch
    before: Predictions
    after: Predictions


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Training:
    torch.manual_seed(0)
    folder: Path = tmp_path_factory.mktemp("set")
    files = write_coco_set(folder, num_images=NUM_IMAGES, size=(SIZE, SIZE))
    settings = [*SMALL, *data_settings(files, files)]
    config = load_config("deformable_detr_r50_two_stage", settings)
    samples = TransformedDataset(build_dataset(config, "train"), Resize(SIZE, 1333), seed=0)
    batch = collate([samples[SampleKey(0, index)] for index in range(NUM_IMAGES)])
    model, criterion = build_model(config, num_classes=2), build_criterion(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def proposals() -> Predictions:
        with torch.no_grad():
            return model.eval()(batch.images).encoder

    before = proposals()
    model.train()
    for _ in range(STEPS):
        optimizer.zero_grad()
        criterion(model(batch.images), batch.targets).losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return Training(batch, before, proposals())


def recall(batch: Batch, boxes: Tensor, scores: Tensor, *, top: int) -> float:
    """Return the share of objects with an IoU of at least 0.5 to one of the `top` proposals."""
    found = []
    for image, target in enumerate(batch.targets):
        best = scores[image].topk(top).indices
        wanted = cxcywh_to_xyxy(target.boxes)
        found.append(box_iou(cxcywh_to_xyxy(boxes[image, best]), wanted).amax(0) >= 0.5)
    return torch.cat(found).float().mean().item()


@pytest.mark.slow
def test_objects_are_among_the_100_best_proposals_after_100_steps_only(training):
    before, after = training.before, training.after
    assert before.logits.shape[1] == 320
    assert recall(training.batch, before.boxes, before.logits[..., 0], top=100) < 0.2
    assert recall(training.batch, after.boxes, after.logits[..., 0], top=100) > 0.8


@pytest.mark.slow
def test_scores_rank_proposals_that_match_objects_first(training):
    boxes = training.after.boxes
    trained, untrained = training.after.logits[..., 0], training.before.logits[..., 0]
    assert recall(training.batch, boxes, trained, top=10) > 0.8
    assert recall(training.batch, boxes, untrained, top=10) < 0.4
