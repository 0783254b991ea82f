"""Rows of the settings of the detector, for `test_config_to_objects`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers.built import backbone, detector, replaced, same
from helpers.config_fields import choose_kinds, dotted
from helpers.loss_rows import loss_rows
from helpers.setting_rows import Row
from torch import nn

from deformable_detr.builders import build_backbone
from deformable_detr.builders.model import build_replacement
from deformable_detr.config import RunConfig

TO_32 = "model.backbone.out_strides=[8, 16, 32]"


def is_frozen(config: RunConfig) -> bool:
    norms = [one for one in backbone(config).modules() if "Norm" in type(one).__name__]
    assert norms
    return same(*("Frozen" in type(norm).__name__ for norm in norms))


def largest_frozen_stride(config: RunConfig) -> int:
    blocks = [block for block in backbone(config).blocks() if list(block[1].parameters())]
    frozen = [
        stride for stride, block in blocks if not any(p.requires_grad for p in block.parameters())
    ]
    return max(frozen, default=0)


def channels_of_first_convolution(config: RunConfig) -> int:
    modules = backbone(config).modules()
    return next(one.in_channels for one in modules if isinstance(one, nn.Conv2d))


def refused_weights(config: RunConfig) -> bool:
    """Return whether the absent file of the weights is looked for."""
    if config.model.backbone.weights == "none":
        return False
    with pytest.raises((OSError, ValueError), match=r"absent\.pth"):
        build_backbone(config.model.backbone)
    return True


def block_of_zero_gammas(config: RunConfig) -> bool:
    """Return whether a multi-branch block has branches that start at zero."""
    conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
    block = build_replacement(config.model.backbone.conv, norm="train").make(
        conv, nn.BatchNorm2d(8)
    )
    gammas = [one.weight for one in block.modules() if isinstance(one, nn.BatchNorm2d)]
    return any(bool((gamma == 0).all()) for gamma in gammas)


def replaced_strides(config: RunConfig) -> tuple[int, ...]:
    inside = set(replaced(config))
    strides = {s for s, block in backbone(config).blocks() if inside & set(block.modules())}
    return tuple(sorted(strides))


def neck(config: RunConfig) -> Any:
    return detector(config).neck


def neck_kernel(config: RunConfig) -> Any:
    return same(*map(type, neck(config).residuals)) and neck(config).residuals[0].depthwise


def backbone_kernel(config: RunConfig) -> Any:
    return replaced(config)[0]


def kernel_rows(
    section: str, find: Callable[[RunConfig], Any], given: tuple[str, ...]
) -> dict[str, Row]:
    """Return the rows of deformable kernels, in the backbone or in the neck."""
    images = f"{dotted(section)}={{kind: deform_kernel, image_offsets: true}}"
    return {
        f"{section}.rotation_groups": Row(2, lambda c: find(c).rotation_groups, given=given),
        f"{section}.image_offsets": Row(
            True, lambda c: find(c).offset_conv is not None, given=given
        ),
        f"{section}.kernel_offsets": Row(
            False, lambda c: find(c).rotation_conv is not None, given=(*given, images)
        ),
        f"{section}.mode": Row("global", lambda c: find(c).mode, given=given),
        f"{section}.clip_to_scope": Row(False, lambda c: find(c).clip_to_scope, given=given),
        f"{section}.scope_size": Row(7, lambda c: find(c).scope_size, (7, 7), given=given),
    }


def multiple_of(name: str, settings: Any) -> int:
    """Return the multiple that a timm model of the settings pads images to."""
    with torch.device("meta"):
        other = settings.model_copy(update={"name": name})
        return build_backbone(other, load_weights=False).multiple


def backbone_rows() -> dict[str, Row]:
    rows = {}
    channels = {"resnet": (256, 512, 1024, 2048), "mobilenet_v2": (24, 32, 96, 1280)}
    channels["timm"] = (64, 128, 256, 512)
    for kind, other in (("resnet", "timm"), ("mobilenet_v2", "resnet"), ("timm", "resnet")):
        key = f"model.backbone[{kind}]"
        rows |= {
            f"{key}.kind": Row(
                kind,
                lambda c: backbone(c).channels,
                channels[kind][1:],
                choose_kinds(f"model.backbone[{other}].kind"),
            ),
            f"{key}.in_channels": Row(4, channels_of_first_convolution),
            f"{key}.out_strides": Row((16, 32), lambda c: backbone(c).strides),
            f"{key}.freeze_up_to_stride": Row(8, largest_frozen_stride),
            f"{key}.norm": Row("batch_norm", is_frozen, False),
            f"{key}.weights": Row(
                "absent.pth",
                refused_weights,
                True,
                (f"model.backbone={{kind: {kind}, weights: none}}",),
            ),
        }
    bottom = ("model.backbone.depth=50", "model.backbone.out_strides=[16]")
    return {
        **rows,
        "model.backbone[resnet].depth": Row(50, lambda c: backbone(c).channels, (1024,)),
        "model.backbone[resnet].dilation": Row(
            True, lambda c: backbone(c).channels, (2048,), bottom
        ),
        "model.backbone[timm].name": Row(
            "resnet14t", lambda c: backbone(c).channels, (512, 1024, 2048)
        ),
        "model.backbone[timm].padding": Row(
            "required", lambda c: multiple_of("convnext_atto", c.model.backbone), 1
        ),
    }


def conv_rows() -> dict[str, Row]:
    section = "model.backbone.conv"
    mobile = ("model.backbone={kind: mobilenet_v2, weights: none}",)
    names = {
        "deform": "DeformConv2d",
        "modulated_deform": "ModulatedDeformConv2d",
        "ac_block": "ACBlock",
        "diverse_branch": "DiverseBranchBlock",
        "deform_kernel": "DeformKernelConv2d",
    }
    rows = {
        f"{section}[plain].kind": Row(
            "plain", lambda c: len(replaced(c)), 0, (TO_32, f"{section}={{kind: deform}}")
        )
    }
    for kind, name in names.items():
        given = mobile if kind == "deform_kernel" else (TO_32,)
        rows[f"{section}[{kind}].kind"] = Row(
            kind, lambda c: {type(one).__name__ for one in replaced(c)}, {name}, given
        )
        rows[f"{section}[{kind}].strides"] = Row((32,), replaced_strides, given=given)
    for kind in ("deform", "modulated_deform"):
        rows[f"{section}[{kind}].offset_groups"] = Row(
            2, lambda c: same(*(one.offset_groups for one in replaced(c))), given=(TO_32,)
        )
    for kind in ("ac_block", "diverse_branch"):
        rows[f"{section}[{kind}].init"] = Row("paper", block_of_zero_gammas, False, (TO_32,))
    rows[f"{section}[modulated_deform].mask_scale"] = Row(
        1.0, lambda c: same(*(one.mask_scale for one in replaced(c))), given=(TO_32,)
    )
    return rows | kernel_rows(f"{section}[deform_kernel]", backbone_kernel, mobile)


def fusion(config: RunConfig) -> Any:
    return neck(config).fusion.levels[0]


def neck_rows() -> dict[str, Row]:
    rows = {}
    names = {
        "channel_mapper": "ChannelMapper",
        "asff": "ASFFNeck",
        "deform_kernel": "DeformKernelNeck",
    }
    for kind, name in names.items():
        other = "asff" if kind == "channel_mapper" else "channel_mapper"
        rows[f"model.neck[{kind}].kind"] = Row(
            kind, lambda c: type(neck(c)).__name__, name, (f"model.neck.kind={other}",)
        )
        rows[f"model.neck[{kind}].num_levels"] = Row(3, levels)
    asff = "model.neck[asff]"
    uniform = ("model.neck={kind: asff, init: uniform}",)
    return {
        **rows,
        f"{asff}.mask_padding": Row(True, lambda c: neck(c).fusion.mask_padding),
        f"{asff}.rfb": Row(True, lambda c: fusion(c).weight_logits.in_channels, 4 * 8),
        f"{asff}.norm": Row("batch", lambda c: type(fusion(c).expand.norm), nn.BatchNorm2d),
        f"{asff}.activation": Row("silu", lambda c: type(fusion(c).expand.activation), nn.SiLU),
        f"{asff}.init": Row("uniform", lambda c: fusion(c).is_residual, False),
        f"{asff}.compress_equal": Row(
            False, lambda c: isinstance(fusion(c).resizers[1], nn.Identity), True
        ),
        f"{asff}.logit_activation": Row(
            True, lambda c: not isinstance(fusion(c).weight_logits, nn.Conv2d), True, uniform
        ),
        **kernel_rows("model.neck[deform_kernel]", neck_kernel, ()),
    }


def levels(config: RunConfig) -> int:
    whole = detector(config)
    attentions = (whole.encoder.layers[0].self_attn, whole.decoder.layers[0].cross_attn)
    return same(
        whole.neck.num_levels,
        len(whole.memory_builder.level_embed),
        *(a.num_levels for a in attentions),
    )


def widths(config: RunConfig) -> int:
    whole = detector(config)
    return same(
        whole.neck.projections[0].out_channels,
        whole.memory_builder.level_embed.shape[1],
        whole.memory_builder.position.embed_dim,
        whole.encoder.layers[0].linear1.in_features,
        whole.queries.embed.shape[1] // 2,
        whole.decoder.layers[0].linear1.in_features,
        whole.decoder.class_heads[0].in_features,
    )


def of_attentions(name: str, config: RunConfig) -> Any:
    encoder, decoder = detector(config).encoder.layers[0], detector(config).decoder.layers[0]
    layers = [encoder.self_attn, decoder.cross_attn]
    if name == "num_heads":
        layers.append(decoder.self_attn)
    return same(*(getattr(layer, name) for layer in layers))


def stack_rows() -> dict[str, Row]:
    rows = {}
    for stack, attention in (("encoder", "self_attn"), ("decoder", "cross_attn")):

        def layers(config: RunConfig, stack: str = stack) -> nn.ModuleList:
            return detector(config).get_submodule(f"{stack}.layers")

        def dropouts(config: RunConfig, layers: Any = layers) -> float:
            inner = [
                one.dropout
                for one in layers(config).modules()
                if isinstance(one, nn.MultiheadAttention)
            ]
            return same(
                *inner, *(one.p for one in layers(config).modules() if isinstance(one, nn.Dropout))
            )

        def points(config: RunConfig, layers: Any = layers, attention: str = attention) -> int:
            return getattr(layers(config)[0], attention).num_points

        rows |= {
            f"model.{stack}.num_layers": Row(2, lambda c, layers=layers: len(layers(c))),
            f"model.{stack}.ffn_dim": Row(
                96, lambda c, layers=layers: layers(c)[0].linear1.out_features
            ),
            f"model.{stack}.dropout": Row(0.3, dropouts),
            f"model.{stack}.num_points": Row(3, points),
        }
    return rows


def model_rows() -> dict[str, Row]:
    def queries(config: RunConfig) -> Any:
        return detector(config).queries

    def mimicking(name: str) -> Callable[[RunConfig], Any]:
        return lambda config: getattr(detector(config).mimicking, name)

    two_stage, learned = "model.queries[two_stage]", "model.queries[learned]"
    position = "model.position"
    refines = ("model.decoder.box_refinement=true",)
    boxes = (*refines, "model.queries={kind: two_stage}")
    return {
        "model.embed_dim": Row(128, widths),
        f"{position}[sine].kind": Row(
            "sine",
            lambda c: type(detector(c).memory_builder.position).__name__,
            "SinePositionEmbedding",
            (f"{position}.kind=learned",),
        ),
        f"{position}[sine].temperature": Row(
            20.0, lambda c: detector(c).memory_builder.position.temperature
        ),
        f"{position}[sine].offset": Row(0.0, lambda c: detector(c).memory_builder.position.offset),
        f"{position}[learned].kind": Row(
            "learned",
            lambda c: type(detector(c).memory_builder.position).__name__,
            "LearnedPositionEmbedding",
        ),
        f"{position}[learned].max_cells": Row(
            20, lambda c: detector(c).memory_builder.position.row_embed.num_embeddings
        ),
        "model.attention.num_heads": Row(4, partial(of_attentions, "num_heads")),
        "model.attention.backend": Row("reference", partial(of_attentions, "backend")),
        f"{learned}.kind": Row(
            "learned",
            lambda c: type(queries(c)).__name__,
            "LearnedQueries",
            boxes,
        ),
        f"{two_stage}.kind": Row(
            "two_stage", lambda c: type(queries(c)).__name__, "ProposalQueries", refines
        ),
        f"{learned}.num_queries": Row(7, lambda c: len(queries(c).embed)),
        f"{two_stage}.num_queries": Row(7, lambda c: queries(c).num_queries),
        f"{two_stage}.content": Row("learned", lambda c: queries(c).content is not None, True),
        f"{two_stage}.ranking": Row("class", lambda c: queries(c).ranking),
        f"{two_stage}.base_size": Row(0.1, lambda c: queries(c).base_size),
        f"{two_stage}.center_offset": Row(
            "box", lambda c: same(queries(c).center_offset, detector(c).decoder.center_offset)
        ),
        "model.decoder.box_refinement": Row(True, lambda c: detector(c).decoder.box_refinement),
        "model.decoder.position": Row(
            "reference", lambda c: detector(c).decoder.norm is not None, True, boxes
        ),
        "model.decoder.look_forward_twice": Row(
            True, lambda c: detector(c).decoder.look_forward_twice, given=refines
        ),
        "model.decoder.share_heads": Row(
            True,
            lambda c: len(detector(c).decoder.box_heads),
            1,
            (*refines, "model.decoder.num_layers=2"),
        ),
        **denoising_rows(),
        "model.mimicking.max_regions": Row(3, mimicking("max_regions")),
        "model.mimicking.crop_size_px": Row(32, mimicking("crop_size_px")),
    }


def denoising_rows() -> dict[str, Row]:
    given = (
        "model.decoder.box_refinement=true",
        "model.queries={kind: two_stage}",
        "model.denoising={}",
    )

    def denoising(name: str) -> Callable[[RunConfig], Any]:
        return lambda config: getattr(detector(config).denoising, name)

    others = {"num_queries": 7, "label_noise": 0.2, "box_noise": 0.4}
    return {
        f"model.denoising.{name}": Row(value, denoising(name), given=given)
        for name, value in others.items()
    }


MODEL_ROWS = {
    **backbone_rows(),
    **conv_rows(),
    **neck_rows(),
    **stack_rows(),
    **model_rows(),
    **loss_rows(),
}
