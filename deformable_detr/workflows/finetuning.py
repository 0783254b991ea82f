"""`train --finetune-from`: a new model that starts with the weights of a file."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from deformable_detr.builders.plain_weights import with_replaced_convs
from deformable_detr.config import BackboneConfig
from deformable_detr.conversion.files import read_weights
from deformable_detr.engine.checkpoints.transfer import (
    BACKBONE,
    TransferReport,
    holds_backbone,
    transfer_weights,
)
from deformable_detr.labels import LabelSpace
from deformable_detr.models.deformable_detr import DeformableDETR

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinetuneSource:
    """A file that a run starts from.

    Attributes:
        path: of the file.
        state_dict: its weights by our names.
        label_space: its classes; None if it does not tell.
        source: the format, such as "native".
    """

    path: Path
    state_dict: dict[str, Tensor]
    label_space: LabelSpace | None
    source: str

    @classmethod
    def read(cls, path: Path) -> "FinetuneSource":
        """Read a file of this package, or of another implementation, onto the CPU.

        Of a moving average and its model, it is the average.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a checkpoint.
        """
        weights = read_weights(path, with_settings=False)
        return cls(path, weights.state_dict, weights.label_space, weights.source)

    def describe(self) -> str:
        """What is remembered of it in the run."""
        return f"fine-tuned from {self.path} ({self.source})"

    def build_model(
        self,
        build: Callable[[bool], DeformableDETR],
        label_space: LabelSpace,
        backbone: BackboneConfig,
    ) -> tuple[DeformableDETR, TransferReport]:
        """A model with these weights, and what became of them.

        Convolutions that are replaced in the model and plain in the file start as the file's.

        Args:
            build: a new model, with pre-trained weights of its backbone or without; they are
                asked for only if the file does not hold the backbone.
            label_space: the classes of the model.
            backbone: the config of its backbone.
        """
        model, weights = build(False), self.state_dict
        new: set[str] = set()
        if not holds_backbone(model.state_dict(), weights):
            converted = with_replaced_convs(backbone, weights)
            if converted is None:
                model = build(True)
            else:
                weights = converted
                names = {name for name in model.state_dict() if name.startswith(BACKBONE)}
                new = names - weights.keys()
                logger.info("replaced convolutions start as the plain ones of %s", self.path)
        report = transfer_weights(
            model,
            weights,
            old_classes=self.label_space,
            new_classes=label_space,
            what=str(self.path),
            new_in_backbone=new,
        )
        for name, reason in report.reinitialized.items():
            logger.debug("re-initialised: %s (%s)", name, reason)
        logger.debug("ignored: %s", ", ".join(report.ignored))
        return model, report
