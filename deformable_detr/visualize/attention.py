"""Record sampling points and attention weights, and outputs of other modules."""

import inspect
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deformable_detr.finite import require_finite_predictions, require_finite_values
from deformable_detr.layers.attention import MSDeformAttn
from deformable_detr.layers.precision import at_least_float32
from deformable_detr.models.backbones.base import Backbone
from deformable_detr.ops.ms_deformable_attention.reference import sampling_locations
from deformable_detr.structures import LevelShapes, Predictions, Size
from deformable_detr.visualize.recording import modules_of, recorded


@dataclass(frozen=True)
class AttentionCall:
    """Call of an `MSDeformAttn`; all tensors are detached.

    Attributes:
        module: name of the module in the model.
        reference_points: (N, Q, L, 2) points (x, y) or (N, Q, L, 4) boxes cxcywh, relative to
            the padded levels.
        sampling_locations: (N, Q, M, L, P, 2) points (x, y) relative to the padded levels.
        attention_weights: (N, Q, M, L, P) weights; those of a query and head sum to 1.
        level_shapes: (height, width) of the L levels.
    """

    module: str
    reference_points: Tensor
    sampling_locations: Tensor
    attention_weights: Tensor
    level_shapes: LevelShapes


@dataclass(frozen=True)
class QueryAttention:
    """Detection of a query, with its sampling points and attention weights.

    Coordinates are relative to the image: (0, 0) is its upper left and (1, 1) its lower right
    corner.

    Attributes:
        label: class label in 0..K-1.
        score: confidence in [0, 1].
        box_cxcywh: (4,) predicted box.
        reference_point: (2,) reference point (x, y).
        points: (M, L, P, 2) sampling points (x, y); may lie outside the image.
        weights: (M, L, P) attention weights; those of a head sum to 1.
    """

    label: int
    score: float
    box_cxcywh: Tensor
    reference_point: Tensor
    points: Tensor
    weights: Tensor


def image_share(model: nn.Module, size: Size) -> tuple[float, float]:
    """Return the share of the (width, height) of a detector's padded input that an image takes.

    Args:
        model: the detector, whose backbone may need padding; one without a backbone does not.
        size: (height, width) of the image in pixels.
    """
    backbone = dict(model.named_children()).get("backbone")
    return backbone.share_of_padded(size) if isinstance(backbone, Backbone) else (1.0, 1.0)


def record_outputs(
    model: nn.Module, kind: type[nn.Module]
) -> AbstractContextManager[list[tuple[str, Any]]]:
    """Record the outputs of all modules of a class.

    Args:
        model: model that contains the modules.
        kind: class of the modules.

    Returns:
        Context manager that yields a list, which grows with each call: the name of the module,
        and its output.
    """
    return recorded(
        modules_of(model, kind), lambda name, module, args, kwargs, output: (name, output)
    )


def record_attention(model: nn.Module) -> AbstractContextManager[list[AttentionCall]]:
    """Record sampling points and weights of each deformable attention.

    Args:
        model: the detector, or a part of it, such as its decoder.

    Returns:
        Context manager that yields a list, which grows with each call.
    """
    return recorded(modules_of(model, MSDeformAttn), _attention_call)


@torch.no_grad()
def _attention_call(
    name: str, module: MSDeformAttn, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
) -> AttentionCall:
    arguments = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    query, level_shapes = arguments["query"], arguments["level_shapes"]
    shape = (*query.shape[:2], module.num_heads, module.num_levels, module.num_points)
    offsets = at_least_float32(module.sampling_offsets(query)).view(*shape, 2)
    logits = at_least_float32(module.attention_weights(query)).view(shape)
    references = arguments["reference_points"].detach().to(offsets.dtype)
    return AttentionCall(
        module=name,
        reference_points=references,
        sampling_locations=sampling_locations(references, offsets, level_shapes),
        attention_weights=logits.flatten(3).softmax(-1).view(shape),
        level_shapes=level_shapes,
    )


def attention_of_best(
    predictions: Predictions,
    call: AttentionCall,
    count: int,
    *,
    share: tuple[float, float] = (1.0, 1.0),
) -> list[QueryAttention]:
    """Return sampling points and attention weights of the queries with the highest scores.

    Args:
        predictions: (1, Q, K) predictions of one image, of the layer of `call`.
        call: call of that layer's cross-attention.
        count: number of queries, at most Q.
        share: share of the padded (width, height) that the image takes, see `image_share`.

    Returns:
        One entry per query, on the CPU, highest score first, each with its best class.

    Raises:
        NonFinitePredictionsError: a logit or a box of any query is infinite or NaN.
        ValueError: a sampling point or a weight is, there are several images, or the number of
            queries differs.
    """
    N, Q, _ = predictions.logits.shape
    called = tuple(call.sampling_locations.shape[:2])
    if N != 1 or called != (N, Q):
        raise ValueError(
            "predictions and call must be of one image and the same queries, "
            f"got (N, Q) = {(N, Q)} and {called}"
        )
    require_finite_predictions(predictions.logits, predictions.boxes, lambda _: "the image")
    require_finite_values(call.sampling_locations, f"sampling points of {call.module}")
    require_finite_values(call.attention_weights, f"attention weights of {call.module}")
    scores, labels = predictions.logits[0].detach().float().sigmoid().max(dim=-1)
    best = scores.topk(min(count, Q)).indices
    extent = torch.tensor(share)
    return [
        QueryAttention(
            label=int(labels[query]),
            score=float(scores[query]),
            box_cxcywh=predictions.boxes[0, query].detach().cpu(),
            # The image takes the same share of every level, so that one of them is enough.
            reference_point=call.reference_points[0, query, 0, :2].cpu() / extent,
            points=call.sampling_locations[0, query].cpu() / extent,
            weights=call.attention_weights[0, query].cpu(),
        )
        for query in best.tolist()
    ]
