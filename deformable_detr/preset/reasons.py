"""The reasons for what the preset chose, as lines for a terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deformable_detr.messages import printable
from deformable_detr.preset.schedule import Length
from deformable_detr.preset.views import View

WIDTH = 78
_FETCH = "deformable-detr data weights"


def describe(
    view: View,
    length: Length,
    settings: Mapping[str, Any],
    *,
    crowd: int,
    start: tuple[str, str],
) -> tuple[str, ...]:
    """Describe the choices in at most eight lines of at most 78 characters."""
    lines = [
        _size(view),
        *_channels(settings),
        *_model(view, settings, crowd),
        _length(length),
        _rates(settings),
        _start(*start),
    ]
    return tuple(line if len(line) <= WIDTH else line[: WIDTH - 3] + "..." for line in lines)


def _size(view: View) -> str:
    what = "images resized" if view.crop_px is None else f"crops of {view.crop_px:,} px, resized"
    sizes = f"{view.size} px"
    if view.eval_size != view.size:
        sizes += f", {view.eval_size} in evaluation"
    if not view.object_px[1]:
        return f"size     {what} to {sizes}; there is no object to go by"
    limit = "; larger is slower" if view.is_limited else ""
    return f"size     {what} to {sizes}: median object {view.object_px[1]:.0f} px{limit}"


def _channels(settings: Mapping[str, Any]) -> list[str]:
    channels = settings.get("model.backbone.in_channels")
    return [] if channels is None else [f"channels {channels}, as in the training images"]


def _model(view: View, settings: Mapping[str, Any], crowd: int) -> list[str]:
    if "model.queries.num_queries" not in settings:
        return ["model    levels and queries of the checkpoint"]
    strides = ", ".join(map(str, settings["model.backbone.out_strides"]))
    small, _, large = view.object_px
    queries = settings["model.queries.num_queries"]
    of = "per image" if queries > crowd else "per image, too few"
    return [
        f"levels   strides {strides}: objects of {small:.0f} to {large:.0f} px",
        f"queries  {queries} for at most {crowd:,} objects {of}; "
        f"initial boxes {settings.get('model.queries.base_size', 0.1):.2g}",
        _parts(settings),
    ]


def _parts(settings: Mapping[str, Any]) -> str:
    parts = "denoising (few images)"
    if settings.get("model.queries.center_offset") == "box":
        parts += ", offsets in units of boxes (small objects)"
    return f"parts    {parts}"


def _length(length: Length) -> str:
    repeats = f" of {length.repeats:,} passes" if length.repeats > 1 else ""
    epochs = "1 epoch" if length.epochs == 1 else f"{length.epochs:,} epochs"
    return (
        f"length   {length.steps:,} steps of {length.batch}: {epochs}{repeats}; "
        f"evaluated after every {length.eval_every_epochs}"
    )


def _rates(settings: Mapping[str, Any]) -> str:
    rates = settings["train.optimizer"]
    return (
        f"rates    {rates['lr']:g}, backbone {rates['lr_backbone']:g} (root of the batch); "
        f"EMA {settings['train.ema_decay']:g}; {settings['train.precision']}"
    )


def _start(kind: str, file: str) -> str:
    if kind == "random":
        return f"start    random, learns slowly; `{_FETCH}` fetches weights"
    what = "the detector" if kind == "checkpoint" else "the backbone"
    name = printable(Path(file).name)
    return f"start    {what} of {name if len(name) <= 48 else '...' + name[-45:]}"
