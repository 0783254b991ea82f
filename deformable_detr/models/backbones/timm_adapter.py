"""Backbones from timm: all models with feature maps that take images of any size."""

import functools
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.models.efficientnet import EfficientNetFeatures
from timm.models.mobilenetv3 import MobileNetV3Features
from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deformable_detr.messages import in_brief, shown
from deformable_detr.models.backbones.base import Backbone, freeze, require_strides
from deformable_detr.models.backbones.input_channels import spread_statistic
from deformable_detr.models.backbones.probing import UnfitNetworkError, probe_network
from deformable_detr.models.backbones.weights import load_backbone_weights
from deformable_detr.pixels.channels import RGB
from deformable_detr.pixels.normalization import IMAGENET_MEAN, IMAGENET_STD

# Options by which networks of fixed size take any, and the value that does so. Windows are then
# the same at all sizes, as in the networks' own detectors: `always_partition` shifts them also
# where one of them held the whole map in pre-training.
_FREE_SIZE = {"strict_img_size": False, "always_partition": True, "dynamic_img_size": True}
_WORKING = (
    "resnet50d",
    "convnext_tiny",
    "efficientnet_b0",
    "regnety_040",
    "swin_tiny_patch4_window7_224",
    "pvt_v2_b1",
)
Padding = Literal["full", "required"]


