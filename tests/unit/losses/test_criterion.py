import math
from dataclasses import replace

import pytest
import torch
from helpers.models import make_target
from helpers.recipe import paper_criterion, paper_matcher
from torchvision.ops import generalized_box_iou, sigmoid_focal_loss

from deformable_detr import distributed
from deformable_detr.boxes import cxcywh_to_xyxy
from deformable_detr.losses.class_loss import FocalLoss
from deformable_detr.structures import ModelOutput, Predictions, Target


def golden_predictions() -> Predictions:
    logits = torch.tensor([[[0.0, 1.0, -2.0], [2.0, -1.0, 0.5], [-1.0, -1.0, 3.0]]])
    boxes = [[0.5, 0.5, 0.4, 0.4], [0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.5, 0.3]]
    return Predictions(logits, torch.tensor([boxes]))


def golden_target() -> Target:
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.7, 0.6, 0.4, 0.4]])
    return Target(boxes, torch.tensor([1, 2]), 0, (100, 100))


def empty_target() -> Target:
    return make_target()


def one_layer(predictions: Predictions) -> ModelOutput:
    return ModelOutput(predictions, (), None)


def random_predictions(N=2, Q=9, K=4, *, seed=0) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(N, Q, K, generator=generator, dtype=torch.float64)
    boxes = torch.rand(N, Q, 4, generator=generator, dtype=torch.float64) * 0.5 + 0.2
    return Predictions(logits.requires_grad_(), boxes.requires_grad_())


def test_golden_matching_cost_and_match():
    predictions, target = golden_predictions(), golden_target()
    matcher = paper_matcher()
    cost = matcher.cost(predictions.logits[0], predictions.boxes[0], target)
    golden = [[-1.3214734, 2.1274621], [5.3801274, 6.0152884], [2.4648733, -4.3125238]]
    torch.testing.assert_close(cost, torch.tensor(golden), rtol=0, atol=1e-5)
    (((match,),)) = matcher([(predictions, [target])])
    assert match.query_index.tolist() == [0, 2]
    assert match.target_index.tolist() == [0, 1]


def test_golden_losses():
    result = paper_criterion()(one_layer(golden_predictions()), [golden_target()], 2.0)
    golden = {"loss_class": 0.8543038, "loss_l1": 0.2, "loss_giou": 0.3892106}
    for name, expected in golden.items():
        assert result.losses[name].item() == pytest.approx(expected, abs=1e-5), name
    total = 2 * 0.8543038 + 5 * 0.2 + 2 * 0.3892106
    assert result.losses["total"].item() == pytest.approx(total, abs=1e-5)


def test_golden_losses_without_objects():
    result = paper_criterion()(one_layer(golden_predictions()), [empty_target()], 1.0)
    assert result.losses["loss_class"].item() == pytest.approx(4.3040271, abs=1e-5)
    assert result.losses["loss_l1"] == 0
    assert result.losses["loss_giou"] == 0


def test_golden_focal_loss():
    box = torch.full((1, 1, 4), 0.5)
    predictions = Predictions(torch.tensor([[[0.3, -0.7]]]), box)
    target = Target(box[0], torch.tensor([0]), 0, (100, 100))
    result = paper_criterion()(one_layer(predictions), [target], 2.0)
    assert result.losses["loss_class"].item() == pytest.approx(0.0291956, abs=1e-6)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 2.0), (0.25, 0.5), (0.6, 0.0)])
