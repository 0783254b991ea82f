"""Contrastive denoising: queries that start from noisy copies of the objects, in training only."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from deformable_detr.boxes import DINO_EPS, cxcywh_to_xyxy, inverse_sigmoid, xyxy_to_cxcywh
from deformable_detr.structures import Denoised, Predictions, Queries, Target

_EMPTY_REFERENCE = 0.5  # of a slot without an object; official DINO


@dataclass(frozen=True)
class NoisyQueries:
    """Queries made of noisy copies, to be decoded before the ordinary ones.

    Attributes:
        query: (N, D, C) content; zeros in empty slots. `Denoised` describes the D = 2 G T slots.
        reference_points: (N, D, 4) cxcywh in (0, 1).
        targets: the objects that were copied, one target per image.
        num_groups: G.
    """

    query: Tensor
    reference_points: Tensor
    targets: tuple[Target, ...]
    num_groups: int

    def before(self, queries: Queries, query_pos: Tensor | None) -> Queries:
        """Put the noisy queries before the ordinary ones, with the mask that separates them.

        Args:
            queries: the Q ordinary queries.
            query_pos: (N, D, C) positions of the noisy ones; None if the decoder computes them.

        Returns:
            D + Q queries.
        """
        if query_pos is not None and queries.query_pos is not None:
            query_pos = torch.cat((query_pos, queries.query_pos), dim=1)
        num_slots = self.query.shape[1]
        return Queries(
            torch.cat((self.query.to(queries.query.dtype), queries.query), dim=1),
            query_pos,
            torch.cat((self.reference_points, queries.reference_points), dim=1),
            group_mask(
                self.num_groups,
                num_slots // self.num_groups,
                queries.query.shape[1],
                device=self.query.device,
            ),
        )

    def split(self, layers: Sequence[Predictions]) -> tuple[Denoised, list[Predictions]]:
        """Return the predictions of the noisy queries and, per layer, of the ordinary ones.

        Args:
            layers: predictions for the D + Q queries of `before`, first layer first.
        """
        num_slots = self.query.shape[1]
        noisy = tuple(_part(layer, slice(num_slots)) for layer in layers)
        ordinary = [_part(layer, slice(num_slots, None)) for layer in layers]
        return Denoised(noisy, self.targets, self.num_groups), ordinary


class DenoisingQueries(nn.Module):
    """Queries for contrastive denoising (DINO; Zhang et al., ICLR 2023, section 3.3).

    In each of G groups, every object has a positive query, whose box is shifted a little and from
    which the object is to be restored, and a negative one, which is shifted more and is to be
    rejected. The class of some copies is replaced by a random one; its embedding is the query's
    content. Noise comes from the default generator of the targets' device.

    Args:
        num_classes: K.
        embed_dim: C.
        num_queries: largest number of positive queries per image. An image with more objects gets
            a random choice of them, so there are at most twice as many queries.
        label_noise: twice the probability that a copy gets a class drawn from all K.
        box_noise: largest shift of a side of a positive box, in halves of the box's width or
            height; negative ones are shifted by this to twice as much.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        embed_dim: int,
        num_queries: int,
        label_noise: float,
        box_noise: float,
    ) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.label_noise = label_noise
        self.box_noise = box_noise
        self.label_embed = nn.Embedding(num_classes, embed_dim)  # starts as N(0, 1)

    def forward(self, targets: Sequence[Target]) -> NoisyQueries:
        """Copy objects and add noise.

        Args:
            targets: one per image. Without any object there are no slots, and the embedding gets
                a gradient of zeros.
        """
        targets = tuple(_at_most(self.num_queries, target) for target in targets)
        groups = num_groups(self.num_queries, max(map(len, targets)))
        labels = pad_sequence([target.labels for target in targets], batch_first=True)
        boxes = pad_sequence([target.boxes for target in targets], batch_first=True)
        counts = torch.tensor([len(target) for target in targets])
        exists = (torch.arange(labels.shape[1]) < counts[:, None]).to(labels.device)

        N, T = labels.shape
        labels, shifts = self.noise(labels[:, None, None].expand(N, groups, 2, T))
        query = self.label_embed(labels).masked_fill(~exists[:, None, None, :, None], 0.0)
        references = noisy_boxes(boxes[:, None, None], shifts)
        references = references.masked_fill(~exists[:, None, None, :, None], _EMPTY_REFERENCE)
        return NoisyQueries(query.flatten(1, 3), references.flatten(1, 3), targets, groups)

    def noise(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Draw all noise of a batch.

        Args:
            labels: (N, G, 2, T) class of each slot; the third dimension is positive, negative.

        Returns:
            The labels after noise, and (N, G, 2, T, 4) signed shifts for `noisy_boxes`.
        """
        is_changed = torch.rand(labels.shape, device=labels.device) < self.label_noise / 2
        others = torch.randint_like(labels, self.label_embed.num_embeddings)
        sizes = torch.rand((*labels.shape, 4), device=labels.device)
        sizes[:, :, 1] += 1
        signs = torch.randint_like(sizes, 2) * 2 - 1
        return torch.where(is_changed, others, labels), self.box_noise * signs * sizes


def num_groups(num_queries: int, num_objects: int) -> int:
    """Return G, the number of groups.

    Args:
        num_queries: largest number of positive queries.
        num_objects: T, the largest number of objects of an image.
    """
    return max(1, num_queries // num_objects) if num_objects else 1


def noisy_boxes(boxes: Tensor, shifts: Tensor) -> Tensor:
    """Shift the sides of boxes.

    A side stays within the image, and a box whose sides have changed places gets the least size.

    Args:
        boxes: (..., 4) cxcywh in [0, 1].
        shifts: (..., 4) shift of the left, top, right and bottom side, in halves of the box's
            width (left, right) or height (top, bottom).

    Returns:
        (..., 4) cxcywh in (0, 1), as far from both ends as the decoder's references.
    """
    half_sizes = boxes[..., 2:].repeat(*(1,) * (boxes.ndim - 1), 2) / 2
    sides = (cxcywh_to_xyxy(boxes) + shifts * half_sizes).clamp(0, 1)
    return inverse_sigmoid(xyxy_to_cxcywh(sides), eps=DINO_EPS).sigmoid()


def group_mask(
    num_groups: int, per_group: int, num_queries: int, *, device: torch.device | None = None
) -> Tensor:
    """Compute which queries do not attend to which.

    A noisy query attends to its own group and to all ordinary queries, and an ordinary query to
    ordinary ones only: it must not see copies of what it has to find.

    Args:
        num_groups: G.
        per_group: noisy queries in a group; they come first.
        num_queries: Q ordinary queries, which follow.
        device: device of the result; None for the CPU.

    Returns:
        (D + Q, D + Q) bool, True where the query of a row does not attend to that of a column.
    """
    groups = torch.arange(num_groups, device=device).repeat_interleave(per_group)
    groups = nn.functional.pad(groups, (0, num_queries), value=-1)
    return (groups[:, None] != groups) & (groups >= 0)


def _at_most(limit: int, target: Target) -> Target:
    """Return all objects of a target, or a random choice of `limit` of them."""
    if len(target) <= limit:
        return target
    chosen = torch.randperm(len(target), device=target.labels.device)[:limit]
    return Target(
        target.boxes[chosen], target.labels[chosen], target.image_id, target.original_size
    )


def _part(layer: Predictions, queries: slice) -> Predictions:
    """Return the predictions of some of the queries."""
    hidden = None if layer.hidden is None else layer.hidden[:, queries]
    return Predictions(layer.logits[:, queries], layer.boxes[:, queries], hidden)
