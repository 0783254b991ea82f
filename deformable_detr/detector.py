"""Detector: object detection in images in three lines.

Example:
    detector = Detector.from_checkpoint("runs/quickstart/best.pth")
    detections = detector.predict("photo.jpg", threshold=0.3)
    names = [detector.label_space.names[label] for label in detections.labels]
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast, overload

import torch
from PIL import Image
from torch import Tensor, nn

from deformable_detr.builders import build_eval_transform
from deformable_detr.builders.weights import model_with_weights, numbered_classes
from deformable_detr.config.loading import validate_config
from deformable_detr.conversion.files import read_weights
from deformable_detr.data.transforms import Resize, normalize
from deformable_detr.distributed import choose_device
from deformable_detr.evaluation.postprocess import select_detections
from deformable_detr.labels import LabelSpace
from deformable_detr.photos import ImageLike, as_photo
from deformable_detr.structures import Detections, ImageBatch, Predictions, Size
from deformable_detr.visualize.attention import QueryAttention, attention_of_best, record_attention

DEFAULT_THRESHOLD = 0.3  # focal losses give low scores; there are few false positives above this
DEFAULT_BATCH_SIZE = 4

logger = logging.getLogger(__name__)


class Detector:
    """Trained model with its label space, preprocessing and device.

    Args:
        model: the model; moved to `device` and set to eval mode.
        label_space: category ids and names of its labels.
        transform: resizing of images before the model.
        device: device to compute on.
    """

    def __init__(
        self,
        model: nn.Module,
        label_space: LabelSpace,
        *,
        transform: Resize,
        device: torch.device,
    ) -> None:
        self.model = model.to(device).eval()
        self.label_space = label_space
        self.transform = transform
        self.device = device

    @classmethod
    def from_checkpoint(cls, path: str | Path, device: str = "auto") -> "Detector":
        """Load a detector from a file of this package or of another implementation.

        Args:
            path: checkpoint of `deformable-detr train`, or a file of `convert` in any format; or
                weights of the official code, transformers (or its folder), detrex or mmdetection
                3.x. Images are resized as the file says, else as in the paper.
            device: "auto" (CUDA, else MPS, else CPU), or a PyTorch device name.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file does not hold a detector, or does not determine its settings.
            RuntimeError: the device is not available.
        """
        chosen = choose_device(device)
        what = f"checkpoint {path}"
        weights = read_weights(Path(path))
        config = validate_config(weights.config, source=what, ignore_unknown=True)
        if weights.assumed:
            assumed = ", ".join(weights.assumed)
            logger.warning("%s does not determine all settings; assumed: %s", what, assumed)
        return cls(
            model_with_weights(weights, config, what),
            weights.label_space or numbered_classes(weights),
            transform=build_eval_transform(config.data),
            device=chosen,
        )

    @overload
    def predict(  # type: ignore[overload-overlap]  # a path is a Sequence[str] too, if typed so
        self,
        images: ImageLike,
        *,
        threshold: float = ...,
        classes: Sequence[str] | None = ...,
        batch_size: int = ...,
    ) -> Detections: ...

    @overload
    def predict(
        self,
        images: Sequence[ImageLike],
        *,
        threshold: float = ...,
        classes: Sequence[str] | None = ...,
        batch_size: int = ...,
    ) -> list[Detections]: ...

    def predict(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        threshold: float = DEFAULT_THRESHOLD,
        classes: Sequence[str] | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> Detections | list[Detections]:
        """Detect objects in one image or in a list of images.

        Args:
            images: paths, Pillow images, uint8 arrays (height, width, 3), or tensors
                (3, height, width), uint8 or floating in [0, 1]; one, or a list or tuple.
            threshold: score threshold, in [0, 1].
            classes: names of the classes to detect; None for all.
            batch_size: maximum number of images per batch. Only images of the same processed size
                form a batch, since padding would change the detections.

        Returns:
            Detections on the CPU, best first, with boxes in pixels of the upright image (EXIF
            orientation applied). For a list of images, a list in the same order.
        """
        single = not isinstance(images, list | tuple)
        photos = cast(Sequence[ImageLike], [images] if single else images)
        found = dict(
            self.predict_each(photos, threshold=threshold, classes=classes, batch_size=batch_size)
        )
        ordered = [found[position] for position in range(len(photos))]
        return ordered[0] if single else ordered

    def predict_each(
        self,
        images: Iterable[ImageLike],
        *,
        threshold: float = DEFAULT_THRESHOLD,
        classes: Sequence[str] | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> Iterator[tuple[int, Detections]]:
        """Yield the detections of `predict` per image, so that any number of images fits in memory.

        Yields:
            The position of an image and its detections, in the order in which batches of images of
            the same processed size are filled.
        """
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be between 0 and 1, got {threshold:g}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        wanted = self._labels(classes)
        waiting: dict[Size, list[tuple[int, Tensor, Size]]] = {}
        for position, image in enumerate(images):
            photo = as_photo(image)
            tensor = self.preprocess(photo)
            batch = waiting.setdefault((tensor.shape[1], tensor.shape[2]), [])
            batch.append((position, tensor, (photo.height, photo.width)))
            if len(batch) == batch_size:
                yield from self._run(batch, threshold, wanted)
                batch.clear()
        for batch in filter(None, waiting.values()):
            yield from self._run(batch, threshold, wanted)

    def _labels(self, classes: Sequence[str] | None) -> Tensor:
        """Return the labels of the given classes, as a tensor (number of classes,)."""
        names, labels = self.label_space.names, self.label_space.category_labels
        known = {names[label] for label in labels}
        unknown = [name for name in classes or () if name not in known]
        if unknown or classes == []:
            raise ValueError(
                "classes must be names of the detector's classes, "
                f"got {', '.join(unknown) or 'none'}; it knows {self.label_space.describe()}"
            )
        return torch.tensor(
            [label for label in labels if classes is None or names[label] in classes]
        )

    def explain(self, image: ImageLike, *, queries: int = 3) -> list[QueryAttention]:
        """Return what the queries of the best detections attend to in the last decoder layer.

        Args:
            image: as for `predict`.
            queries: number of detections, best first.

        Returns:
            Boxes, sampling points and attention weights per query; coordinates are relative to the
            upright image. `deformable_detr.visualize.pictures.draw_query` draws one.
        """
        images = ImageBatch.from_images([self.preprocess(as_photo(image))]).to(self.device)
        decoder = self.model.get_submodule("decoder")
        with torch.inference_mode(), record_attention(decoder) as calls:
            last = self.model(images).last
        return attention_of_best(last, calls[-1], queries)

    def preprocess(self, photo: Image.Image) -> Tensor:
        """Resize and normalize an image for the model; returns (3, h, w)."""
        return normalize(self.transform.resize_image(photo))

    @torch.inference_mode()
    def _run(
        self, batch: Sequence[tuple[int, Tensor, Size]], threshold: float, wanted: Tensor
    ) -> list[tuple[int, Detections]]:
        images = ImageBatch.from_images([tensor for _, tensor, _ in batch]).to(self.device)
        last = self.model(images).last
        # Select classes before the best scores: other classes must not crowd them out.
        chosen = Predictions(last.logits[..., wanted.to(self.device)], last.boxes)
        found = select_detections(chosen, [size for _, _, size in batch])
        results = []
        for (position, _, _), detections in zip(batch, found, strict=True):
            kept = detections.to("cpu").above(threshold)
            results.append((position, replace(kept, labels=wanted[kept.labels])))
        return results
