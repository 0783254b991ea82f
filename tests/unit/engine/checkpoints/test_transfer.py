import copy
import functools
import math
from collections.abc import Mapping

import pytest
import torch
from helpers.models import DINO, VARIANTS, small_detector
from torch import Tensor, nn

from deformable_detr.engine.checkpoints.transfer import (
    TransferReport,
    holds_backbone,
    transfer_weights,
)
from deformable_detr.labels import LabelSpace
from deformable_detr.models.deformable_detr import DeformableDETR
from deformable_detr.structures import ModelOutput

PRIOR_BIAS = -4.59511985  # the logit of 0.01
ABC = LabelSpace((1, 2, 5), ("a", "b", "c"))
CA_NEW = LabelSpace((0, 7, 9), ("c", "a", "new"))
C_NEW = LabelSpace((0, 9), ("c", "new"))
ROWS = {0: 2, 1: 0}  # of CA_NEW in ABC
LABEL_EMBED = "denoising.label_embed.weight"
HALF_ULP = 2.4e-7  # of float32 there
SMALL = (
    "model.backbone.out_strides=[8]",
    "model.encoder.num_layers=1",
    "model.decoder.num_layers=2",
)
CLASS_HEADS = {  # of a decoder of two layers
    "multi_scale": ["decoder.class_heads.0"],
    "refine": ["decoder.class_heads.0", "decoder.class_heads.1"],
    "two_stage": ["decoder.class_heads.0", "decoder.class_heads.1"],
}


@functools.cache
@torch.no_grad()
def randomized(variant: str, *overrides: str, num_classes: int = 3) -> DeformableDETR:
    """Return a detector with random parameters and buffers; it is shared, so do not modify it."""
    model = small_detector(variant, *SMALL, *overrides, num_classes=num_classes, seed=1).eval()
    generator = torch.Generator().manual_seed(2)
    for name, value in model.state_dict().items():
        noise = torch.rand(value.shape, generator=generator)
        value.copy_(0.5 + noise if name.endswith("running_var") else value + 0.1 * (noise - 0.4))
    return model


def fresh(variant: str, *overrides: str, num_classes: int = 3) -> DeformableDETR:
    return copy.deepcopy(_built(variant, *overrides, num_classes=num_classes))


@functools.cache
def _built(variant: str, *overrides: str, num_classes: int) -> DeformableDETR:
    return small_detector(variant, *SMALL, *overrides, num_classes=num_classes, seed=9).eval()


def transfer(
    model: DeformableDETR,
    weights: Mapping[str, Tensor] | nn.Module,
    old: LabelSpace | None = ABC,
    new: LabelSpace = ABC,
    *,
    ranked_by_class: bool = False,
) -> TransferReport:
    return transfer_weights(
        model,
        weights.state_dict() if isinstance(weights, nn.Module) else weights,
        old_classes=old,
        new_classes=new,
        what="a.pth",
        ranked_by_class=ranked_by_class,
    )


@torch.no_grad()
def run(model: DeformableDETR) -> ModelOutput:
    generator = torch.Generator().manual_seed(4)
    return model([torch.randn(3, 96, 96, generator=generator)])


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("variant", ["multi_scale", "refine", "two_stage", "learned_position"])
def test_the_same_classes_give_bitwise_the_same_detector(variant: str) -> None:
    source, model = randomized(variant), fresh(variant)
    report = transfer(model, source)
    expected, got = run(source), run(model)
    layers = [(expected.last, got.last), *zip(expected.auxiliary, got.auxiliary, strict=True)]
    if expected.encoder is not None:
        layers.append((expected.encoder, got.encoder))
    for one, other in layers:
        assert one.logits.equal(other.logits)
        assert one.boxes.equal(other.boxes)
    assert list(report.kept) == list(source.state_dict())
    assert report.reinitialized == {}
    assert report.ignored == ()
    assert report.notes == ("3 kept: a, b, c",)