def test_losses_equal_a_plain_computation(alpha, gamma):
    predictions = random_predictions()
    targets = [make_target(3, 1, seed=1), make_target(0, seed=2)]
    criterion = paper_criterion(class_loss=FocalLoss(alpha=alpha, gamma=gamma))
    result = criterion(one_layer(predictions), targets, 3.0)

    one_hot = torch.zeros_like(predictions.logits)
    l1 = giou = 0.0
    for image, (match, target) in enumerate(zip(result.last_match, targets, strict=True)):
        for query, index in zip(match.query_index, match.target_index, strict=True):
            one_hot[image, query, target.labels[index]] = 1
            box, wanted = predictions.boxes[image, query], target.boxes[index].double()
            l1 += (box - wanted).abs().sum()
            pair = generalized_box_iou(cxcywh_to_xyxy(box[None]), cxcywh_to_xyxy(wanted[None]))
            giou += 1 - pair.squeeze()
    probability = predictions.logits.sigmoid()
    right = torch.where(one_hot == 1, probability, 1 - probability)
    share = torch.where(one_hot == 1, alpha, 1 - alpha)
    focal = (share * (1 - right) ** gamma * -right.log()).sum()
    for name, expected in (("loss_class", focal), ("loss_l1", l1), ("loss_giou", giou)):
        torch.testing.assert_close(result.losses[name], expected / 3)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.6, 2.0), (0.25, 0.5)])
def test_the_focal_cost_is_the_difference_of_two_losses(alpha, gamma):
    focal = {"focal_alpha": alpha, "focal_gamma": gamma}
    matcher = paper_matcher(**focal, l1_cost=0.0, giou_cost=0.0, class_cost=1.0)
    predictions = golden_predictions()
    cost = matcher.cost(predictions.logits[0], predictions.boxes[0], golden_target())
    logits = predictions.logits[0, :, 1]

    def loss(wanted):
        return sigmoid_focal_loss(logits, torch.full_like(logits, wanted), alpha=alpha, gamma=gamma)

    torch.testing.assert_close(cost[:, 0], loss(1.0) - loss(0.0), rtol=0, atol=1e-5)


def test_every_layer_is_matched_on_its_own():
    last, first = random_predictions(seed=1), random_predictions(seed=2)
    targets = [make_target(0, 1), make_target(2)]
    together = paper_criterion()(ModelOutput(last, (first,), None), targets, 3.0).losses
    alone = paper_criterion()(one_layer(first), targets, 3.0).losses
    for name in ("loss_class", "loss_l1", "loss_giou"):
        torch.testing.assert_close(together[f"decoder_0/{name}"], alone[name])
    only_last = paper_criterion()(one_layer(last), targets, 3.0).losses
    torch.testing.assert_close(together["total"], only_last["total"] + alone["total"])


def test_proposals_are_supervised_as_class_0():
    last, proposals = random_predictions(seed=1), random_predictions(Q=20, seed=2)
    targets = [make_target(3, 1), make_target(2)]
    together = paper_criterion()(ModelOutput(last, (), proposals), targets, 3.0).losses
    as_class_0 = [replace(t, labels=torch.zeros_like(t.labels)) for t in targets]
    alone = paper_criterion()(one_layer(proposals), as_class_0, 3.0).losses
    for name in ("loss_class", "loss_l1", "loss_giou"):
        torch.testing.assert_close(together[f"encoder/{name}"], alone[name])


def test_class_weights_are_not_those_of_one_class_proposals():
    plain, weighted = paper_criterion(), paper_criterion(class_weights=(0.0, 3.0, 0.0, 0.0))
    output = ModelOutput(
        random_predictions(), (random_predictions(seed=1),), random_predictions(seed=2)
    )
    targets = [make_target(3, 1), empty_target()]
    before, after = plain(output, targets, 1.0).losses, weighted(output, targets, 1.0).losses
    for layer in ("", "decoder_0/"):
        assert after[f"{layer}loss_class"] != before[f"{layer}loss_class"]
    assert after["encoder/loss_class"] == before["encoder/loss_class"]
    weighted.one_class_proposals = plain.one_class_proposals = False  # as in DINO
    after = weighted(output, targets, 1.0).losses["encoder/loss_class"]
    assert after != plain(output, targets, 1.0).losses["encoder/loss_class"]


def test_proposal_losses_are_kept_without_auxiliary_losses():
    output = ModelOutput(
        random_predictions(seed=1),
        (random_predictions(seed=2),),
        random_predictions(Q=20, seed=3),
    )
    targets = [make_target(0, 1), make_target(2)]
    losses = paper_criterion(auxiliary=False)(output, targets, 3.0).losses
    assert not any(name.startswith("decoder_") for name in losses)
    expected = sum(
        weight * losses[prefix + name]
        for prefix in ("", "encoder/")
        for name, weight in (("loss_class", 2), ("loss_l1", 5), ("loss_giou", 2))
    )
    torch.testing.assert_close(losses["total"], expected)


