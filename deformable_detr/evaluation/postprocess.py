"""Postprocessing: model predictions to detections in pixels of the original image."""

from collections.abc import Callable, Sequence

from deformable_detr.boxes import cxcywh_to_xyxy
from deformable_detr.finite import require_finite_predictions
from deformable_detr.structures import Detections, Predictions, Size

MAX_DETECTIONS = 100  # as in the official PostProcess and COCO's AP


def select_detections(
    predictions: Predictions,
    original_sizes: Sequence[Size],
    *,
    max_detections: int = MAX_DETECTIONS,
    describe: Callable[[int], str] = "image {} of the batch".format,
) -> list[Detections]:
    """Select the top-scoring (query, class) pairs of each image.

    As in the official code, there is no score threshold, no non-maximum suppression and no
    clipping, and one query may be selected for several classes.

    Args:
        predictions: predictions of the last decoder layer for N images.
        original_sizes: (height, width) of the N images on disk.
        max_detections: number of pairs to select, at most Q * K.
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
    if max_detections < 1:
        raise ValueError(f"max_detections must be at least 1, got {max_detections}")
    require_finite_predictions(predictions.logits, predictions.boxes, describe)
    # In float32: lower precision would tie many of the scores near 1.
    all_scores = predictions.logits.float().sigmoid().flatten(1)  # (N, Q * K)
    scores, pairs = all_scores.topk(min(max_detections, Q * K), dim=1)
    queries = (pairs // K).unsqueeze(-1).expand(-1, -1, 4)  # (N, R, 4)
    boxes_xyxy = cxcywh_to_xyxy(predictions.boxes.float()).gather(1, queries)
    scale = boxes_xyxy.new_tensor([(w, h, w, h) for h, w in original_sizes]).view(N, 1, 4)
    return [
        Detections(*fields) for fields in zip(scores, pairs % K, boxes_xyxy * scale, strict=True)
    ]