@pytest.mark.parametrize("variant", CLASS_HEADS)
def test_classes_with_the_same_name_keep_their_rows_in_every_decoder_layer(variant: str) -> None:
    source, model = randomized(variant), fresh(variant)
    before = snapshot(model)
    report = transfer(model, source, ABC, CA_NEW)
    old, new = source.state_dict(), model.state_dict()
    for head in CLASS_HEADS[variant]:
        for name in (f"{head}.weight", f"{head}.bias"):
            for row, old_row in ROWS.items():
                assert new[name][row].equal(old[name][old_row])
            assert report.reinitialized[name] == "1 of 3 rows"
            assert name in report.kept
        assert new[f"{head}.weight"][2].equal(before[f"{head}.weight"][2])
        assert new[f"{head}.bias"][2].item() == pytest.approx(PRIOR_BIAS, abs=HALF_ULP)
    assert len(report.reinitialized) == 2 * len(CLASS_HEADS[variant])
    heads = tuple(CLASS_HEADS[variant])
    for name, value in new.items():
        assert name.startswith(heads) or value.equal(old[name]), name


def test_the_logits_of_kept_classes_are_those_of_the_old_detector() -> None:
    source, model = randomized("two_stage"), fresh("two_stage")
    transfer(model, source, ABC, CA_NEW)
    expected, got = run(source).last, run(model).last
    assert got.boxes.equal(expected.boxes)
    torch.testing.assert_close(got.logits[..., :2], expected.logits[..., [2, 0]])
    # A class that the detector has not seen is about as likely as at the start of training.
    assert (got.logits[..., 2] - PRIOR_BIAS).abs().max() < 4


@pytest.mark.parametrize(
    "new",
    [
        CA_NEW,
        LabelSpace((1, 2, 3), ("b", "c", "a")),
        LabelSpace((4, 5), ("x", "y")),
        LabelSpace((4,), ("b",)),
        LabelSpace(tuple(range(7)), tuple("qrstuvw")),
    ],
    ids=lambda space: "".join(space.names),
)
@pytest.mark.parametrize("old", [ABC, None], ids=["named", "unnamed"])
def test_the_ranking_of_proposals_does_not_depend_on_the_classes(
    old: LabelSpace | None, new: LabelSpace
) -> None:
    source = randomized("two_stage")
    model = fresh("two_stage", num_classes=new.num_classes)
    transfer(model, source, old, new)
    expected, got = run(source).encoder, run(model).encoder
    assert expected is not None
    assert got is not None
    torch.testing.assert_close(got.logits[..., 0], expected.logits[..., 0])
    chosen, expected_chosen = (one.logits[0, :, 0].topk(10).indices for one in (got, expected))
    assert chosen.equal(expected_chosen)
    assert got.boxes.equal(expected.boxes)
    torch.testing.assert_close(run(model).last.boxes, run(source).last.boxes)


def test_rows_of_the_proposal_head_keep_their_order_and_new_ones_start_from_scratch() -> None:
    source = randomized("two_stage")
    model = fresh("two_stage", num_classes=5)
    before = snapshot(model)
    new = LabelSpace((1, 2, 3, 4, 5), ("c", "b", "a", "d", "e"))
    report = transfer(model, source, ABC, new)
    old_rows, rows = source.state_dict(), model.state_dict()
    for name in ("queries.class_head.weight", "queries.class_head.bias"):
        assert rows[name][:3].equal(old_rows[name])
        assert rows[name][3:].equal(before[name][3:])
        assert report.reinitialized[name] == "2 of 5 rows"


def test_a_detector_of_other_classes_starts_at_the_prior() -> None:
    source, model = randomized("refine"), fresh("refine", num_classes=2)
    before = snapshot(model)
    report = transfer(model, source, ABC, LabelSpace((1, 2), ("x", "y")))
    for head in CLASS_HEADS["refine"]:
        bias = model.state_dict()[f"{head}.bias"]
        assert bias.tolist() == pytest.approx([PRIOR_BIAS] * 2, abs=HALF_ULP)
        assert model.state_dict()[f"{head}.weight"].equal(before[f"{head}.weight"])
        assert report.reinitialized[f"{head}.weight"] == "2 of 2 rows"
        assert f"{head}.weight" in report.ignored
    assert math.isclose(PRIOR_BIAS, -math.log(99), rel_tol=1e-7)


