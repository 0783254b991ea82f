"""Options below the builders: each is set by a builder, or listed here with a reason."""

import ast
from pathlib import Path

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
    "attention_mask": "an optional tensor, of denoising",
    "targets": "of a batch; without them, nothing is denoised",
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
