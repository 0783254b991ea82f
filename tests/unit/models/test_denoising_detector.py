"""Denoising in a detector: ordinary predictions do not see it, and all batches train everything."""

import copy
import functools
from typing import Any

import pytest
import torch
from helpers.models import DINO_PARTS, randomize_weights, reduced_config, small_detector
from torch import Tensor

from deformable_detr.builders import build_criterion
from deformable_detr.models.deformable_detr import DeformableDETR
from deformable_detr.structures import ModelOutput, Predictions, Target

SMALLER = (
    "model.backbone.freeze_up_to_stride=32",  # it does not see the targets
    "model.encoder={num_layers: 1, dropout: 0}",
    "model.decoder={num_layers: 2, dropout: 0}",
)
DENOISING = "model.denoising={num_queries: 4}"
# Sources of a noisy query's position: the decoder, or the same layer as for proposals.
PARTS = {
    "all of DINO": (*DINO_PARTS, DENOISING),
    "alone": (DENOISING,),
    "content of the memory": (DENOISING, "model.queries.content=memory"),
}
# Labels of the objects of two images; there are 4 denoising queries and 10 ordinary ones.
LABELS: dict[str, tuple[list[int], list[int]]] = {
    "objects": ([1, 0, 3], [2]),
    "one empty": ([1, 0, 3], []),
    "all empty": ([], []),
    "more objects than denoising queries": ([1, 0, 3, 3, 2, 4], [2]),
    "more objects than queries": ([1, 2, 3] * 4, [2]),
}


@functools.cache
def detector(parts: str) -> DeformableDETR:
    """Build a detector in float64, for several tests: a copy is for changes."""
    return make_detector(parts).double()


def make_detector(parts: str, *overrides: str, num_classes: int = 5) -> DeformableDETR:
    overrides = (*SMALLER, *PARTS[parts], *overrides)
    model = small_detector("two_stage", *overrides, num_classes=num_classes)
    randomize_weights(model)
    return model


def images(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(3, 64, width, generator=generator).to(dtype) for width in (64, 48)]


def objects(labels: list[int], *, seed: int = 0) -> Target:
    generator = torch.Generator().manual_seed(seed)
    boxes = 0.2 + 0.4 * torch.rand(len(labels), 4, generator=generator)
    return Target(boxes, torch.tensor(labels, dtype=torch.int64))


def targets_of(name: str) -> list[Target]:
    return [objects(labels, seed=index) for index, labels in enumerate(LABELS[name])]


def ordinary(output: ModelOutput) -> list[Predictions]:
    assert output.encoder is not None
    return [output.last, *output.auxiliary, output.encoder]


@pytest.mark.parametrize("parts", PARTS)
def test_ordinary_predictions_do_not_see_the_noisy_queries(parts: str) -> None:
    model, given = detector(parts), images(torch.float64)
    expected = model.eval()(given, targets_of("objects"))
    assert expected.denoised is None
    model.train()
    permuted = [Target(one.boxes, one.labels.flip(0)) for one in targets_of("objects")]
    for targets in (targets_of("objects"), permuted):
        output = model(given, targets)
        assert output.denoised is not None
        assert output.denoised.layers[-1].logits.shape == (2, 2 * 3, 5)
        for found, wanted in zip(ordinary(output), ordinary(expected), strict=True):
            assert found.logits.shape == wanted.logits.shape
            torch.testing.assert_close(found.logits, wanted.logits, rtol=0, atol=1e-10)
            torch.testing.assert_close(found.boxes, wanted.boxes, rtol=0, atol=1e-10)
            if wanted.hidden is not None:
                torch.testing.assert_close(found.hidden, wanted.hidden, rtol=0, atol=1e-10)


@pytest.mark.parametrize("parts", PARTS)
def test_noisy_queries_see_their_own_group_and_the_ordinary_ones(parts: str) -> None:
    model = copy.deepcopy(detector(parts)).train()
    assert model.denoising is not None
    model.denoising.num_queries = 6
    places = torch.randn(2, 2, 2, 3, 4, dtype=torch.float64).clamp(-1, 1) * 0.1

    def denoised(shifts: Tensor) -> Predictions:
        model.denoising.noise = lambda labels: (labels, shifts)  # type: ignore[union-attr]
        output = model(images(torch.float64), targets_of("objects"))
        assert output.denoised is not None
        return output.denoised.layers[-1]

    before = denoised(places)
    moved = places.clone()
    moved[:, 1, :, 0] += 0.2  # the first object's queries of the second group
    after = denoised(moved)
    first, second = slice(6), slice(6, 12)
    torch.testing.assert_close(after.logits[:, first], before.logits[:, first], rtol=0, atol=1e-10)
    assert ((after.logits[:, second] - before.logits[:, second]).abs().amax(-1) > 1e-6).all()

    content = model.queries.memory_proj.bias  # moves the ordinary queries
    with torch.no_grad():
        content += torch.randn(content.shape)
    other = denoised(places)
    assert ((other.logits - before.logits).abs().amax(-1) > 1e-6).all()


def step(model: DeformableDETR, parts: str, given: list[Tensor], targets: list[Target]) -> Any:
    """Return the losses of a step; every trained parameter must have a gradient."""
    criterion = build_criterion(reduced_config("deformable_detr_r50_two_stage", *PARTS[parts]))
    losses = criterion(model.train()(given, targets), targets, 3.0).losses
    losses["total"].backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert all(value.isfinite() for value in losses.values())
    return losses


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("parts", ["all of DINO", "alone"])
def test_every_parameter_has_a_gradient_for_every_batch(parts: str, labels: str) -> None:
    model = detector(parts)
    model.zero_grad()
    losses = step(model, parts, images(torch.float64), targets_of(labels))
    assert model.denoising is not None
    gradient = model.denoising.label_embed.weight.grad
    assert bool(gradient.any()) == (labels != "all empty")
    for term in ("loss_class", "loss_l1", "loss_giou"):
        for prefix in ("denoising/", "denoising/decoder_0/"):
            assert (losses[prefix + term] > 0) == (labels != "all empty")


def test_fewer_tokens_than_queries() -> None:
    model = make_detector("all of DINO", "model.queries.num_queries=300")
    losses = step(model, "all of DINO", images(), targets_of("objects"))
    assert losses["denoising/loss_class"] > 0


def test_a_single_class() -> None:
    model = make_detector("all of DINO", num_classes=1)
    losses = step(model, "all of DINO", images(), [objects([0, 0]), objects([0], seed=1)])
    assert losses["denoising/loss_class"] > 0


def test_without_targets_training_is_as_without_denoising() -> None:
    model = detector("all of DINO").train()
    assert model(images(torch.float64)).denoised is None


def test_learned_queries_are_refused() -> None:
    model = small_detector("multi_scale", *SMALLER)
    parts = {name: getattr(model, name) for name in dict(model.named_children())}
    part = detector("alone").denoising
    with pytest.raises(ValueError, match="must be ProposalQueries for denoising, got Learned"):
        DeformableDETR(**parts, denoising=part)


def test_one_target_per_image() -> None:
    model = detector("all of DINO").train()
    with pytest.raises(ValueError, match="targets must be one for each of 2 images, got 1"):
        model(images(torch.float64), targets_of("objects")[:1])