@pytest.mark.parametrize(("num_classes", "kept"), [(3, True), (2, False), (4, False)])
def test_unknown_classes_keep_their_rows_only_if_their_number_is_equal(
    num_classes: int, kept: bool
) -> None:
    source = randomized("multi_scale")
    model = fresh("multi_scale", num_classes=num_classes)
    new = LabelSpace(tuple(range(num_classes)), tuple("wxyz"[:num_classes]))
    report = transfer(model, source, None, new)
    name = "decoder.class_heads.0.bias"
    assert model.state_dict()[name].equal(source.state_dict()[name]) == kept
    assert ("keep their order" in report.notes[0]) == kept
    assert (name in report.kept) == kept


@pytest.mark.parametrize(("num_old", "num_new"), [(10, 6), (6, 10), (10, 10)])
def test_the_first_learned_queries_are_kept(num_old: int, num_new: int) -> None:
    source = randomized("multi_scale", f"model.queries.num_queries={num_old}")
    model = fresh("multi_scale", f"model.queries.num_queries={num_new}")
    before = snapshot(model)
    report = transfer(model, source)
    kept = min(num_old, num_new)
    embed = model.state_dict()["queries.embed"]
    assert embed[:kept].equal(source.state_dict()["queries.embed"][:kept])
    assert embed[kept:].equal(before["queries.embed"][kept:])
    initial = {} if num_new <= num_old else {"queries.embed": "4 of 10 rows"}
    assert report.reinitialized == initial


def test_layers_of_another_shape_keep_their_initialization() -> None:
    source, model = randomized("multi_scale"), fresh("multi_scale", "model.neck.num_levels=5")
    before = snapshot(model)
    report = transfer(model, source)
    initial = {
        f"{stack}.{attention}.{part}.{kind}"
        for stack, attention in (
            ("encoder.layers.0", "self_attn"),
            ("decoder.layers.0", "cross_attn"),
            ("decoder.layers.1", "cross_attn"),
        )
        for part in ("sampling_offsets", "attention_weights")
        for kind in ("weight", "bias")
    }
    initial |= {"memory_builder.level_embed"}
    initial |= {
        f"neck.{part}.4.{kind}" for part in ("projections", "norms") for kind in ("weight", "bias")
    }
    assert set(report.reinitialized) == initial
    for name, value in model.state_dict().items():
        assert value.equal(before[name] if name in initial else source.state_dict()[name]), name
    assert report.reinitialized["memory_builder.level_embed"] == "(5, 64), in the file (4, 64)"
    assert report.reinitialized["neck.norms.4.bias"] == "not in the file"


def test_a_bias_is_not_kept_without_its_weight() -> None:
    source, model = randomized("multi_scale"), fresh("multi_scale")
    weights = dict(source.state_dict())
    weights["encoder.layers.0.linear1.weight"] = torch.zeros(64, 32)
    before = snapshot(model)
    report = transfer(model, weights)
    name = "encoder.layers.0.linear1.bias"
    assert report.reinitialized[name] == "part of a layer or backbone that does not match"
    assert model.state_dict()[name].equal(before[name])
    assert name in report.ignored


def test_layers_that_both_detectors_have_are_kept() -> None:
    source = randomized("refine", "model.decoder.num_layers=3")
    report = transfer(model := fresh("refine"), source)
    assert report.reinitialized == {}
    assert {name.rsplit(".", 2)[0] for name in report.ignored if "class_heads" in name} == {
        "decoder.class_heads"
    }
    assert all(".2." in name for name in report.ignored)
    for name, value in model.state_dict().items():
        assert value.equal(source.state_dict()[name]), name


def test_a_one_stage_detector_can_initialize_a_two_stage_one() -> None:
    source, model = randomized("refine"), fresh("two_stage")
    before = snapshot(model)
    report = transfer(model, source)
    initial = {name for name in model.state_dict() if name.startswith("queries.")}
    assert set(report.reinitialized) == initial
    assert set(report.reinitialized.values()) == {"not in the file"}
    assert all(model.state_dict()[name].equal(before[name]) for name in initial)
    assert {name for name in source.state_dict() if name.startswith("queries.")} == set(
        report.ignored
    )


