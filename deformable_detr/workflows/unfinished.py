"""Partial results of a command that runs a detector over images."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from deformable_detr.detector import Detector
from deformable_detr.evaluation.partial_results import Key, PartialResults, identity_of


def partial_results_of(
    result: Path | None,
    detector: Detector,
    files: Sequence[Path],
    *,
    annotations: Path | None,
    usable: Callable[[Key], bool] = lambda _: True,
    overwrite: bool | None = None,
    inputs: Iterable[object] = (),
    **settings: Any,
) -> AbstractContextManager[PartialResults | None]:
    """Open the partial results of a detector on images; None if there is no result to write.

    Args:
        result: path of the file that the command writes at its end, or None.
        detector: the detector.
        files: the images.
        annotations: annotation file, or None.
        usable: see `PartialResults`.
        overwrite: see `PartialResults`.
        inputs: other files that the command reads; anything but paths is passed over.
        settings: settings that the detections depend on, besides those of the detector.

    Raises:
        ValueError: see `PartialResults`.
    """
    if result is None:
        return nullcontext()
    identity = identity_of(
        detector.model,
        files,
        annotations,
        **settings,
        image_size=str(detector.transform),
        device=detector.device.type,
    )
    paths = [Path(one) for one in (annotations, *inputs) if isinstance(one, str | Path)]
    return PartialResults(
        result,
        identity,
        num_images=len(files),
        usable=usable,
        overwrite=overwrite,
        inputs=[*files, *paths],
    )
