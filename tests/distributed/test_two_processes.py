import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distributed_work import (
    DTYPES,
    EMPTY_RANK_STEPS,
    FEW_OBJECTS,
    FIVE_VARIANTS,
    MAX_STEPS,
    VARIANTS,
    all_step_gradients,
    denoising_losses,
    detections_of_any_sizes,
    empty_rank_batch,
    gradients_for_few_objects,
    step_with_batch_norm,
    train_tiny,
    uneven_step,
    validation_total,
    variant_state,
    work_in_process,
)
from helpers.coco_files import write_coco_set
from helpers.processes import run_in_processes
from helpers.tiny_checkpoint import LABEL_SPACE as TINY_CLASSES
from helpers.tiny_checkpoint import write_random_checkpoint
from helpers.tiny_training import LABEL_SPACE, tiny_criterion
from torch import Tensor

from deformable_detr.engine.checkpoints.checkpoint import load_checkpoint
from deformable_detr.engine.failures.bundle import FailureBundle
from deformable_detr.engine.metrics import read_records
from deformable_detr.engine.run.folder import RunFolder
from deformable_detr.engine.train import train_step

pytestmark = pytest.mark.distributed
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
CATEGORIES = dict(zip(LABEL_SPACE.category_ids, LABEL_SPACE.names, strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    write_coco_set(folder / "val", num_images=2, categories=CATEGORIES)
    sizes, names = [(48, 64), (64, 48), (48, 64), (40, 64), (48, 64)], TINY_CLASSES.names
    categories = dict(zip(TINY_CLASSES.category_ids, names, strict=True))
    write_coco_set(folder / "sizes", num_images=9, sizes=sizes, categories=categories)
    write_random_checkpoint(folder / "random.pth")
    return folder


@pytest.fixture(scope="module")
def together(folder: Path) -> list[dict[str, Any]]:
    return run_in_processes(work_in_process, folder)


@pytest.fixture(scope="module")
def gradients_alone() -> Mapping[str, Tensor]:
    return all_step_gradients()


@pytest.mark.parametrize("case", ["mixed", "empty rank"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_with_two_images_each_have_the_gradients_of_one_with_four(
    together: list[dict[str, Any]],
    gradients_alone: Mapping[str, Tensor],
    variant: str,
    dtype: str,
    case: str,
) -> None:
    name = f"{variant} {dtype} {case}"
    expected = gradients_alone[name]
    for one in together:
        difference = (one["gradients"][name] - expected).norm() / expected.norm()
        assert difference < TOLERANCE[dtype]


def test_the_gradient_of_few_objects_is_the_same_for_any_micro_batch_and_any_processes(
    folder: Path, together: list[dict[str, Any]]
) -> None:
    """Compare shares of equal shape: float32 rounds others differently, by up to 2e-6."""
    single = {size: gradients_for_few_objects(micro_batch=size) for size in (1, 2, 4)}
    four = run_in_processes(gradients_for_few_objects, folder, world_size=4)
    two = [one["few objects"] for one in together]
    for name, (dtype, _) in FEW_OBJECTS.items():
        pairs = [(one[name], single[1][name]) for one in four]
        pairs += [(one[name], single[2][name]) for one in two]
        if dtype == "float64":
            pairs += [(single[size][name], single[4][name]) for size in (1, 2)]
        for found, expected in pairs:
            assert (found - expected).abs().max() < TOLERANCE[dtype] * expected.abs().max(), name


def test_two_processes_with_uneven_shares_take_the_step_of_one(
    together: list[dict[str, Any]],
) -> None:
    expected, expected_means = uneven_step()
    for one in together:
        gradients, means = one["uneven"]
        assert (gradients - expected).norm() / expected.norm() < 1e-12
        assert means == pytest.approx(expected_means, rel=1e-6)  # metrics are in float32


def test_two_processes_have_the_denoising_losses_of_one(together: list[dict[str, Any]]) -> None:
    expected = denoising_losses()
    assert expected["denoising/loss_class"] > 0
    for one in together:
        assert one["denoising losses"] == pytest.approx(expected, rel=1e-6)  # some in float32


@pytest.mark.parametrize("variant", FIVE_VARIANTS)
def test_fifty_steps_with_a_rank_without_objects_end_with_the_gradients_of_one_process(
    together: list[dict[str, Any]], variant: str
) -> None:
    """Check that the steps end at all: a graph that depends on the targets would hang."""
    first, second = (one["empty"][variant] for one in together)
    for name, value in first["before"].items():
        assert value.equal(second["before"][name]), name
    state = variant_state(variant)
    start = {name: value.clone() for name, value in state.model.state_dict().items()}
    state.model.load_state_dict(first["before"])
    assert not all(value.equal(first["before"][name]) for name, value in start.items())
    pair = [empty_rank_batch(EMPTY_RANK_STEPS - 1, rank) for rank in range(2)]
    train_step(state, pair, tiny_criterion(), seed=0, max_grad_norm=0)
    expected = torch.cat([p.grad.flatten() for p in state.model.parameters() if p.grad is not None])
    for one in (first, second):
        assert (one["gradients"] - expected).norm() < 1e-10 * expected.norm()


def test_processes_share_the_statistics_of_batch_norms_of_all_their_images(
    together: list[dict[str, Any]],
) -> None:
    first, second = (one["batch norm"] for one in together)
    for name, value in first.items():
        assert value.equal(second[name]), name
    name = "backbone.body.layer2.0.bn1.running_mean"
    of_ranks = [step_with_batch_norm(rank)[name] for rank in range(2)]
    assert not torch.allclose(*of_ranks)
    torch.testing.assert_close(first[name], torch.stack(of_ranks).mean(0))


def test_the_detections_of_two_processes_are_those_of_one(
    folder: Path, together: list[dict[str, Any]]
) -> None:
    metrics, table = detections_of_any_sizes(folder)
    assert len(table.seen) == 9
    for one in together:
        found_metrics, found = one["detections"]
        assert found_metrics == metrics
        for name, column in vars(table).items():
            np.testing.assert_array_equal(getattr(found, name), column)


def test_each_process_knows_its_rank(together: list[dict[str, Any]]) -> None:
    assert [(one["rank"], one["world_size"], one["is_main"]) for one in together] == [
        (0, 2, True),
        (1, 2, False),
    ]


def test_sums_means_and_objects_reach_every_process(together: list[dict[str, Any]]) -> None:
    for one in together:
        assert one["sum"] == [2.0, 10.0]
        assert one["mean"] == {"value": 0.5}
        assert one["gathered"] == [{"rank": 0}, {"rank": 1}]


def test_a_value_or_an_error_of_the_first_process_reaches_every_process(
    together: list[dict[str, Any]],
) -> None:
    assert [one["from main"] for one in together] == ["of rank 0"] * 2
    assert [one["error of main"] for one in together] == ["list index out of range"] * 2


def test_a_criterion_without_num_boxes_averages_the_objects_over_processes(
    together: list[dict[str, Any]],
) -> None:
    for one in together:
        assert one["shares of counted"] == pytest.approx([1 / 2.5, 2, 2, 1 / 2.5, 1, 1])


def test_the_first_process_of_a_machine_is_done_before_the_others_enter(
    together: list[dict[str, Any]],
) -> None:
    assert together[0]["entered"] < together[1]["entered"]


def test_a_non_finite_loss_on_one_rank_stops_all_in_the_same_step(
    together: list[dict[str, Any]],
) -> None:
    messages = {one["not finite"] for one in together}
    assert len(messages) == 1
    expected = r"0: the loss of step 0 must be finite, got rank 1: .*total nan"
    assert re.match(expected, messages.pop())


def test_a_failed_match_on_one_rank_stops_all_in_the_same_step(
    together: list[dict[str, Any]],
) -> None:
    messages = {one["not matched"] for one in together}
    assert len(messages) == 1
    assert "rank 1: predictions must be finite to be matched" in messages.pop()


def test_a_step_that_overflows_on_one_rank_is_computed_again_on_all(
    together: list[dict[str, Any]],
) -> None:
    first, second = (one["overflown"] for one in together)
    for one in (first, second):
        assert (one["attempts"], one["scale"], one["steps"]) == (2, 0.5, 1)
    for name, value in first["weights"].items():
        assert value.isfinite().all()
        assert value.equal(second["weights"][name]), name


def test_a_non_finite_gradient_on_one_rank_stops_all_and_that_rank_saves_a_bundle(
    folder: Path, together: list[dict[str, Any]]
) -> None:
    messages = {one["failed"] for one in together}
    assert len(messages) == 1
    message = messages.pop()
    assert message.startswith("the gradient of step 0 must be finite, got nan")
    assert "likely cause on rank 1: image 3 has 1 non-finite values of 192" in message
    assert "rank 0" not in message
    assert [path.name for path in (folder / "failed").iterdir()] == ["failure_step_0_rank_1.pth"]
    assert FailureBundle.load(folder / "failed" / "failure_step_0_rank_1.pth").image_ids == [3, 4]


def test_predictions_that_are_not_finite_on_one_rank_end_the_evaluation_of_all(
    together: list[dict[str, Any]],
) -> None:
    first, second = (one["not finite in evaluation"] for one in together)
    assert first == second
    measured, loss = first
    assert "1 of 6 queries with boxes that are not finite for photo 2; likely cause: " in measured
    assert "box_head.weight (16 of 384 values)" in measured
    assert "for image 2 in decoder layer 0; likely cause: " in loss


def test_two_processes_train_to_the_weights_of_one(
    folder: Path, together: list[dict[str, Any]]
) -> None:
    alone = train_tiny(RunFolder(folder / "alone"), max_steps=MAX_STEPS)
    for one in together:
        for name, expected in alone.items():
            difference = (one["whole"][name] - expected).norm() / expected.norm()
            assert difference < 1e-10, name


def test_two_resumed_processes_equal_two_uninterrupted_ones(
    together: list[dict[str, Any]],
) -> None:
    for one in together:
        for name, expected in one["whole"].items():
            assert one["resumed"][name].equal(expected), name


def test_only_the_main_process_writes_and_it_writes_once(
    folder: Path, together: list[dict[str, Any]]
) -> None:
    run = RunFolder(folder / "whole")
    assert sorted(path.name for path in run.path.iterdir()) == [
        "best.pth",
        "best_detections.npz",
        "curves.png",
        "last.pth",
        "metrics.jsonl",
        "previous.pth",
    ]
    records = read_records(run.metrics)
    kinds = [(record["kind"], record["step"]) for record in records]
    of_epochs = [("memory", 4), ("train", 6), ("memory", 6)]  # of four steps
    assert kinds == [("train", 2), ("train", 4), *of_epochs, ("evaluation", 6)]
    assert load_checkpoint(run.last).step == MAX_STEPS


def test_the_validation_loss_is_that_of_the_images_of_all_ranks(
    folder: Path, together: list[dict[str, Any]]
) -> None:
    in_two = read_records(RunFolder(folder / "whole").metrics)[-1]["validation/total"]
    checkpoint = load_checkpoint(RunFolder(folder / "whole").last)
    assert in_two == pytest.approx(validation_total(checkpoint), rel=1e-12)
