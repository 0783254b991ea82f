"""Effective receptive field: the pixels that a cell of a layer depends on, and how strongly.

Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks",
2016; the Deformable Kernels paper uses it to compare networks.
"""

import difflib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deformable_detr.finite import require_finite_values
from deformable_detr.messages import in_brief
from deformable_detr.structures import Size
from deformable_detr.visualize.recording import recorded

_MAX_SUGGESTIONS = 6
_ROUNDING = 1e-9  # relative rounding error of partial sums
Box = tuple[float, float, float, float]  # xyxy in pixels


@dataclass(frozen=True)
class ReceptiveField:
    """Effective receptive field of a cell.

    Attributes:
        layer: name of the module.
        cell: (row, column) in the layer's output map.
        map_size: (height, width) of that map.
        strength: (H, W) float64 per input pixel; 0 where the cell does not depend on it.
    """

    layer: str
    cell: tuple[int, int]
    map_size: Size
    strength: Tensor

    def energy_square(self, share: float) -> Box:
        """Return the smallest square around the center of gravity with a share of the strength.

        Args:
            share: fraction of the strength, in (0, 1].

        Returns:
            xyxy in pixels of the input; may extend beyond its edges.

        Raises:
            ValueError: the share is outside its range, or the strength is zero everywhere.
        """
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {share:g}")
        total = self.strength.sum()
        if total == 0:
            raise ValueError(f"layer {self.layer} must depend on the input, got no gradient")
        H, W = self.strength.shape
        y = torch.arange(H, dtype=torch.float64)[:, None] + 0.5
        x = torch.arange(W, dtype=torch.float64)[None] + 0.5
        center_x = float((self.strength * x).sum() / total)
        center_y = float((self.strength * y).sum() / total)
        distance = torch.maximum((x - center_x).abs(), (y - center_y).abs()).flatten()
        # The square extends to the outer edge of its last pixels.
        order = distance.argsort()
        held = self.strength.flatten()[order].cumsum(0)
        last = int((held < (share - _ROUNDING) * total).sum())
        half = float(distance[order[last]]) + 0.5
        return center_x - half, center_y - half, center_x + half, center_y + half

    def reach(self) -> Size:
        """Return the (height, width) of the smallest box with all pixels the cell depends on.

        It is at most the theoretical receptive field, and equals it in a network without gates
        and attention, away from the edges.
        """
        rows, columns = (self.strength > 0).nonzero(as_tuple=True)
        if len(rows) == 0:
            return 0, 0
        return int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1


def effective_receptive_field(
    model: nn.Module, images: Tensor, layer: str, *, cell: tuple[int, int] | None = None
) -> ReceptiveField:
    """Compute the gradient of the sum of a cell's channels with respect to the input.

    Its magnitude is summed over the color channels and averaged over the images. If sampling
    points or kernels depend on the input, the gradient includes that path.

    Args:
        model: model in eval mode, called with `images`. Its parameters get no gradient.
        images: (N, 3, H, W) normalized images, or normal noise.
        layer: name of a module of the model that returns a map (N, C, H_l, W_l); if it runs
            several times, the first call is used.
        cell: (row, column) in that map; None for the center.

    Raises:
        ValueError: the model is in training mode, the layer or cell does not exist, or the layer
            returns something else or does not run, or the gradient is not finite.
    """
    if model.training:
        raise ValueError("model must be in eval mode, got training mode; call model.eval()")
    images = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        output = _output_of(model, images, layer)
        if not isinstance(output, Tensor) or output.ndim != 4:
            raise ValueError(
                f"layer {layer} must return a map (N, C, H, W), got {_describe(output)}"
            )
        H, W = output.shape[2:]
        row, column = (H // 2, W // 2) if cell is None else cell
        if not (0 <= row < H and 0 <= column < W):
            raise ValueError(
                f"cell must be within the map of {H} x {W} cells of layer {layer}, "
                f"got {row},{column}"
            )
        (gradient,) = torch.autograd.grad(output[:, :, row, column].sum(), images)
    strength = gradient.double().abs().sum(dim=1).mean(dim=0).cpu()
    require_finite_values(strength, f"the receptive field of layer {layer}")
    return ReceptiveField(layer, (row, column), (H, W), strength)


class _LayerReached(Exception):  # noqa: N818  # not an error: it skips the remaining layers
    """End of a forward pass at the layer of interest, with its output."""


def _output_of(model: nn.Module, images: Tensor, layer: str) -> Any:
    """Run the forward pass up to a layer and return the layer's output."""

    def stop(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        raise _LayerReached(output)

    with recorded({layer: find_layer(model, layer)}, stop):
        try:
            model(images)
        except _LayerReached as reached:
            return reached.args[0]
    raise ValueError(f"layer {layer} must take part in the forward pass, but did not run")


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """Return the module of a name.

    Raises:
        ValueError: there is no such module; the message lists the nearest names, and names that
            start with the given one.
    """
    modules = dict(model.named_modules())
    modules.pop("")
    if name in modules:
        return modules[name]
    inside = [other for other in modules if other.startswith(name)] if name else []
    near = difflib.get_close_matches(name, list(modules), n=_MAX_SUGGESTIONS, cutoff=0.4)
    top = [other for other in modules if "." not in other]
    suggestions = list(dict.fromkeys(near + inside[:_MAX_SUGGESTIONS]))[:_MAX_SUGGESTIONS] or top
    raise ValueError(
        f"layer must be a module of the model, got {in_brief(name)}; the nearest are "
        + ", ".join(suggestions)
    )


def _describe(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    return type(output).__name__
