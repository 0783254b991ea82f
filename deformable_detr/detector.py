"""Detector: object detection in images in three lines.

Example:
    detector = Detector.from_checkpoint("runs/quickstart/best.pth")
    detections = detector.predict("photo.jpg", threshold=0.3)
    names = [detector.label_space.names[label] for label in detections.labels]
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast, overload

import torch
from PIL import Image
from torch import Tensor, nn

from deformable_detr.arguments import (
    MOST_BATCH,
    checked,
    require_fraction,
    require_integer,
)
from deformable_detr.builders import build_eval_transform, clips_in_evaluation
from deformable_detr.builders.weights import model_with_weights, numbered_classes
from deformable_detr.config.loading import validate_config
from deformable_detr.conversion.files import read_weights
from deformable_detr.data.channel_images import as_image
from deformable_detr.data.transforms import Resize, normalize
from deformable_detr.distributed import choose_device
from deformable_detr.engine.memory import FreedMemory
from deformable_detr.evaluation.postprocess import (
    count_above,
    to_detections,
)
from deformable_detr.files import as_path
from deformable_detr.finite import (
    NonFinitePredictionsError,
    cause_in_weights,
    require_finite_predictions,
)
from deformable_detr.labels import LabelSpace
from deformable_detr.messages import listed, shown
from deformable_detr.models.backbones.input_channels import input_channels
from deformable_detr.photos import Exif, ImageLike
from deformable_detr.pixels.channels import AnyImage
from deformable_detr.structures import Detections, ImageBatch, Predictions, Size
from deformable_detr.visualize.attention import (
    QueryAttention,
    attention_of_best,
    image_share,
    record_attention,
)

DEFAULT_THRESHOLD = 0.3  # focal losses give low scores; there are few false positives above this
DEFAULT_BATCH_SIZE = 4
WAITING_BYTES = 160 * 2**20  # of images that wait for others of their processed size

logger = logging.getLogger(__name__)
_Batch = list[tuple[int, Tensor, Size]]  # position, processed image, original size


class Detector:
    """Trained model with its label space, preprocessing and device.

    Args:
        model: the model; moved to `device` and set to eval mode.
        label_space: category ids and names of its labels.
        transform: resizing of images before the model.
        device: device to compute on.
        clip_boxes: clip boxes to the image in prediction.
        clip_in_evaluation: clip boxes to the image in evaluation.
        exif: pixels to read of an image with an EXIF orientation, as in the training set: of the
            "upright" image, or as "stored".

    Attributes:
        channels: number of channels of the images.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        label_space: LabelSpace,
        *,
        transform: Resize,
        device: torch.device,
        clip_boxes: bool = True,
        clip_in_evaluation: bool = True,
        exif: Exif = "upright",
    ) -> None:
        self.model = model.to(device).eval()
        self.label_space = label_space
        self.transform = transform
        self.device = device
        self.clip_boxes = clip_boxes
        self.clip_in_evaluation = clip_in_evaluation
        self.exif: Exif = exif
        self.channels = input_channels(model)

    @classmethod
    @checked
    def from_checkpoint(cls, path: str | Path, device: str = "auto") -> "Detector":
        """Load a detector from a file of this package or of another implementation.

        Args:
            path: checkpoint of `deformable-detr train`, or a file of `convert` in any format; or
                weights of the official code, transformers (or its folder), detrex or mmdetection
                3.x, of Deformable DETR or DINO. Images are resized as the file says, else as in the
                paper.
            device: "auto" (CUDA, else MPS, else CPU), or a PyTorch device name.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file does not hold a detector, or does not determine its settings.
            RuntimeError: the device is not available.
        """
        path = as_path("checkpoint", path)
        chosen = choose_device(device)
        what = f"checkpoint {shown(path)}"
        weights = read_weights(path)
        config = validate_config(weights.config, source=what, ignore_unknown=True)
        if weights.assumed:
            assumed = ", ".join(weights.assumed)
            logger.warning("%s does not determine all settings; assumed: %s", what, assumed)
        return cls(
            model_with_weights(weights, config, what),
            weights.label_space or numbered_classes(weights),
            transform=build_eval_transform(config.data),
            device=chosen,
            clip_boxes=config.data.clip_boxes,
            clip_in_evaluation=clips_in_evaluation(config),
            exif="stored" if config.data.exif == "stored" else "upright",
        )

    @overload
    def predict(  # type: ignore[overload-overlap]  # a path is a Sequence[str] too, if typed so
        self,
        images: ImageLike,
        *,
        threshold: float = ...,
        classes: Sequence[str] | None = ...,
        max_detections: int | None = ...,
        batch_size: int = ...,
    ) -> Detections: ...

    @overload
    def predict(
        self,
        images: Sequence[ImageLike],
        *,
        threshold: float = ...,
        classes: Sequence[str] | None = ...,
        max_detections: int | None = ...,
        batch_size: int = ...,
    ) -> list[Detections]: ...

    @checked
    def predict(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        threshold: float = DEFAULT_THRESHOLD,
        classes: Sequence[str] | None = None,
        max_detections: int | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> Detections | list[Detections]:
        """Detect objects in one image or in a list of images.

        One line of the log counts the images in which `max_detections` has left out detections.

        Args:
            images: paths, Pillow images, arrays (height, width, channels) or tensors (channels,
                height, width), as for `deformable_detr.photos.as_photo`, or with the model's number
                of channels as for `deformable_detr.data.channel_images.as_image`; one, or a list or
                tuple.
            threshold: score threshold, in [0, 1].
            classes: names of the classes to detect; None for all.
            max_detections: maximum number of detections per image, of all classes together; None
                for all above the threshold.
            batch_size: maximum number of images per batch. Only images of the same processed size
                form a batch, since padding would change the detections.

        Returns:
            Detections on the CPU, best first, with boxes clipped to the image if `clip_boxes`. They
            are in pixels of the upright image; of the stored pixels, before any EXIF orientation,
            if `exif` is "stored". For a list of images, a list in the same order.

        Raises:
            NonFinitePredictionsError: the model's logits or boxes of an image are infinite or NaN.
        """
        single = not isinstance(images, list | tuple)
        photos = cast(Sequence[ImageLike], [images] if single else images)
        each = self.predict_each(
            photos,
            threshold=threshold,
            classes=classes,
            max_detections=max_detections,
            batch_size=batch_size,
        )
        try:
            found = dict(each)
        except NonFinitePredictionsError as error:
            raise error.renamed(_name(photos[error.position], error.image)) from None
        ordered = [found[position] for position in range(len(photos))]
        return ordered[0] if single else ordered

    @checked
    def predict_each(
        self,
        images: Iterable[ImageLike],
        *,
        threshold: float = DEFAULT_THRESHOLD,
        classes: Sequence[str] | None = None,
        max_detections: int | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> Iterator[tuple[int, Detections]]:
        """Yield the detections of `predict` per image, so that any number of images fits in memory.

        Yields:
            The position of an image and its detections, in the order in which batches of images of
            the same processed size are filled. At most 160 MiB of images wait for their batch, as
            processed, beside one batch; of an iterator the Pillow images count too, since whoever
            makes them may keep them until they are found. Beyond that the images that have waited
            longest run as a smaller batch.

        Raises:
            NonFinitePredictionsError: as for `predict`; its `position` is that of the image.
        """
        for batch in self.predict_batches(
            images,
            threshold=threshold,
            classes=classes,
            max_detections=max_detections,
            batch_size=batch_size,
        ):
            yield from batch

    @checked
    def predict_batches(
        self,
        images: Iterable[ImageLike],
        *,
        threshold: float = DEFAULT_THRESHOLD,
        classes: Sequence[str] | None = None,
        max_detections: int | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> Iterator[list[tuple[int, Detections]]]:
        """Yield what `predict_each` yields, the images of a batch together."""
        require_fraction("threshold", threshold)
        require_integer("batch_size", batch_size, at_least=1, at_most=MOST_BATCH)
        if max_detections is not None:
            require_integer("max_detections", max_detections, at_least=1)
        labels = self._labels(classes)
        num_limited = 0
        freed = FreedMemory(self.device)
        for batch in self._batches(images, batch_size):
            last = self._run(batch)
            found = to_detections(
                last,
                [size for _, _, size in batch],
                label_space=self.label_space,
                # Other classes must not crowd out the given ones.
                labels=None if classes is None else labels,
                threshold=threshold,
                max_detections=max_detections,
                clip=self.clip_boxes,
            )
            if max_detections is not None:
                counts = count_above(last, labels=labels, threshold=threshold)
                num_limited += sum(
                    count > len(one) for count, one in zip(counts, found, strict=True)
                )
            yield [
                (position, detections.to("cpu"))
                for (position, _, _), detections in zip(batch, found, strict=True)
            ]
            freed.after_batch((batch[0][1].shape[1], batch[0][1].shape[2]))
        if num_limited:
            logger.warning(
                "max_detections %d has left out detections with a score of at least %g in %d "
                "images; raise it to keep them",
                max_detections,
                threshold,
                num_limited,
            )

    def _batches(self, images: Iterable[ImageLike], batch_size: int) -> Iterator[_Batch]:
        """Yield position, processed image and original size of images of one processed size."""
        waiting: dict[Size, _Batch] = {}  # the first has waited longest
        sizes_in_bytes: dict[int, int] = {}  # of the waiting images, by position
        for position, image in enumerate(images):
            photo = as_image(image, exif=self.exif, channels=self.channels)
            original = (photo.height, photo.width)
            tensor = self.preprocess(photo)
            is_kept = isinstance(image, AnyImage) and not isinstance(images, Sequence)
            sizes_in_bytes[position] = tensor.nbytes + _bytes_of(photo) * is_kept
            size = (tensor.shape[1], tensor.shape[2])
            batch = waiting.setdefault(size, [])
            batch.append((position, tensor, original))
            limit = WAITING_BYTES + batch_size * tensor.nbytes
            del image, photo, tensor  # not to be kept while the batch runs
            ready = [size] if len(batch) == batch_size else []
            while ready or sum(sizes_in_bytes.values()) > limit:
                batch = waiting.pop(ready.pop() if ready else next(iter(waiting)))
                for one, _, _ in batch:
                    del sizes_in_bytes[one]
                yield batch
        yield from waiting.values()

    def _labels(self, classes: Sequence[str] | None) -> list[int]:
        """Return the labels of the given classes."""
        names, labels = self.label_space.names, self.label_space.category_labels
        known = {names[label] for label in labels}
        unknown = [name for name in classes or () if name not in known]
        if unknown or (classes is not None and len(classes) == 0):
            raise ValueError(
                "classes must be names of the detector's classes, "
                f"got {listed(unknown) or 'none'}; it knows {self.label_space.describe()}"
            )
        return [label for label in labels if classes is None or names[label] in classes]

    @checked
    def explain(self, image: ImageLike, *, queries: int = 3) -> list[QueryAttention]:
        """Return what the queries of the best detections attend to in the last decoder layer.

        Args:
            image: as for `predict`.
            queries: number of detections, best first.

        Returns:
            Boxes, sampling points and attention weights per query; coordinates are relative to the
            image as `predict` reads it. `deformable_detr.visualize.pictures.draw_query` draws one.

        Raises:
            NonFinitePredictionsError: as for `predict`.
        """
        require_integer("queries", queries, at_least=0)
        photo = as_image(image, exif=self.exif, channels=self.channels)
        images = ImageBatch.from_images([self.preprocess(photo)]).to(self.device)
        decoder = self.model.get_submodule("decoder")
        with torch.inference_mode(), record_attention(decoder) as calls:
            last = self.model(images).last
        try:
            self._require_finite(last, [0])
        except NonFinitePredictionsError as error:
            raise error.renamed(_name(image, "the image")) from None
        height, width = images.images.shape[2:]
        share = image_share(self.model, (height, width))
        return attention_of_best(last, calls[-1], queries, share=share)

    @checked
    def preprocess(self, photo: AnyImage) -> Tensor:
        """Resize and normalize an image for the model; returns (channels, h, w)."""
        return normalize(self.transform.resize_image(photo))

    @torch.inference_mode()
    def _run(self, batch: _Batch) -> Predictions:
        """Return the predictions for images of one processed size."""
        images = ImageBatch.from_images([tensor for _, tensor, _ in batch]).to(self.device)
        last: Predictions = self.model(images).last
        self._require_finite(last, [position for position, _, _ in batch])
        return last

    def _require_finite(self, predictions: Predictions, positions: Sequence[int]) -> None:
        """Raise if a prediction is not finite, of a class that is not wanted too."""
        try:
            require_finite_predictions(predictions.logits, predictions.boxes)
        except NonFinitePredictionsError as error:
            position = positions[error.position]
            cause = cause_in_weights(self.model.state_dict())
            raise error.because(cause).renamed(
                f"image {position} of those given, from 0", position
            ) from None


def _bytes_of(image: AnyImage) -> int:
    if isinstance(image, Image.Image):  # of which Pillow keeps 4 bytes per pixel
        return 4 * image.height * image.width
    return image.nbytes


def _name(image: ImageLike, default: str) -> str:
    return f"image {image}" if isinstance(image, str | Path) else default
