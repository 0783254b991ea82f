"""Options below the builders: each is set by a builder, or listed here with a reason."""

import ast
from pathlib import Path

from helpers.models import reduced_config
from torch import nn

from deformable_detr import build_model
from deformable_detr.layers.deform_kernel import DeformKernelConv2d
from deformable_detr.layers.reparam.blocks import DiverseBranchBlock
from deformable_detr.models.necks.level_fusion import LevelFusion

PACKAGE = Path(__file__).parents[2] / "deformable_detr"
WITHOUT_CONFIG = {
    "stride": "copied from the replaced convolution",
    "groups": "copied from the replaced convolution",
    "bias": "copied from the replaced convolution",
    "eps": "copied from the replaced norm",
    "norm_eps": "copied from the replaced norm",
    "norm_momentum": "copied from the replaced norm",
    "dtype": "that of the features",
    "device": "that of the features",
    "norm_groups": "LevelFusion uses two values",
    "out_channels": "published YOLO blocks widen; a pyramid has one width",
    "internal_channels": "a single number does not suit the widths of all stages",
    "padding_masks": "an optional tensor",
    "residual": "an optional tensor",
    "valid_ratio": "an optional tensor",
    "num_boxes": "known only when micro-batches are accumulated",
}


def options():
    """Return the names of all parameters with a default in the layers below the builders."""
    names = set()
    for folder in ("layers", "models", "losses"):
        for path in (PACKAGE / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef):
                    arguments = node.args
                    positional = [*arguments.posonlyargs, *arguments.args]
                    names |= {
                        a.arg for a in positional[len(positional) - len(arguments.defaults) :]
                    }
                    keyword_only = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
                    names |= {a.arg for a, default in keyword_only if default is not None}
    return names


def set_by_builders():
    return {
        keyword.arg
        for path in (PACKAGE / "builders").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
    }


def test_every_option_is_set_by_a_builder_or_has_a_reason():
    assert options() - set_by_builders() == WITHOUT_CONFIG.keys()


def first(kind, config, *overrides):
    model = build_model(reduced_config(config, *overrides))
    return next(module for module in model.modules() if isinstance(module, kind))


def test_options_of_alternatives_reach_their_modules():
    fusion = first(LevelFusion, "necks/asff_yolov5")
    assert isinstance(fusion.weight_logits.activation, nn.SiLU)
    assert isinstance(fusion.expand.norm, nn.BatchNorm2d)
    fusion = first(LevelFusion, "necks/asff_yolov3")
    assert not fusion.is_residual
    assert isinstance(fusion.resizers[1], nn.Identity)
    assert first(LevelFusion, "necks/asff_rfb").weight_logits.in_channels == 2 * 8
    assert first(DeformKernelConv2d, "backbones/deform_kernel_global").mode == "global"
    kernel = first(DeformKernelConv2d, "backbones/deform_kernel_released")
    assert kernel.rotation_conv is None
    assert not kernel.clip_to_scope
    block = first(DiverseBranchBlock, "backbones/diverse_branch_paper")
    assert block.dbb_avg.avgbn.weight.eq(1).all()
    neck = "model.neck={kind: deform_kernel, num_levels: 2, mode: global, clip_to_scope: false}"
    kernel = first(DeformKernelConv2d, "quickstart", neck)
    assert kernel.mode == "global"
    assert not kernel.clip_to_scope