class TimmBackbone(Backbone):
    """A timm `features_only` model whose input gets the normalization it was trained with.

    The model is built with timm's options for inputs of any size, and probed, see
    `probe_network`: `multiple` is the smallest of 1, the coarsest of the strides and the size
    that the model is made for at which all is right. Parameters that the maps do not depend on are
    not trained: without a gradient, they would stop distributed training.

    Args:
        name: timm's model name, without a pre-trained tag.
        out_strides: strides of the output maps, finest first; the last map of each is taken.
        freeze_up_to_stride: modules up to the last map of at most this stride are not trained.
        freeze_norm: whether batch norms use their stored statistics and are not trained.
        weights: a file, one of timm's pre-trained tags for this model, or None.
        padding: "full" has the input padded so that the maps cover all pixels, "required" only
            where the model cannot run otherwise.
        in_channels: channels of the images; see `repeat_input_channels` for weights of three.

    Raises:
        ValueError: an unknown model, tag or stride, a file that does not fit, or a model that does
            not take images of any size.
    """

    _scale: Tensor
    _shift: Tensor

    def __init__(
        self,
        name: str,
        *,
        out_strides: Sequence[int],
        freeze_up_to_stride: int,
        freeze_norm: bool = True,
        weights: str | Path | None = None,
        padding: Padding = "full",
        in_channels: int = RGB,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        tag = _tag(name, weights)
        maps = _offered_maps(name)
        reductions = [stride for _, stride in maps]
        require_strides(out_strides, reductions, f"timm model {name}")
        last_of_stride = {stride: index for index, stride in enumerate(reductions)}
        self.body = timm.create_model(
            f"{name}{tag}",
            features_only=True,
            pretrained=bool(tag),
            in_chans=in_channels,
            out_indices=tuple(last_of_stride[stride] for stride in out_strides),
            **_free_size_options(name),
        )
        if isinstance(self.body, EfficientNetFeatures | MobileNetV3Features):
            # timm removes unused blocks from all networks but these, which run every block.
            last_stage = int(self.body.feature_info.module_name()[-1].removeprefix("blocks."))
            self.body.blocks = self.body.blocks[: last_stage + 1]
        if isinstance(weights, Path):
            load_backbone_weights(self.body, weights)
        if freeze_norm:
            freeze_batch_norm_2d(self.body)
            # Without a trained parameter, those that timm does not replace stay in eval mode.
            freeze(norm for norm in self.body.modules() if isinstance(norm, _BatchNorm))
        self.strides = tuple(out_strides)
        self.channels = tuple(self.body.feature_info.channels())
        self._normalize_as(self.body.default_cfg)
        self._channels_last = getattr(self.body, "output_fmt", "NCHW") == "NHWC"
        self._maps = maps[: last_of_stride[out_strides[-1]] + 1]
        self._probe(name, reductions, padding)
        frozen_maps = [module for module, stride in self._maps if stride <= freeze_up_to_stride]
        if frozen_maps:
            freeze(_modules_up_to(self.body, frozen_maps[-1]))
            # Position embeddings and class tokens, which are added before the first block.
            for parameter in _own_parameters(self.body):
                parameter.requires_grad_(False)

    def _normalize_as(self, settings: Mapping[str, Any]) -> None:
        """Register the map from the normalization by ImageNet's statistics to the network's."""
        given = (settings["mean"], settings["std"], IMAGENET_MEAN, IMAGENET_STD)
        mean, std, our_mean, our_std = (
            spread_statistic(torch.tensor(values), self.in_channels) for values in given
        )
        scale, shift = our_std / std, (our_mean - mean) / std
        self.register_buffer("_scale", scale.view(1, -1, 1, 1), persistent=False)
        self.register_buffer("_shift", shift.view(1, -1, 1, 1), persistent=False)

    def _probe(self, name: str, reductions: Sequence[int], padding: Padding) -> None:
        """Find the multiple, and exclude unused parameters from training."""
        coarsest = self.strides[-1]
        made_for = max(self.body.default_cfg["input_size"][1:])
        multiples = [coarsest, max(coarsest, *reductions), made_for]
        try:
            probe = probe_network(
                self.body,
                self.strides,
                multiples=[multiple for multiple in multiples if multiple % coarsest == 0],
                covering=padding == "full",
                channels_last=self._channels_last,
                in_channels=self.in_channels,
            )
        except UnfitNetworkError as error:
            raise ValueError(_refusal(name, str(error))) from error
        self.multiple = probe.multiple
        for parameter in probe.unused:
            self.body.get_parameter(parameter).requires_grad_(False)

    def blocks(self) -> list[tuple[int, nn.Module]]:
        """See `Backbone`."""
        found: dict[nn.Module, int] = {}
        for last, stride in self._maps:
            for module in _modules_up_to(self.body, last):
                found.setdefault(module, stride)
        return [(stride, module) for module, stride in found.items()]

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone`."""
        features: list[Tensor] = self.body(images * self._scale + self._shift)
        if self._channels_last:
            features = [feature.permute(0, 3, 1, 2).contiguous() for feature in features]
        return features


def _tag(name: str, weights: str | Path | None) -> str:
    """Return the suffix of the model's name that asks for pre-trained weights, or nothing."""
    if not timm.is_model(name):
        raise ValueError(
            f"timm model must be one of timm.list_models(), got {in_brief(name)}; a pre-trained "
            "tag "
            "goes into model.backbone.weights"
        )
    if not isinstance(weights, str):
        return ""
    tags = [entry.partition(".")[2] for entry in timm.list_pretrained(f"{name}.*")]
    if weights not in tags:
        raise ValueError(
            f"weights of {name} must be a file or one of {tags}, got {in_brief(weights)}"
        )
    return f".{weights}"


def _own_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are in no part of a network that timm has wrapped."""
    children = list(network.children())
    own = list(network.parameters(recurse=False))
    return own + _own_parameters(children[0]) if len(children) == 1 else own


@functools.cache
def _free_size_options(name: str) -> dict[str, Any]:
    """Return the options of the model by which it takes images of any size."""
    known: set[str] = set()
    for kind in type(_build_without_numbers(name)).__mro__:
        known |= set(inspect.signature(kind).parameters)
    return {option: value for option, value in _FREE_SIZE.items() if option in known}


@functools.cache
def _offered_maps(name: str) -> tuple[tuple[str, int], ...]:
    """Return the module and the stride of all maps, in the order of timm's indices."""
    whole = _build_without_numbers(name, features_only=True, **_free_size_options(name))
    return tuple((info["module"], info["reduction"]) for info in whole.feature_info.info)


def _build_without_numbers(name: str, **options: Any) -> Any:
    """Build a model on "meta", in little time and without drawing random numbers."""
    try:
        with torch.device("meta"):
            return timm.create_model(name, **options)
    except Exception as error:  # a model's own constructor raises any kind
        raise ValueError(_refusal(name, f"timm cannot build it as a backbone ({error})")) from error


def _refusal(name: str, reason: str) -> str:
    return (
        f"model.backbone.name must be a model of timm with feature maps of images of any size, "
        f"got {shown(name)}: {reason}; models that work are {', '.join(_WORKING)}"
    )


def _modules_up_to(network: nn.Module, last: str) -> list[nn.Module]:
    """Return the children of `network` and of its containers that run no later than `last`.

    timm writes the name of a module inside a container with a dot, or with an underscore where
    it flattened the container, and leaves out the name of its own wrapper around a whole network.
    """
    modules = dict(network.named_children())
    names, parts = list(modules), last.split(".")
    for length in range(len(parts), 0, -1):
        name, inside = "_".join(parts[:length]), ".".join(parts[length:])
        if name in modules:
            before = [modules[earlier] for earlier in names[: names.index(name)]]
            own = _modules_up_to(modules[name], inside) if inside else [modules[name]]
            return before + own
    if len(modules) == 1:
        return _modules_up_to(modules[names[0]], last)
    raise ValueError(
        f"model.backbone.freeze_up_to_stride must be 0 for this network, which has no part {last!r}"
    )
