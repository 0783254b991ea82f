"""Faults injected into a run: the bundle names each, and its replay reproduces it."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from helpers.coco_files import write_coco_set
from helpers.command_line import CommandLine
from helpers.small_run import SMALL_RUN, data_settings
from torch import Tensor

from deformable_detr.cli.doctor.bundle import EXIT_NOT_REPRODUCED
from deformable_detr.cli.main import EXIT_ERROR
from deformable_detr.data import transformed
from deformable_detr.data.transforms import to_model_input
from deformable_detr.engine.failures.bundle import FailureBundle
from deformable_detr.engine.failures.recorder import FailureRecorder
from deformable_detr.engine.step import NonFiniteError
from deformable_detr.engine.train import fit
from deformable_detr.structures import Sample, Target
from deformable_detr.workflows import training

BAD_IMAGE = 3
BAD_WEIGHT = "encoder.layers.0.linear1.weight"


@pytest.fixture
def train(tmp_path: Path, run: CommandLine) -> Callable[..., str]:
    files = write_coco_set(tmp_path / "data", num_images=4, empty=[2])

    def fails(*settings: str) -> str:
        options = ["--config", "deformable_detr_r50", "--device", "cpu"]
        options += ["--run-dir", str(tmp_path / "run")]
        data = data_settings(files, files)
        outcome = run("train", *options, *SMALL_RUN, *data, *settings)
        assert outcome.code == EXIT_ERROR
        return outcome.err

    return fails


def replay(run: CommandLine, tmp_path: Path, step: int) -> str:
    """Return the output of `doctor bundle` for the run's only bundle, which must be reproduced."""
    path = tmp_path / "run" / f"failure_step_{step}_rank_0.pth"
    assert list((tmp_path / "run").glob("failure*")) == [path]
    outcome = run("doctor", "bundle", path)
    assert outcome.code == 0, outcome.err
    assert outcome.out.rstrip().endswith("reproduced: on this CPU the step fails as well")
    return re.sub(r"\s+", " ", outcome.out)


def test_a_nan_in_an_image_names_the_image(
    tmp_path: Path, run: CommandLine, train: Callable[..., str]
) -> None:
    def corrupted(sample: Sample) -> tuple[Tensor, Target]:
        image, target = to_model_input(sample)
        if target.image_id == BAD_IMAGE:
            image[0, 5, 5] = math.nan
        return image, target

    with mock.patch.object(transformed, "to_model_input", corrupted):
        error = train()
    assert f"likely cause on rank 0: image {BAD_IMAGE} has 1 non-finite values of" in error
    output = replay(run, tmp_path, step=0)
    assert f"likely cause image {BAD_IMAGE} has 1 non-finite values of" in output
    assert (
        "first non-finite (this machine) forward: the input of the model (DeformableDETR)" in output
    )


def test_a_nan_in_a_weight_names_the_weight(
    tmp_path: Path, run: CommandLine, train: Callable[..., str]
) -> None:
    def corrupted(state: Any, loop: Any) -> None:
        with torch.no_grad():
            state.model.get_parameter(BAD_WEIGHT)[3, 1] = math.nan
        fit(state, loop)

    with mock.patch.object(training, "fit", corrupted):
        error = train()
    assert f"weights were not finite before the step: {BAD_WEIGHT};" in error
    output = replay(run, tmp_path, step=0)
    assert f"weights were not finite before the step: {BAD_WEIGHT};" in output
    assert (
        "first non-finite (this machine) forward: the output of encoder.layers.0.linear1 (Linear)"
        in output
    )


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_learning_rate_far_too_high_is_named_with_the_growth_of_the_weights(
    tmp_path: Path, run: CommandLine, train: Callable[..., str], precision: str
) -> None:
    no_evaluation = "train.eval_every_epochs=100"  # the one after the first step would fail
    error = train("train.optimizer.lr=1e6", f"train.precision={precision}", no_evaluation)
    assert "the learning rate is too high: with up to 1e+06 the 2-norm of all weights grew" in error
    output = replay(run, tmp_path, step=1)
    assert "the learning rate is too high: with up to 1e+06" in output
    bundle = FailureBundle.load(tmp_path / "run" / "failure_step_1_rank_0.pth")
    norms = dict(bundle.weight_norms)
    assert norms[1] > 1e8 > 1e3 > norms[0]


def test_overflow_of_float16_activations_is_attributed_to_the_precision(
    tmp_path: Path, run: CommandLine, train: Callable[..., str]
) -> None:
    def corrupted(state: Any, loop: Any) -> None:
        with torch.no_grad():
            state.model.get_parameter(BAD_WEIGHT).mul_(1e7)
        fit(state, loop)

    with mock.patch.object(training, "fit", corrupted):
        error = train("train.precision=float16")
    assert "the precision is too low: in float32 the same step is finite" in error
    output = replay(run, tmp_path, step=0)
    assert "step 0, rank 0, float16" in output
    assert (
        "first non-finite (this machine) forward: the output of encoder.layers.0.linear1 (Linear)"
        in output
    )


def test_a_bundle_that_is_finite_on_the_cpu_is_not_reproduced(
    tmp_path: Path, run: CommandLine, train: Callable[..., str]
) -> None:
    def alarm(state: Any, loop: Any) -> None:
        state.model.train()
        recorder = FailureRecorder(loop.folder, loop.criterion, seed=0)
        raise NonFiniteError(recorder.write(state, [next(iter(loop.loader))], "a false alarm"))

    with mock.patch.object(training, "fit", alarm):
        assert "likely cause on rank 0: not found" in train()
    outcome = run("doctor", "bundle", tmp_path / "run" / "failure_step_0_rank_0.pth")
    assert outcome.code == EXIT_NOT_REPRODUCED
    assert "not reproduced: on this CPU the step is finite" in outcome.out
    rows = re.findall(r"│ +([\d.e+-]+) +│ +([\d.e+-]+) +│", outcome.out)
    assert len(rows) == 10
    assert all(then == here for then, here in rows)
