"""`match_official: true` against the official criterion's formulas in float64, on whole detectors.

Two encoder and two decoder layers, 20 queries, two images of different sizes, every weight
randomized. The oracle (`helpers/official_losses.py`) shares no code with the package.
"""

from dataclasses import dataclass

import pytest
import torch
from helpers.models import VARIANTS, make_target, randomize_weights
from helpers.official_losses import OfficialResult, Outputs, official_criterion

from deformable_detr import build_criterion, build_model, load_config, official_losses
from deformable_detr.losses.criterion import CriterionResult
from deformable_detr.models.deformable_detr import DeformableDETR
from deformable_detr.structures import ModelOutput, Predictions, Target

OFFICIAL_VARIANTS = ("single_scale", "single_scale_dc5", "multi_scale", "refine", "two_stage")
REDUCED = (
    "match_official=true",
    "model.backbone.weights=none",
    "model.encoder.num_layers=2",
    "model.decoder.num_layers=2",
    "model.encoder.dropout=0",
    "model.decoder.dropout=0",
    "model.queries.num_queries=20",
)
TARGETS = {
    "objects": lambda: [make_target(17, 1, 90), make_target(1, seed=1)],
    "one empty image": lambda: [make_target(17, 1, 90), make_target()],
    "all empty": lambda: [make_target(), make_target()],
}
LOSSES = {
    "as published": (),
    "without auxiliary": ("loss.auxiliary=false",),
    "other alpha": ("loss.focal_alpha=0.6",),
    "other alpha without auxiliary": ("loss.focal_alpha=0.6", "loss.auxiliary=false"),
}
SUFFIXES = {"": "", "decoder_0/": "_0", "encoder/": "_enc"}


@dataclass
class Case:
    """A detector with random weights in float64, and the formulas' values for its output.

    `norms` are the norms of its parameters' gradients for `NORM_TARGETS` with `NORM_LOSSES`.
    """

    variant: str
    model: DeformableDETR
    output: ModelOutput
    expected: OfficialResult
    norms: dict[str, torch.Tensor]

    @property
    def rounding(self) -> float:
        """Bound of the rounding errors in gradients that are exactly zero."""
        return 1e-9 * torch.stack(list(self.norms.values())).norm().item()


NORM_TARGETS, NORM_LOSSES = "one empty image", "other alpha"


@pytest.fixture(scope="module", params=OFFICIAL_VARIANTS)
def case(request) -> Case:
    model = random_model(request.param).double()
    output = model(images(torch.float64))
    expected = oracle_of(output, TARGETS[NORM_TARGETS](), LOSSES[NORM_LOSSES])
    expected.total.backward(retain_graph=True)
    return Case(request.param, model, output, expected, gradient_norms(model))


def random_model(variant: str) -> DeformableDETR:
    # A smaller backbone where the variant allows it: the losses do not depend on it.
    depth = 50 if variant == "single_scale_dc5" else 18
    model = build_model(load_config(VARIANTS[variant], [*REDUCED, f"model.backbone.depth={depth}"]))
    randomize_weights(model)
    return model.train()


