"""import_weights and export_weights: accepted inputs, and errors."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.models import DINO, small_detector
from helpers.transformers_oracle import randomize
from torch import Tensor

from deformable_detr import export_weights, import_weights
from deformable_detr.conversion.recognition import recognize
from deformable_detr.labels import LabelSpace
from deformable_detr.models.deformable_detr import DeformableDETR

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def model() -> DeformableDETR:
    """Shared model; no test modifies it."""
    detector = small_detector("refine", num_classes=80)
    randomize(detector)
    return detector


@pytest.fixture(scope="module")
def official(model: DeformableDETR) -> State:
    return export_weights(model, to="official")


def assert_same_weights(one: DeformableDETR, other: DeformableDETR) -> None:
    state = other.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        OrderedDict,
        lambda state: {"model": state, "epoch": 49, "optimizer": {"state": {}}},
        lambda state: {"state_dict": state, "meta": {}},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    ],
    ids=["state_dict", "ordered", "checkpoint", "mmdetection's", "data parallel"],
)
def test_weights_are_found_in_checkpoints(
    model: DeformableDETR, official: State, wrap: Callable[[State], object]
) -> None:
    other = small_detector("refine", num_classes=80, seed=1)

    import_weights(other, wrap(official))

    assert_same_weights(model, other)


@pytest.mark.parametrize("form", [str, Path])
def test_path_of_either_type_is_read(
    model: DeformableDETR, official: State, tmp_path: Path, form: Callable[[Path], str | Path]
) -> None:
    torch.save({"model": official}, tmp_path / "weights.pth")
    other = small_detector("refine", num_classes=80, seed=1)

    import_weights(other, form(tmp_path / "weights.pth"))

    assert_same_weights(model, other)


def test_tensors_that_are_not_weights_are_ignored_and_reported(
    model: DeformableDETR, official: State
) -> None:
    counters = ("backbone.0.body.bn1.num_batches_tracked", "total_params", "input_proj.total_ops")
    report = import_weights(model, {**official, **dict.fromkeys(counters, torch.zeros(1))})

    assert report.source == "official"
    assert report.ignored == counters
    assert report.num_loaded == len(official)
    assert report.class_rows == "80 of 91 rows, those with a category"


def test_trained_batch_norm_keeps_its_counters(official: State) -> None:
    other = small_detector("refine", "model.backbone.norm=batch_norm", num_classes=80)

    import_weights(other, official)

    assert int(other.state_dict()["backbone.body.bn1.num_batches_tracked"]) == 0
    expected = official["backbone.0.body.bn1.running_mean"]
    assert torch.equal(other.backbone.body.bn1.running_mean, expected)
    assert export_weights(other, to="official").keys() == official.keys()


def test_80_contiguous_rows_are_spread_over_rows_by_category_id(model: DeformableDETR) -> None:
    other = small_detector("refine", num_classes=91)

    report = import_weights(other, export_weights(model, to="detrex"))

    assert report.class_rows == "80 rows into 91, by category id"
    bias = other.decoder.class_heads[0].bias.detach()
    assert torch.equal(bias[90], model.decoder.class_heads[0].bias[79])
    assert float(bias[12]) == pytest.approx(-4.59511985)  # no category has id 12


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: tensor for key, tensor in state.items() if key != name}


def with_shape(name: str, *shape: int) -> Callable[[State], State]:
    return lambda state: {**state, name: torch.zeros(shape)}


LEVEL = "transformer.level_embed"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("input_proj.1.0.bias"), r"is missing 1 tensors, first: input_proj\.1\.0\.bias"),
        (without("class_embed.2.bias"), r"is missing 1 tensors, first: class_embed\.2\.bias"),
        (with_shape("spare", 3), r"has 1 unexpected tensors, first: spare"),
        (with_shape(LEVEL, 4, 8), rf"{LEVEL} is \(4, 8\) and must be \(4, 64\)"),
        (
            with_shape("bbox_embed.0.layers.0.bias", 64),
            r"has 1 tensors that conflict with others, first: bbox_embed\.0\.layers\.0\.bias",
        ),
    ],
)
def test_mismatch_is_an_error_and_keeps_the_model_unchanged(
    official: State, change: Callable[[State], State], message: str
) -> None:
    other = small_detector("refine", num_classes=80, seed=1)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}

    with pytest.raises(ValueError, match=message):
        import_weights(other, change(official))

    after = other.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_one_error_lists_all_mismatches(official: State) -> None:
    broken = with_shape("spare", 3)(
        without("input_proj.1.0.bias")(with_shape(LEVEL, 4, 8)(official))
    )

    with pytest.raises(
        ValueError, match=r"is missing 1 tensors.*1 unexpected tensors.*another shape"
    ):
        import_weights(small_detector("refine", num_classes=80), broken)


def test_weights_of_another_variant_are_rejected(official: State) -> None:
    with pytest.raises(ValueError, match=r"first: transformer\.decoder\.bbox_embed\.0"):
        import_weights(small_detector("multi_scale", num_classes=80), official)


def test_another_number_of_classes_is_rejected(official: State) -> None:
    with pytest.raises(ValueError, match=r"class_embed.0.weight is \(91, 64\) and must be \(7, 64"):
        import_weights(small_detector("refine", num_classes=7), official)


def test_error_names_tensors_of_an_unknown_source() -> None:
    with pytest.raises(ValueError, match=r"got 4 tensors \(a\.0, a\.1, a\.2, \.\.\.\) without"):
        recognize([f"a.{index}" for index in range(4)])


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"model": [1, 2]}, {"model": {"a": "b"}}])
def test_content_without_tensors_is_rejected(model: DeformableDETR, content: object) -> None:
    with pytest.raises(ValueError, match="weights must hold a detector's weights by name, got a"):
        import_weights(model, content)  # type: ignore[arg-type]


def test_unknown_source_or_target_is_rejected(model: DeformableDETR, official: State) -> None:
    with pytest.raises(ValueError, match=r"source must be auto or one of native, .*got 'detr'"):
        import_weights(model, official, source="detr")
    with pytest.raises(ValueError, match=r"source must be one of official, .*got 'detr'"):
        export_weights(model, to="detr")


def test_wrong_source_misses_all_tensors(model: DeformableDETR, official: State) -> None:
    with pytest.raises(ValueError, match=r"is missing .* first: backbone\.stem\.conv1\.weight"):
        import_weights(model, official, source="detrex")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.backbone={kind: mobilenet_v2, weights: none}"], "backbone must be a ResNet"),
        (["model.backbone={kind: timm, name: mobilenetv3_small_050}"], "backbone must be a ResNet"),
        (["model.queries.content=memory"], "must have content 'box' and base_size 0.05 elsewhere"),
        (["model.queries.center_offset=box"], "must have center_offset 'image' elsewhere"),
        (["model.queries.base_size=0.1"], "must have content 'box' and base_size 0.05 elsewhere"),
        (
            ["model.decoder.share_heads=true"],
            r"must have decoder\.share_heads false .*, except in D",
        ),
        (
            ["model.position.temperature=20"],
            r"must have position\.temperature 10000, the only one of official, got 20; convert it",
        ),
        (
            ["model.position.offset=0"],
            r"must have position\.offset -0\.5, the only one of official",
        ),
        (
            ["model.queries.ranking=class"],
            r"must have all settings of DINO or none .* got queries\.ranking class without decoder"
            r"\.position reference, decoder\.look_forward_twice true, queries\.content learned; ",
        ),
        (
            [*DINO, "model.decoder.look_forward_twice=false"],
            r"queries\.ranking class without decoder\.look_forward_twice true; convert it to nat",
        ),
        (
            [*DINO],
            r"must be a plain Deformable DETR for the layout of official, got DINO; its layouts are"
            r" native, dino, detrex-dino, mmdet-dino",
        ),
    ],
)
def test_model_without_an_equivalent_elsewhere_is_not_exported(
    overrides: list[str], message: str
) -> None:
    detector = small_detector("two_stage", *overrides)
    with pytest.raises(ValueError, match=message):
        export_weights(detector, to="official")


def test_learned_positions_are_exported_where_they_exist() -> None:
    detector = small_detector("learned_position", "model.position.max_cells=50")
    assert "backbone.1.row_embed.weight" in export_weights(detector, to="official")
    with pytest.raises(ValueError, match="must have parts that mmdet has too"):
        export_weights(detector, to="mmdet")
    with pytest.raises(ValueError, match="learned positions must have max_cells 50"):
        export_weights(small_detector("learned_position"), to="official")


def test_custom_categories_are_rows_by_id_in_the_official_layout() -> None:
    detector = small_detector("multi_scale", num_classes=2)
    space = LabelSpace((3, 7), ("cat", "dog"))

    exported = export_weights(detector, to="official", label_space=space)

    weight = exported["class_embed.0.weight"]
    assert weight.shape == (8, 64)
    assert torch.equal(weight[[3, 7]], detector.decoder.class_heads[0].weight)
    assert not weight[[0, 1, 2, 4, 5, 6]].any()


@pytest.mark.parametrize("ids", [(-1, 1), (0, 5_000_000_000)])
def test_too_large_category_ids_are_rejected(ids: tuple[int, int]) -> None:
    space = LabelSpace(ids, ("cat", "dog"))
    with pytest.raises(
        ValueError, match="category ids must be between 0 and 2047 for the official"
    ):
        export_weights(small_detector("multi_scale", num_classes=2), "official", label_space=space)


@pytest.mark.parametrize("target", ["dino", "detrex-dino", "mmdet-dino"])
def test_layouts_of_dino_hold_no_other_model(model: DeformableDETR, target: str) -> None:
    with pytest.raises(
        ValueError, match=rf"must be DINO for the layout of {target}, got a plain .* native, offic"
    ):
        export_weights(model, to=target)


def test_offset_of_positions_is_no_setting_of_the_official_dino() -> None:
    detector = small_detector("two_stage", *DINO, "model.position.offset=-0.5")
    with pytest.raises(
        ValueError, match=r"must have position\.offset 0, the only one of dino, got"
    ):
        export_weights(detector, to="dino")
    assert export_weights(detector, to="mmdet-dino").keys()


def test_label_embedding_is_imported_where_both_have_it() -> None:
    plain, given, other = (
        small_detector("two_stage", *overrides, num_classes=80, seed=seed)
        for overrides, seed in ((DINO[:-1], 0), (DINO, 1), (DINO, 2))
    )
    assert given.denoising is not None
    assert other.denoising is not None
    before = other.denoising.label_embed.weight.clone()

    import_weights(other, export_weights(plain, to="dino"))
    assert torch.equal(other.denoising.label_embed.weight, before)

    report = import_weights(other, export_weights(given, to="dino"))
    assert torch.equal(other.denoising.label_embed.weight, given.denoising.label_embed.weight)
    assert report.class_rows == "80 of 91 rows, those with a category"

    import_weights(plain, export_weights(given, to="dino"))
    assert_same_weights(plain, given)


def test_proposals_of_dino_are_rows_by_category_in_the_official_layout() -> None:
    detector = small_detector("two_stage", *DINO, num_classes=80)
    randomize(detector)
    exported = export_weights(detector, to="dino")
    head = exported["transformer.enc_out_class_embed.weight"]
    assert torch.equal(head[90], detector.state_dict()["queries.class_head.weight"][79])
    assert torch.equal(
        exported["label_enc.weight"][90], detector.state_dict()["denoising.label_embed.weight"][79]
    )
