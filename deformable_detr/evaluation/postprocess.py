"""Postprocessing: model predictions to detections in pixels of the original image."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from deformable_detr.arguments import require_integer
from deformable_detr.boxes import clip_xyxy, cxcywh_to_xyxy
from deformable_detr.finite import require_finite_predictions
from deformable_detr.labels import LabelSpace
from deformable_detr.structures import Detections, Predictions, Size

MAX_DETECTIONS = 100  # as in the official PostProcess and COCO's AP
_NAME_IN_BATCH = "image {} of the batch".format


def to_detections(
    predictions: Predictions,
    original_sizes: Sequence[Size],
    *,
    label_space: LabelSpace,
    labels: Sequence[int] | None = None,
    threshold: float = 0.0,
    max_detections: int | None = MAX_DETECTIONS,
    clip: bool = True,
    describe: Callable[[int], str] = _NAME_IN_BATCH,
) -> list[Detections]:
    """Turn the predictions of one layer into detections, for evaluation and prediction alike.

    The best (query, class) pairs of each image are selected, then `finish_detections` is applied.
    As in the official code, class rows that are no category compete in the selection and are
    dropped afterwards.

    Args:
        predictions: predictions of the last decoder layer for N images.
        original_sizes: (height, width) of the N images on disk.
        label_space: label space of the class rows.
        labels: labels that compete in the selection; None for all class rows.
        threshold: score threshold, in [0, 1].
        max_detections: number of pairs to select per image; None for all.
        clip: whether to clip boxes to the image; the official code does not.
        describe: returns the description of an image for errors, by its position in the batch.

    Returns:
        N detections, on the device of `predictions`, each sorted by descending score.

    Raises:
        NonFinitePredictionsError: a logit or a box of any query is infinite or NaN.
    """
    if labels is None:
        found = select_detections(
            predictions, original_sizes, max_detections=max_detections, describe=describe
        )
    else:
        rows = torch.tensor(labels, dtype=torch.int64, device=predictions.logits.device)
        chosen = Predictions(predictions.logits[..., rows], predictions.boxes)
        selected = select_detections(
            chosen, original_sizes, max_detections=max_detections, describe=describe
        )
        found = [replace(one, labels=rows[one.labels]) for one in selected]
    return [
        finish_detections(one, size, label_space=label_space, threshold=threshold, clip=clip)
        for one, size in zip(found, original_sizes, strict=True)
    ]


def finish_detections(
    detections: Detections,
    size: Size,
    *,
    label_space: LabelSpace,
    threshold: float = 0.0,
    clip: bool = True,
) -> Detections:
    """Drop labels that are no category and scores below the threshold, and clip the boxes.

    Args:
        detections: output of `select_detections` for one image.
        size: (height, width) of the image.
        label_space: label space of the labels.
        threshold: score threshold, in [0, 1].
        clip: whether to clip boxes to the image.
    """
    if label_space.unused:
        real = detections.labels.new_tensor(label_space.category_labels)
        detections = detections.select(torch.isin(detections.labels, real))
    if threshold > 0:
        detections = detections.above(threshold)
    if clip:
        detections = replace(detections, boxes_xyxy=clip_xyxy(detections.boxes_xyxy, size))
    return detections


def count_above(predictions: Predictions, *, labels: Sequence[int], threshold: float) -> list[int]:
    """Count the (query, class) pairs of N images with a score of at least `threshold`.

    Args:
        predictions: predictions of the last decoder layer for N images.
        labels: labels to count.
        threshold: score threshold, in [0, 1].
    """
    scores = predictions.logits[..., list(labels)].float().sigmoid()
    counts: list[int] = (scores >= threshold).flatten(1).sum(1).tolist()
    return counts


def select_detections(
    predictions: Predictions,
    original_sizes: Sequence[Size],
    *,
    max_detections: int | None = MAX_DETECTIONS,
    describe: Callable[[int], str] = _NAME_IN_BATCH,
) -> list[Detections]:
    """Select the top-scoring (query, class) pairs of each image.

    As in the official code, there is no score threshold, no non-maximum suppression and no
    clipping, and one query may be selected for several classes.

    Args:
        predictions: predictions of the last decoder layer for N images.
        original_sizes: (height, width) of the N images on disk.
        max_detections: number of pairs to select, at most Q * K; None for all.
        describe: returns the description of an image for errors, by its position in the batch.

    Returns:
        N detections, on the device of `predictions`, each sorted by descending score.

    Raises:
        NonFinitePredictionsError: a logit or a box of any query is infinite or NaN.
    """
    N, Q, K = predictions.logits.shape
    if len(original_sizes) != N:
        raise ValueError(
            f"original_sizes must be one per image, got {len(original_sizes)} for {N} images"
        )
    if max_detections is not None:
        require_integer("max_detections", max_detections, at_least=1)
    require_finite_predictions(predictions.logits, predictions.boxes, describe)
    # In float32: lower precision would tie many of the scores near 1.
    all_scores = predictions.logits.float().sigmoid().flatten(1)  # (N, Q * K)
    number = Q * K if max_detections is None else min(max_detections, Q * K)
    scores, pairs = all_scores.topk(number, dim=1)
    queries = (pairs // K).unsqueeze(-1).expand(-1, -1, 4)  # (N, R, 4)
    boxes_xyxy = cxcywh_to_xyxy(predictions.boxes.float()).gather(1, queries)
    scale = boxes_xyxy.new_tensor([(w, h, w, h) for h, w in original_sizes]).view(N, 1, 4)
    return [
        Detections(*fields) for fields in zip(scores, pairs % K, boxes_xyxy * scale, strict=True)
    ]