def images(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    sizes = ((96, 128), (120, 100))
    return [torch.randn(3, *size, generator=generator).to(dtype) for size in sizes]


def gradient_norms(model: DeformableDETR) -> dict[str, torch.Tensor]:
    """Return the gradient norm of every trainable parameter; each must have a gradient.

    The biases of queries, keys and values, which are one parameter, are separate.
    """
    norms = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            gradient = parameter.grad.double()
            parts = gradient.chunk(3) if name.endswith("in_proj_bias") else (gradient,)
            norms |= {f"{name}[{index}]": part.norm() for index, part in enumerate(parts)}
    return norms


def criterion_of(variant: str, changes: tuple[str, ...]):
    return build_criterion(load_config(VARIANTS[variant], [*REDUCED, *changes]))


def by_suffix(output: ModelOutput) -> dict[str, Predictions]:
    layers = {"": output.last}
    layers |= {f"_{index}": layer for index, layer in enumerate(output.auxiliary)}
    return layers if output.encoder is None else layers | {"_enc": output.encoder}


def as_leaves(output: ModelOutput) -> ModelOutput:
    def leaf(layer: Predictions) -> Predictions:
        return Predictions(
            *(t.detach().clone().requires_grad_() for t in (layer.logits, layer.boxes))
        )

    encoder = None if output.encoder is None else leaf(output.encoder)
    return ModelOutput(leaf(output.last), tuple(map(leaf, output.auxiliary)), encoder)


def oracle_of(
    output: ModelOutput, targets: list[Target], changes: tuple[str, ...]
) -> OfficialResult:
    outputs: Outputs = {s: (layer.logits, layer.boxes) for s, layer in by_suffix(output).items()}
    plain = [(target.labels.tolist(), target.boxes.tolist()) for target in targets]
    return official_criterion(
        outputs,
        plain,
        focal_alpha=0.6 if "loss.focal_alpha=0.6" in changes else 0.25,
        auxiliary="loss.auxiliary=false" not in changes,
    )


def pairs_of(result: CriterionResult) -> dict[str, list[list[tuple[int, int]]]]:
    return {
        SUFFIXES[prefix]: [
            list(zip(match.query_index.tolist(), match.target_index.tolist(), strict=True))
            for match in matches
        ]
        for prefix, matches in result.matches.items()
    }


@pytest.mark.parametrize("losses", LOSSES)
@pytest.mark.parametrize("targets", TARGETS)
def test_matches_losses_and_gradients_of_the_predictions_equal_the_formulas(case, targets, losses):
    wanted, changes = TARGETS[targets](), LOSSES[losses]
    output, again = as_leaves(case.output), as_leaves(case.output)
    result = criterion_of(case.variant, changes)(output, wanted)
    expected = oracle_of(again, wanted, changes)

    assert pairs_of(result) == expected.matches
    ours = official_losses(output, wanted, result)
    assert ours.keys() == expected.values.keys()
    for name, value in expected.values.items():
        torch.testing.assert_close(ours[name].double(), value.double(), msg=name)
    torch.testing.assert_close(result.losses["total"], expected.total)

    result.losses["total"].backward()
    expected.total.backward()
    for layer, other in zip(by_suffix(output).values(), by_suffix(again).values(), strict=True):
        for tensor, twin in ((layer.logits, other.logits), (layer.boxes, other.boxes)):
            gradient = torch.zeros_like(twin) if twin.grad is None else twin.grad
            torch.testing.assert_close(tensor.grad, gradient)


def test_the_gradient_norm_of_every_parameter_equals_that_of_the_formulas(case):
    case.model.zero_grad()
    criterion = criterion_of(case.variant, LOSSES[NORM_LOSSES])
    losses = criterion(case.output, TARGETS[NORM_TARGETS]()).losses
    losses["total"].backward(retain_graph=True)
    ours = gradient_norms(case.model)
    for name, value in case.norms.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=case.rounding, msg=name)
    keys = [name for name in ours if name.endswith("self_attn.in_proj_bias[1]")]
    assert len(keys) == 2
    assert all(ours[name] < case.rounding for name in keys)


def test_float32_stays_close_to_the_formulas_in_float64(case):
    model, targets = random_model(case.variant), TARGETS[NORM_TARGETS]()
    output = model(images(torch.float32))
    for layer, other in zip(
        by_suffix(output).values(), by_suffix(case.output).values(), strict=True
    ):
        torch.testing.assert_close(layer.logits.double(), other.logits, rtol=0, atol=1e-4)
        torch.testing.assert_close(layer.boxes.double(), other.boxes, rtol=0, atol=1e-5)

    result = criterion_of(case.variant, LOSSES[NORM_LOSSES])(output, targets)
    ours = official_losses(output, targets, result)
    for name, value in case.expected.values.items():
        torch.testing.assert_close(ours[name].double(), value.double(), rtol=1e-4, atol=0, msg=name)

    result.losses["total"].backward()
    norms = gradient_norms(model)
    for name, value in case.norms.items():
        # In float32, gradients that are exactly zero have larger rounding errors.
        atol = 0 if value > case.rounding else 1e3 * case.rounding
        torch.testing.assert_close(norms[name], value, rtol=1e-3, atol=atol, msg=name)


@pytest.mark.parametrize(("variant", "count"), [("multi_scale", 25), ("two_stage", 29)])
def test_six_layers_give_the_official_number_of_values(variant, count):
    changes = [*REDUCED, "model.decoder.num_layers=6", "model.encoder.num_layers=0"]
    config = load_config(VARIANTS[variant], changes)
    model, targets = build_model(config), TARGETS["objects"]()
    with torch.no_grad():
        output = model(images(torch.float32))
        result = build_criterion(config)(output, targets)
    values = official_losses(output, targets, result)
    assert len(values) == count
    suffixes = ["", *(f"_{index}" for index in range(5)), *(["_enc"] if count == 29 else [])]
    terms = ("loss_ce", "loss_bbox", "loss_giou", "cardinality_error")
    names = {term + suffix for suffix in suffixes for term in terms}
    assert values.keys() == names | {"class_error"}
    weights = {"loss_ce": 2, "loss_bbox": 5, "loss_giou": 2}
    total = sum(weights[t] * values[t + s] for t in weights for s in suffixes)
    torch.testing.assert_close(result.losses["total"], total)
