"""`train.eval_batch`: evaluations of a run and of a checkpoint in batches of this size."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.coco_files import CocoFiles, write_coco_set
from helpers.small_run import SMALL_RUN, data_settings

from deformable_detr import load_config
from deformable_detr.builders import build_eval_transform
from deformable_detr.config import RunConfig
from deformable_detr.detector import Detector
from deformable_detr.engine.evaluate import validation_loss
from deformable_detr.engine.run.folder import RunFolder
from deformable_detr.engine.run.stopping import StopRequest
from deformable_detr.engine.train import TrainLoop
from deformable_detr.workflows.evaluation import measure_validation_set
from deformable_detr.workflows.training_parts import (
    TrainingData,
    build_loop,
    build_run_model,
    build_state,
)

SIZES = [(48, 64), (64, 48), (48, 64), (48, 64)]
CPU = torch.device("cpu")


@pytest.fixture
def files(tmp_path: Path) -> CocoFiles:
    return write_coco_set(tmp_path / "set", num_images=4, sizes=SIZES)


def config_of(files: CocoFiles, eval_batch: int) -> RunConfig:
    settings = (*SMALL_RUN, *data_settings(files, files), f"train.eval_batch={eval_batch}")
    return load_config("deformable_detr_r50", settings)


def build(files: CocoFiles, folder: Path, eval_batch: int) -> tuple[TrainLoop, torch.nn.Module]:
    config = config_of(files, eval_batch)
    data = TrainingData.open(config)
    model, _ = build_run_model(config, data.train.label_space, None, resume=False)
    state = build_state(config, data, model)
    return build_loop(config, data, state, RunFolder(folder), StopRequest()), model


def test_the_validation_of_a_run_has_these_batches_and_a_loss_that_does_not_depend_on_them(
    files: CocoFiles, tmp_path: Path
) -> None:
    batches, losses = {}, {}
    for size in (1, 3):
        loop, model = build(files, tmp_path / "run", size)
        loader = loop.validation.loader
        batches[size] = [[target.image_id for target in batch.targets] for batch in loader]
        losses[size] = validation_loss(model, loader, loop.criterion, device=CPU)
    assert batches == {1: [[1], [2], [3], [4]], 3: [[1, 3, 4], [2]]}
    assert losses[3] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(("eval_batch", "count"), [(1, 4), (2, 3), (3, 2)])
def test_the_evaluation_of_a_checkpoint_has_as_many_batches(
    files: CocoFiles, eval_batch: int, count: int
) -> None:
    config = config_of(files, eval_batch)
    data = TrainingData.open(config)
    model, _ = build_run_model(config, data.train.label_space, None, resume=False)
    detector = Detector(
        model, data.val.label_space, transform=build_eval_transform(config.data), device=CPU
    )
    seen: list[dict[str, Any]] = []
    measure_validation_set(
        config, detector, data.val, callback=lambda _, values: seen.append(values)
    )
    assert seen[-1] == {"done": count, "total": count}
