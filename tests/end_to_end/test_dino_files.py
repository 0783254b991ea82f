"""Files of DINO of other implementations, in the commands that take weights."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from helpers.coco_files import CocoFiles, write_coco_set
from helpers.command_line import CommandLine
from helpers.dino_weights import SHAPES, SMALL_DINO, DinoModel, state_by_name
from helpers.models import DINO
from helpers.small_run import data_settings
from torch import Tensor

from deformable_detr.conversion.coco_categories import COCO
from deformable_detr.engine.checkpoints.checkpoint import load_checkpoint
from deformable_detr.labels import LabelSpace

# A person, and a class that COCO does not have.
SPACE = LabelSpace((1, 7), ("person", "gadget"))
CONFIG = "deformable_detr_r50_two_stage"
MODEL = (
    *DINO,
    "model.backbone.weights=none",
    "model.embed_dim=64",
    "model.encoder={num_layers: 2, ffn_dim: 32}",
    "model.decoder={num_layers: 2, ffn_dim: 32}",
    "model.queries.num_queries=10",
)
RUN = (
    "train={max_steps: 1, total_batch: 1, micro_batch: 1, log_every: 1}",
    "train.optimizer={lr: 1e-30, lr_backbone: 1e-30, lr_sampling: 1e-30, weight_decay: 0}",
    "data={eval_size: 32, eval_max_size: 64, num_workers: 0, augmentation: {kind: none}}",
)
# By source: key of the weights, row of the person, a class head, the proposals', the labels.
NAMES = {
    "dino": ("model", 1, "class_embed.1", "transformer.enc_out_class_embed", "label_enc"),
    "detrex-dino": ("model", 0, "class_embed.1", "class_embed.2", "label_enc"),
    "mmdet-dino": (
        "state_dict",
        0,
        "bbox_head.cls_branches.1",
        "bbox_head.cls_branches.2",
        "dn_query_generator.label_embedding",
    ),
}


def assert_rows_by_name(
    source: str, found: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> None:
    _, row, *names = NAMES[source]
    ours = ("decoder.class_heads.1", "queries.class_head", "denoising.label_embed")
    for name, theirs in zip(ours, names, strict=True):
        person, gadget = found[f"{name}.weight"]
        assert torch.equal(person, given[f"{theirs}.weight"][row])
        assert not torch.isin(gadget, given[f"{theirs}.weight"]).any()


@pytest.fixture
def files(tmp_path: Path) -> CocoFiles:
    """Write an image so long that it is small after its longer side has its limit."""
    categories = dict(zip(SPACE.category_ids, SPACE.names, strict=True))
    return write_coco_set(tmp_path / "set", num_images=1, size=(16, 666), categories=categories)


@pytest.mark.parametrize("source", NAMES)
def test_file_is_predicted_with_evaluated_and_fine_tuned(
    source: str,
    files: CocoFiles,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    run = CommandLine(monkeypatch, capsys)
    model = DinoModel(classes=91 if source == "dino" else 80, **SMALL_DINO)
    state, path = state_by_name(SHAPES[source](model)), tmp_path / f"{source}.pth"
    torch.save({NAMES[source][0]: state}, path)
    coco = tmp_path / "coco.json"  # evaluation needs the classes of the file
    coco.write_text(json.dumps({**files.read(), "categories": COCO.to_json()}))
    given, found = ("--checkpoint", path, "--device", "cpu"), tmp_path / "found"

    predicted = run("predict", *given, "--out", found, files.images)
    on_set = ("--images", files.images, "--annotations", coco, "--num-workers", "0")
    evaluated = run("evaluate", *given, *on_set)

    assert predicted.code == evaluated.code == 0, predicted.err + evaluated.err
    assert (found / "detections.json").is_file()
    folder = tmp_path / "run"
    chosen = ("--config", CONFIG, "--device", "cpu", "--run-dir", folder)
    data = data_settings(files, files)
    trained = run("train", *chosen, "--finetune-from", path, *MODEL, *RUN, *data)
    assert trained.code == 0, trained.err
    weights = load_checkpoint(folder / "last.pth").model
    assert_rows_by_name(source, weights, state)