def test_weights_of_lower_precision_are_converted_to_the_dtype_of_the_model() -> None:
    source, model = randomized("two_stage"), fresh("two_stage")
    halves = {
        name: value.half() if value.is_floating_point() else value
        for name, value in source.state_dict().items()
    }
    transfer(model, halves, ABC, CA_NEW)
    new = model.state_dict()
    assert new["decoder.class_heads.0.bias"][1].equal(
        halves["decoder.class_heads.0.bias"][0].float()
    )
    assert all(value.dtype != torch.float16 for value in new.values())


def test_the_weights_of_the_file_are_not_shared_with_the_model() -> None:
    source, model = randomized("two_stage"), fresh("two_stage")
    before = snapshot(source)
    transfer(model, source, ABC, CA_NEW)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    assert all(value.equal(before[name]) for name, value in source.state_dict().items())


def test_a_backbone_is_kept_as_a_whole_or_not_at_all() -> None:
    source = randomized("multi_scale", "model.backbone.depth=34")
    model = fresh("multi_scale")  # the deeper one has all its names, in the same shapes
    before = snapshot(model)
    assert not holds_backbone(model.state_dict(), source.state_dict())
    report = transfer(model, source)
    backbone = {name for name in model.state_dict() if name.startswith("backbone.")}
    assert set(report.reinitialized) == backbone
    assert set(report.reinitialized.values()) == {"part of a layer or backbone that does not match"}
    assert all(model.state_dict()[name].equal(before[name]) for name in backbone)


def test_blocks_after_the_last_one_of_the_model_are_ignored() -> None:
    source = randomized("multi_scale", "model.backbone.out_strides=[8, 16]")
    model = fresh("multi_scale", "model.backbone.out_strides=[8]")
    assert holds_backbone(model.state_dict(), source.state_dict())
    assert not holds_backbone(source.state_dict(), model.state_dict())
    report = transfer(model, source)
    assert not any(name.startswith("backbone.") for name in report.reinitialized)
    assert any(name.startswith("backbone.body.layer3.") for name in report.ignored)


def test_batch_norm_counters_are_ignored() -> None:
    frozen, counting = randomized("multi_scale"), "model.backbone.norm=batch_norm"
    model = fresh("multi_scale", counting)
    assert holds_backbone(model.state_dict(), frozen.state_dict())
    assert transfer(model, frozen).reinitialized == {}
    report = transfer(fresh("multi_scale"), randomized("multi_scale", counting))
    assert (report.reinitialized, report.ignored) == ({}, ())


def _unfit_weights() -> dict[str, Mapping[str, Tensor]]:
    weights = randomized("multi_scale").state_dict()
    return {
        "nothing": {},
        "a backbone": {k: v for k, v in weights.items() if k.startswith("backbone.")},
        "queries and heads": {
            k: v for k, v in weights.items() if k.startswith(("queries.", "decoder.class_heads."))
        },
        "another width": randomized("multi_scale", "model.embed_dim=128").state_dict(),
        "other names": {f"module.{name}": value for name, value in weights.items()},
    }


@pytest.mark.parametrize(
    "case", ["nothing", "a backbone", "queries and heads", "another width", "other names"]
)
def test_a_file_that_matches_too_little_raises_and_nothing_is_copied(case: str) -> None:
    weights = _unfit_weights()[case]
    model = fresh("multi_scale")
    before = snapshot(model)
    with pytest.raises(
        ValueError, match=r"a\.pth must match at least half of the model's \d+ tensors outside"
    ) as caught:
        transfer(model, weights)
    assert "model.backbone.weights=FILE" in str(caught.value)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_class_heads_with_a_wrong_number_of_rows_raise() -> None:
    with pytest.raises(ValueError, match=r"heads of a\.pth must have a row for each of its 2"):
        transfer(fresh("multi_scale"), randomized("multi_scale"), LabelSpace((1, 7), ("a", "b")))


