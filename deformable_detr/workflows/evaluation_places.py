"""Files that an evaluation writes: a COCO results file, and pictures of objects side by side."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from deformable_detr.data.coco import CocoDataset
from deformable_detr.detector import DEFAULT_THRESHOLD
from deformable_detr.evaluation.coco_eval import CocoEvaluator
from deformable_detr.files import WriteError, as_path, encoded
from deformable_detr.files.output_folder import OutputFile, OutputFolder
from deformable_detr.finite import to_json
from deformable_detr.pixels.channels import to_rgb
from deformable_detr.visualize.objects import draw_annotations, draw_detections, side_by_side


@dataclass(frozen=True)
class EvaluationPlaces:
    """Places that an evaluation writes to: a results file and a folder of pictures, or None."""

    out: OutputFile | None
    pictures: OutputFolder | None

    @classmethod
    def open(
        cls, out: str | Path | None, pictures: str | Path | None, *, overwrite: bool
    ) -> "EvaluationPlaces":
        """Try the places; the arguments are those of `evaluate`."""
        return cls(
            None if out is None else OutputFile(as_path("out", out), "out", overwrite=overwrite),
            None
            if pictures is None
            else OutputFolder(as_path("pictures", pictures), "pictures", overwrite=overwrite),
        )

    def check(
        self, read: Iterable[object], dataset: CocoDataset | None = None, *, count: int = 0
    ) -> None:
        """Raise if a file must not be written; without a data set, its images are not known yet."""
        inputs = [Path(one) for one in read if isinstance(one, str | Path)]
        names: list[str] = []
        if dataset is not None:
            inputs += dataset.files
            names = [_picture_name(dataset, index) for index in _evenly(dataset, count)]
        if self.out is not None:
            self.out.check(inputs=inputs)
        if self.pictures is not None:
            self.pictures.check(names, inputs=inputs)

    def write(
        self, evaluator: CocoEvaluator, dataset: CocoDataset, *, count: int
    ) -> list[WriteError]:
        """Write what can be written, and return the errors; call on rank 0 only."""
        errors: list[WriteError] = []
        if self.out is not None:
            try:
                self.out.write(partial(write_results, evaluator))
            except WriteError as error:
                errors.append(error)
        if self.pictures is not None:
            try:
                _write_pictures(evaluator, dataset, self.pictures, count=count)
            except WriteError as error:
                errors.append(error)
        return errors


def write_results(evaluator: CocoEvaluator, temporary: Path) -> None:
    """Write all detections to a COCO results file."""
    temporary.write_text(to_json(evaluator.results(), "results file"), "utf-8")


def _evenly(dataset: CocoDataset, count: int) -> list[int]:
    """Return the indices of `count` evenly spaced images."""
    count = min(count, len(dataset))
    return [number * len(dataset) // count for number in range(count)]


def _picture_name(dataset: CocoDataset, index: int) -> str:
    return f"{dataset.image_ids[index]}.png"


def _write_pictures(
    evaluator: CocoEvaluator, dataset: CocoDataset, folder: OutputFolder, *, count: int
) -> None:
    """Draw annotated and detected objects side by side, for `count` evenly spaced images."""
    categories, table = dataset.label_space, evaluator.table
    for index in _evenly(dataset, count):
        sample = dataset[index]
        found = table.of_image(sample.image_id, dataset.label_space).above(DEFAULT_THRESHOLD)
        image = to_rgb(sample.image)
        pictures = [
            draw_annotations(image, sample.boxes_xyxy, sample.labels, categories),
            draw_detections(image, found, categories),
        ]
        captions = [
            f"annotated: {len(sample.labels)}",
            f"detected: {len(found)} of score {DEFAULT_THRESHOLD:g} or more",
        ]
        name = _picture_name(dataset, index)
        data = encoded(side_by_side(pictures, captions), name)
        folder.write(name, partial(_write_bytes, data))


def _write_bytes(data: bytes, temporary: Path) -> None:
    temporary.write_bytes(data)
