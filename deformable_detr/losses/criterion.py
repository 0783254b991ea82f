"""SetCriterion: losses of matched predictions, for every layer with predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from deformable_detr import distributed
from deformable_detr.boxes import cxcywh_to_xyxy, giou_xyxy, iou_xyxy
from deformable_detr.layers.precision import at_least_float32
from deformable_detr.losses.class_loss import ClassLoss
from deformable_detr.losses.matcher import HungarianMatcher, Match
from deformable_detr.losses.mimicking import mimicking_losses
from deformable_detr.models.mimicking import MimicFeatures
from deformable_detr.structures import Denoised, ModelOutput, Predictions, Target


@dataclass(frozen=True)
class LossWeights:
    """Weights of the three loss terms in the total, the same for every layer."""

    class_: float
    l1: float
    giou: float


@dataclass(frozen=True)
class CriterionResult:
    """Losses and matches of a batch.

    Attributes:
        losses: unweighted terms, scalars: "loss_class", "loss_l1", "loss_giou" of the last
            layer; the same with the prefix "decoder_0/" and so on for earlier layers, with
            "encoder/" for proposals, and with "denoising/" and "denoising/decoder_0/" for the last
            layer and earlier ones of denoising; and "total", the weighted sum.
        matches: one match per image of each layer, by the prefix of the layer's losses: "" for
            the last layer, "decoder_0/", "encoder/", "denoising/".
        one_class_proposals: whether the proposals were trained as objects of class 0, rather than
            of their own class.
    """

    losses: dict[str, Tensor]
    matches: dict[str, list[Match]]
    one_class_proposals: bool

    @property
    def last_match(self) -> list[Match]:
        """Matches of the last layer, one per image."""
        return self.matches[""]


@dataclass(frozen=True)
class _Layer:
    """Predictions of a layer, and what they are trained for.

    Attributes:
        prefix: prefix of the names of its losses.
        predictions: the predictions.
        targets: one per image.
        match: one match per image; None for the matcher's.
        divisor: divisor of all sums.
        has_classes: whether labels are classes; not if all objects have class 0.
    """

    prefix: str
    predictions: Predictions
    targets: Sequence[Target]
    match: list[Match] | None
    divisor: Tensor | float
    has_classes: bool = True


class SetCriterion(nn.Module):
    """Class loss, and L1 and generalized IoU loss of the matched boxes (DETR, section 3.1).

    Every decoder layer is matched and supervised on its own, as are the proposals of a two-stage
    model, for which all objects have class 0 where proposals are ranked by objectness. The queries
    of contrastive denoising are not matched: each positive one has the object that it is a copy of,
    and all others are background. Their losses are divided by the number of groups too (DINO).

    Losses are computed in float32 or wider, regardless of the dtype of the predictions.

    Args:
        matcher: assigns queries to objects.
        weights: weights of the terms.
        class_loss: loss of all logits, the same for every layer.
        class_weights: factors of the class losses of each class, K or none; for all layers but
            proposals whose objects all have class 0.
        auxiliary: whether decoder layers before the last are supervised.
        weigh_proposals: whether the proposals' losses are in the total; they are always computed.
        one_class_proposals: whether all objects have class 0 for proposals.
        mimicking_weight: weight of both losses of feature mimicking; 0 for a model without it.
        official_divisor: whether `divisor` has the rule of the official code.
    """

    def __init__(
        self,
        matcher: HungarianMatcher,
        *,
        weights: LossWeights,
        class_loss: ClassLoss,
        class_weights: Sequence[float] = (),
        auxiliary: bool,
        weigh_proposals: bool,
        one_class_proposals: bool,
        mimicking_weight: float,
        official_divisor: bool,
    ) -> None:
        super().__init__()
        self.matcher = matcher
        self.weights = weights
        self.class_loss = class_loss
        self.class_weights = tuple(class_weights)
        self.auxiliary = auxiliary
        self.weigh_proposals = weigh_proposals
        self.one_class_proposals = one_class_proposals
        self.mimicking_weight = mimicking_weight
        self.official_divisor = official_divisor

    def divisor(self, num_objects: int) -> float:
        """Return the divisor of all sums of a step: its objects, at least 1, per process.

        Gradients are averaged over W processes, so the sums of the whole step end up divided by
        max(1, T), for any W. The official rule is max(1, T / W): for steps with fewer objects than
        processes, its gradient shrinks with the number of processes.

        Args:
            num_objects: T, the number of objects of the step, over all processes.
        """
        processes = distributed.world_size()
        if self.official_divisor:
            return max(1.0, num_objects / processes)
        return max(1, num_objects) / processes

    def forward(
        self,
        output: ModelOutput,
        targets: Sequence[Target],
        num_boxes: Tensor | float | None = None,
    ) -> CriterionResult:
        """Compute every loss.

        Args:
            output: output of the model.
            targets: one per image, on the device of the output.
            num_boxes: divisor of all sums, `divisor` of the whole step, so that the losses of its
                micro-batches add up. None counts the objects of `targets` on all processes, which
                must all call.

        Returns:
            Losses and matches.
        """
        if num_boxes is None:
            own = torch.tensor(sum(len(target) for target in targets))
            num_boxes = self.divisor(int(distributed.all_reduce_sum(own)))
        layers = self._layers(output, targets, num_boxes)
        unmatched = [(one.predictions, one.targets) for one in layers if one.match is None]
        found = iter(self.matcher(unmatched))
        matches: dict[str, list[Match]] = {}
        losses: dict[str, Tensor] = {}
        total = self._unsupervised(output)
        for layer in layers:
            match = next(found) if layer.match is None else layer.match
            terms = self._layer_losses(layer, match)
            matches[layer.prefix] = match
            losses |= {layer.prefix + key: value for key, value in terms.items()}
            share = 0.0 if layer.prefix == "encoder/" and not self.weigh_proposals else 1.0
            total = total + share * (
                self.weights.class_ * terms["loss_class"]
                + self.weights.l1 * terms["loss_l1"]
                + self.weights.giou * terms["loss_giou"]
            )
        return CriterionResult(losses | {"total": total}, matches, self.one_class_proposals)

    def _layers(
        self, output: ModelOutput, targets: Sequence[Target], num_boxes: Tensor | float
    ) -> list[_Layer]:
        """Return all supervised layers; those of denoising last."""
        earlier = output.auxiliary if self.auxiliary else ()
        layers = [_Layer("", output.last, targets, None, num_boxes)]
        layers += [
            _Layer(f"decoder_{index}/", predictions, targets, None, num_boxes)
            for index, predictions in enumerate(earlier)
        ]
        if output.encoder is not None:
            wanted = _as_proposals(targets) if self.one_class_proposals else targets
            has_classes = not self.one_class_proposals
            layers.append(_Layer("encoder/", output.encoder, wanted, None, num_boxes, has_classes))
        if output.denoised is not None:
            last = output.denoised.layers[-1]
            earlier = output.denoised.layers[:-1] if self.auxiliary else ()
            copied, divisor = output.denoised.targets, num_boxes * output.denoised.num_groups
            match = denoising_match(output.denoised)
            layers.append(_Layer("denoising/", last, copied, match, divisor))
            layers += [
                _Layer(f"denoising/decoder_{index}/", predictions, copied, match, divisor)
                for index, predictions in enumerate(earlier)
            ]
        return layers

    def add_mimicking(
        self, losses: Mapping[str, Tensor], features: MimicFeatures, num_boxes: Tensor | float
    ) -> dict[str, Tensor]:
        """Add the losses of feature mimicking to the losses of a batch and to their total.

        Args:
            losses: losses returned by `forward`.
            features: features of the matched queries and of the crops of their objects.
            num_boxes: as for `forward`.
        """
        terms = mimicking_losses(features, num_boxes)
        total = losses["total"] + self.mimicking_weight * sum(terms.values())
        return {**losses, **terms, "total": total}

    def _unsupervised(self, output: ModelOutput) -> Tensor:
        """Return a zero that depends on all unsupervised heads, so that they get a gradient."""
        zero = output.last.logits.new_zeros(())
        if not self.auxiliary:
            noisy = () if output.denoised is None else output.denoised.layers[:-1]
            for predictions in (*output.auxiliary, *noisy):
                zero = zero + 0.0 * (predictions.logits.sum() + predictions.boxes.sum())
        return zero

    def _layer_losses(self, layer: _Layer, matches: Sequence[Match]) -> dict[str, Tensor]:
        predictions, targets, num_boxes = layer.predictions, layer.targets, layer.divisor
        query_index = torch.cat([match.query_index for match in matches])
        image_index = torch.cat(
            [torch.full_like(match.query_index, i) for i, match in enumerate(matches)]
        )
        pairs = list(zip(targets, matches, strict=True))
        labels = torch.cat([target.labels[match.target_index] for target, match in pairs])
        wanted = torch.cat([target.boxes[match.target_index] for target, match in pairs])
        boxes = at_least_float32(predictions.boxes[image_index, query_index])
        wanted = wanted.to(boxes.dtype)

        logits = predictions.logits.to(boxes.dtype)
        one_hot = torch.zeros_like(logits)
        one_hot[image_index, query_index, labels] = 1.0
        corners = cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(wanted)
        giou = giou_xyxy(*corners)
        iou = logits.new_zeros(logits.shape[:2])
        iou[image_index, query_index] = iou_xyxy(*corners).detach()
        weights = None
        if self.class_weights and layer.has_classes:
            weights = logits.new_tensor(self.class_weights)
        return {
            "loss_class": self.class_loss(logits, one_hot, iou, weights) / num_boxes,
            "loss_l1": (boxes - wanted).abs().sum() / num_boxes,
            "loss_giou": (1 - giou).sum() / num_boxes,
        }


def denoising_match(denoised: Denoised) -> list[Match]:
    """Return one match per image: the positive slot of each group with the object it copies."""
    per_group = 2 * max(map(len, denoised.targets))
    matches = []
    for target in denoised.targets:
        objects = torch.arange(len(target), device=target.labels.device)
        groups = torch.arange(denoised.num_groups, device=target.labels.device)
        slots = groups[:, None] * per_group + objects
        matches.append(Match(slots.flatten(), objects.repeat(denoised.num_groups)))
    return matches


def _as_proposals(targets: Sequence[Target]) -> list[Target]:
    """Return the targets with class 0 for all objects."""
    return [replace(target, labels=torch.zeros_like(target.labels)) for target in targets]