def test_the_report_is_short_and_names_what_is_new() -> None:
    report = transfer(fresh("refine", num_classes=2), randomized("refine"), ABC, C_NEW)
    lines = report.describe()
    headings = [heading for heading, _ in lines]
    assert headings == ["kept", "reinitialized", "ignored", *["classes"] * 3]
    text = dict(lines)
    total = len(fresh("refine").state_dict())
    assert text["kept"] == f"{total} of the model's {total} tensors"
    assert text["reinitialized"] == ("4: decoder.class_heads.* x 4 (1 of 2 rows)")
    assert text["ignored"] == "0 of the file's"
    assert [line for heading, line in lines if heading == "classes"] == [
        "1 kept: c",
        "1 from scratch: new",
        "2 dropped: a, b",
    ]


def test_a_long_report_is_truncated() -> None:
    names = [f"layers.3.part{number}.{kind}" for number in range(20) for kind in ("weight", "bias")]
    backbone = [f"backbone.body.{number}.weight" for number in range(40)]
    report = TransferReport((), {}, ignored=(*backbone, *names), notes=())
    line = dict(report.describe())["ignored"]
    assert line.startswith(
        "80 of the file's: backbone x 40, layers.*.part0 x 2, layers.*.part1 x 2, "
    )
    assert line.endswith(", layers.*.part6 x 2, and 26 more")


def test_every_variant_is_covered_by_the_rules() -> None:
    """Detect a kind of class head or learned queries that the rules do not cover."""
    for variant in VARIANTS:
        if variant == "single_scale_dc5":
            continue  # a ResNet-50, which is slow, with the same heads as the others
        report = transfer(fresh(variant, num_classes=2), randomized(variant), ABC, C_NEW)
        names = {name.rpartition(".")[0] for name in report.reinitialized}
        assert all(name.startswith("decoder.class_heads.") for name in names), variant
        assert names


def test_proposals_ranked_by_class_and_label_embedding_keep_rows_by_class_name() -> None:
    source, model = randomized("two_stage", *DINO), fresh("two_stage", *DINO)
    before = snapshot(model)
    report = transfer(model, source, ABC, CA_NEW, ranked_by_class=True)
    old, new = source.state_dict(), model.state_dict()
    for name in ("queries.class_head.weight", "queries.class_head.bias", LABEL_EMBED):
        for row, old_row in ROWS.items():
            assert new[name][row].equal(old[name][old_row])
        assert new[name][2].equal(before[name][2])
        assert report.reinitialized[name] == "1 of 3 rows"
    assert new["queries.content"].equal(old["queries.content"])


@pytest.mark.parametrize("ranked_by_class", [False, True])
def test_proposals_that_the_file_ranks_otherwise_keep_their_initialization(
    ranked_by_class: bool,
) -> None:
    dino = ("model.queries.ranking=class",)
    source = randomized("two_stage", *(dino if ranked_by_class else ()))
    model = fresh("two_stage", *(() if ranked_by_class else dino))
    before = snapshot(model)
    report = transfer(model, source, ranked_by_class=ranked_by_class)
    for name in ("queries.class_head.weight", "queries.class_head.bias"):
        assert model.state_dict()[name].equal(before[name])
        assert report.reinitialized[name] == "3 of 3 rows"


def test_learned_content_keeps_its_first_rows() -> None:
    more = (*DINO, "model.queries.num_queries=12")
    source, model = randomized("two_stage", *DINO), fresh("two_stage", *more)
    transfer(model, source, ranked_by_class=True)
    content = model.state_dict()["queries.content"]
    assert content[:10].equal(source.state_dict()["queries.content"])


def test_heads_that_all_layers_share_become_those_of_each_layer() -> None:
    source = randomized("two_stage", *DINO, "model.decoder.share_heads=true")
    model = fresh("two_stage", *DINO)
    report = transfer(model, source, ABC, CA_NEW, ranked_by_class=True)
    old, new = source.state_dict(), model.state_dict()
    for layer in range(2):
        head = f"decoder.class_heads.{layer}.weight"
        assert new[head][0].equal(old["decoder.class_heads.0.weight"][2])
        box = "decoder.box_heads.{}.mlp.layers.2.weight"
        assert new[box.format(layer)].equal(old[box.format(0)])
        assert box.format(layer) in report.kept