def test_earlier_layers_get_a_zero_gradient_without_auxiliary_losses():
    first = random_predictions(seed=2)
    output = ModelOutput(random_predictions(seed=1), (first,), None)
    paper_criterion(auxiliary=False)(output, [make_target(0), make_target(1)], 2.0).losses[
        "total"
    ].backward()
    assert (first.logits.grad == 0).all()
    assert (first.boxes.grad == 0).all()


def test_micro_batches_add_up_to_the_batch():
    whole = random_predictions()
    targets = [make_target(3, 1, 1), make_target(2)]
    together = paper_criterion()(one_layer(whole), targets, 4.0).losses
    parts = [
        paper_criterion()(
            one_layer(Predictions(whole.logits[i : i + 1], whole.boxes[i : i + 1])),
            targets[i : i + 1],
            4.0,
        ).losses
        for i in range(2)
    ]
    for name, value in together.items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], value)


def test_more_objects_than_queries_leave_some_unmatched():
    predictions = random_predictions(N=1, Q=2)
    result = paper_criterion()(one_layer(predictions), [make_target(0, 1, 2, 3)], 4.0)
    assert len(result.last_match[0].query_index) == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_predictions_raise_with_image_and_layer(bad):
    good, broken = random_predictions(seed=1), random_predictions(seed=2)
    with torch.no_grad():
        broken.boxes[1, 3, 0] = bad
    output = ModelOutput(good, (broken,), None)
    targets = [make_target(0), make_target(1)]
    with pytest.raises(ValueError, match="for image 1 of the batch in layer 1 of 2"):
        paper_criterion()(output, targets, 2.0)


def test_a_matcher_without_costs_raises():
    with pytest.raises(ValueError, match="class_cost, l1_cost or giou_cost must be above 0"):
        paper_matcher(class_cost=0, l1_cost=0, giou_cost=0)


def test_num_boxes_defaults_to_the_count_of_the_targets():
    predictions = one_layer(random_predictions())
    targets = [make_target(3, 1, 1), make_target(2)]
    counted = paper_criterion()(predictions, targets).losses
    for name, value in paper_criterion()(predictions, targets, 4.0).losses.items():
        assert torch.equal(counted[name], value)


def test_num_boxes_without_objects_is_one():
    counted = paper_criterion()(one_layer(golden_predictions()), [empty_target()]).losses
    assert counted["loss_class"].item() == pytest.approx(4.3040271, abs=1e-5)


def test_unweighted_proposal_losses_are_computed_but_not_in_the_total():
    proposals = random_predictions(Q=20, seed=3)
    output = ModelOutput(random_predictions(seed=1), (), proposals)
    targets = [make_target(0, 1), make_target(2)]
    losses = paper_criterion(weigh_proposals=False)(output, targets).losses
    weighted = paper_criterion()(output, targets).losses
    assert losses["encoder/loss_class"] == weighted["encoder/loss_class"] > 0
    alone = paper_criterion()(one_layer(output.last), targets).losses
    torch.testing.assert_close(losses["total"], alone["total"])
    losses["total"].backward()
    assert (proposals.logits.grad == 0).all()


def test_matches_are_returned_for_every_layer():
    output = ModelOutput(
        random_predictions(seed=1), (random_predictions(seed=2),), random_predictions(Q=20, seed=3)
    )
    result = paper_criterion()(output, [make_target(0, 1), make_target(2)])
    assert list(result.matches) == ["", "decoder_0/", "encoder/"]
    assert result.last_match is result.matches[""]


@pytest.mark.parametrize(("objects", "own", "official"), [(0, 0.25, 1), (2, 0.5, 1), (8, 2, 2)])
def test_the_divisor_of_a_step_of_four_processes(
    monkeypatch: pytest.MonkeyPatch, objects: int, own: float, official: float
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    assert paper_criterion().divisor(objects) == own
    assert paper_criterion(official_divisor=True).divisor(objects) == official
