"""`train --finetune-from`: initialize a new model with the weights of a file."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from deformable_detr.builders.plain_weights import with_replaced_convs
from deformable_detr.config import BackboneConfig
from deformable_detr.conversion.files import read_weights
from deformable_detr.conversion.weights import Weights
from deformable_detr.engine.checkpoints.transfer import (
    BACKBONE,
    TransferReport,
    holds_backbone,
    transfer_weights,
)
from deformable_detr.labels import LabelSpace
from deformable_detr.messages import listed, shown
from deformable_detr.models.backbones.input_channels import with_input_channels
from deformable_detr.models.deformable_detr import DeformableDETR

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinetuneSource:
    """Weights that a run starts from.

    Attributes:
        path: path of the file.
        state_dict: its weights under this package's names.
        label_space: its classes; None if the file does not name them.
        source: its format, such as "native".
        ranked_by_class: whether its proposals are ranked by class.
    """

    path: Path
    state_dict: dict[str, Tensor]
    label_space: LabelSpace | None
    source: str
    ranked_by_class: bool = False

    @classmethod
    def read(cls, path: Path) -> "FinetuneSource":
        """Read a file of this package, or of another implementation, onto the CPU.

        Takes the moving average of the weights if the file has one.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not a checkpoint.
        """
        return cls.of(path, read_weights(path, with_settings=False))

    @classmethod
    def of(cls, path: Path, weights: Weights) -> "FinetuneSource":
        """Return weights that were read from a file."""
        return cls(
            path,
            weights.state_dict,
            weights.label_space,
            weights.source,
            ranked_by_class=weights.ranked_by_class,
        )

    def describe(self) -> str:
        """Return a description of the origin of the weights, to store in the run."""
        return f"fine-tuned from {shown(self.path)} ({self.source})"

    def build_model(
        self,
        build: Callable[[bool], DeformableDETR],
        label_space: LabelSpace,
        backbone: BackboneConfig,
    ) -> tuple[DeformableDETR, TransferReport]:
        """Build a model, load these weights into it, and report which tensors were transferred.

        Convolutions that are replaced in the model but plain in the file start from the weights of
        the plain ones. A first convolution of three channels is adapted to the model's, see
        `repeat_input_channels`.

        Args:
            build: builds a new model; its argument says whether to load pre-trained backbone
                weights, which is requested only if the file does not hold the backbone.
            label_space: classes of the model.
            backbone: config of the model's backbone.
        """
        model = build(False)
        weights = self._with_channels_of(model)
        new: set[str] = set()
        if not holds_backbone(model.state_dict(), weights):
            converted = with_replaced_convs(backbone, weights)
            if converted is None:
                model = build(True)
            else:
                weights = converted
                names = {name for name in model.state_dict() if name.startswith(BACKBONE)}
                new = names - weights.keys()
                logger.info(
                    "replaced convolutions start from the plain ones of %s", shown(self.path)
                )
        report = transfer_weights(
            model,
            weights,
            old_classes=self.label_space,
            new_classes=label_space,
            what=shown(self.path),
            ranked_by_class=self.ranked_by_class,
            new_in_backbone=new,
        )
        for name, reason in report.reinitialized.items():
            logger.debug("re-initialized: %s (%s)", shown(name), reason)
        logger.debug("ignored: %s", listed(report.ignored))
        return model, report

    def _with_channels_of(self, model: DeformableDETR) -> dict[str, Tensor]:
        """Return the weights, with a first convolution for the channels of the model's images."""
        own = {n: t for n, t in model.state_dict().items() if n.startswith(BACKBONE)}
        weights = with_input_channels(own, self.state_dict)
        if any(weights[name] is not self.state_dict[name] for name in weights):
            logger.info(
                "the first convolution starts from that of %s, repeated from 3 channels to %d",
                shown(self.path),
                model.backbone.in_channels,
            )
        return weights
