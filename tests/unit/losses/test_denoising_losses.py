"""Losses of contrastive denoising; the golden values are those of the official DINO."""

from dataclasses import replace

import pytest
import torch
from helpers.dino_weights import official_weight
from helpers.recipe import paper_criterion

from deformable_detr import build_criterion, load_config, official_losses
from deformable_detr.losses.class_loss import QualityLoss
from deformable_detr.losses.criterion import CriterionResult, LossWeights, denoising_match
from deformable_detr.structures import Denoised, ModelOutput, Predictions, Target

OBJECTS = (
    Target(torch.tensor([[0.5, 0.5, 0.4, 0.2], [0.3, 0.6, 0.2, 0.2]]), torch.tensor([2, 0])),
    Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
)
# Class, L1 and GIoU loss by the official suffix.
GOLDEN = {
    "": (1.904672, 0.308082, 0.900021),
    "_0": (1.434766, 0.319912, 0.960077),
    "_interm": (1.375830, 0.284329, 0.928617),
    "_dn": (1.569938, 0.380778, 0.959743),
    "_dn_0": (1.439117, 0.354993, 0.966142),
}
TOTAL = 25.393992
NUM_BOXES = 2.0


def golden_layer(tag: str, num_queries: int) -> Predictions:
    logits = official_weight(f"{tag}.logits", (2, num_queries, 3))
    boxes = official_weight(f"{tag}.boxes", (2, num_queries, 4))
    boxes = (0.25 + 0.1 * boxes).clamp(0.05, 0.6) + torch.tensor([0.2, 0.2, 0.0, 0.0])
    return Predictions(logits.requires_grad_(), boxes.requires_grad_())


def golden_output() -> ModelOutput:
    noisy = (golden_layer("dn_aux0", 8), golden_layer("dn_last", 8))
    return ModelOutput(
        golden_layer("last", 4),
        (golden_layer("aux0", 4),),
        golden_layer("interm", 4),
        Denoised(noisy, OBJECTS, num_groups=2),
    )


def losses_of(output: ModelOutput, **changes: object) -> CriterionResult:
    weights = LossWeights(class_=1.0, l1=5.0, giou=2.0)
    criterion = paper_criterion(weights=weights, one_class_proposals=False, **changes)
    return criterion(output, OBJECTS, NUM_BOXES)


def test_golden_losses_of_all_layers() -> None:
    output = golden_output()
    result = losses_of(output)
    values = official_losses(output, OBJECTS, result)
    for suffix, golden in GOLDEN.items():
        found = [values[f"loss_{term}{suffix}"].item() for term in ("ce", "bbox", "giou")]
        assert found == pytest.approx(golden, abs=1e-5), suffix
    # The official code adds 1e-6 to unions of boxes: 1e-5 in the weighted sum of five layers.
    assert result.losses["total"].item() == pytest.approx(TOTAL, rel=1e-5)
    metrics = {f"cardinality_error{suffix}" for suffix in GOLDEN} | {"class_error"}
    assert values.keys() == metrics | {
        f"loss_{term}{suffix}" for suffix in GOLDEN for term in ("ce", "bbox", "giou")
    }


def test_golden_class_loss_that_knows_the_iou() -> None:
    """The boxes' IoU, 0.030 and 0.562, reach the class loss of their queries."""
    quality = QualityLoss(score_power=0.25, iou_power=0.75, gamma=2.0, floor=0.01)
    losses = losses_of(golden_output(), class_loss=quality).losses
    assert losses["loss_class"].item() == pytest.approx(3.286431, abs=1e-5)


@pytest.mark.parametrize(("ranking", "suffix"), [("objectness", "_enc"), ("class", "_interm")])
def test_proposals_ranked_by_class_have_its_labels_and_the_official_name(
    ranking: str, suffix: str
) -> None:
    overrides = [f"model.queries.ranking={ranking}"]
    criterion = build_criterion(load_config("deformable_detr_r50_two_stage", overrides))
    output = replace(golden_output(), denoised=None)
    result = criterion(output, OBJECTS, NUM_BOXES)
    values = official_losses(output, OBJECTS, result)
    found = {name.removeprefix("loss_ce") for name in values if name.startswith("loss_ce")}
    assert found == {"", "_0", suffix}
    is_golden = result.losses["encoder/loss_class"].item() == pytest.approx(1.375830, abs=1e-5)
    assert is_golden == (ranking == "class")


def test_the_positive_query_of_each_group_has_the_object_that_it_copies() -> None:
    three = Target(torch.full((3, 4), 0.5), torch.tensor([0, 1, 2]))
    one = Target(three.boxes[:1], three.labels[:1])
    match, shorter, empty = denoising_match(Denoised((), (three, one, OBJECTS[1]), num_groups=2))
    # Slots of a group: three positive ones, then three negative ones.
    assert match.query_index.tolist() == [0, 1, 2, 6, 7, 8]
    assert match.target_index.tolist() == [0, 1, 2, 0, 1, 2]
    assert shorter.query_index.tolist() == [0, 6]
    assert shorter.target_index.tolist() == [0, 0]
    assert len(empty.query_index) == len(empty.target_index) == 0


def test_the_matcher_does_not_see_the_noisy_queries() -> None:
    output = golden_output()
    with_noisy, without = losses_of(output), losses_of(replace(output, denoised=None))
    assert list(without.matches) == ["", "decoder_0/", "encoder/"]
    assert list(with_noisy.matches) == [*without.matches, "denoising/", "denoising/decoder_0/"]
    for name, value in without.losses.items():
        assert name == "total" or with_noisy.losses[name].equal(value), name


def test_denoising_is_divided_by_objects_and_groups() -> None:
    output = golden_output()
    layers = [
        Predictions(one.logits.repeat(1, 3, 1), one.boxes.repeat(1, 3, 1))
        for one in output.denoised.layers
    ]
    repeated = replace(output, denoised=Denoised(tuple(layers), OBJECTS, num_groups=6))
    expected, found = losses_of(output).losses, losses_of(repeated).losses
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


def test_without_auxiliary_losses_earlier_layers_of_denoising_get_gradients_of_zeros() -> None:
    output = golden_output()
    result = losses_of(output, auxiliary=False)
    assert list(result.matches) == ["", "encoder/", "denoising/"]
    first, last = output.denoised.layers
    for layer, is_trained in ((first, False), (last, True)):
        gradients = torch.autograd.grad(
            result.losses["total"], (layer.logits, layer.boxes), retain_graph=True
        )
        assert [bool(one.any()) for one in gradients] == [is_trained] * 2
