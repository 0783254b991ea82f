"""Parts of a training run, built from its config: data, model, state and loop."""

import logging
from dataclasses import dataclass, replace
from typing import Any

import torch

from deformable_detr import distributed
from deformable_detr.builders import (
    build_criterion,
    build_dataset,
    build_eval_transform,
    build_model,
    build_optimizer,
    build_sampler,
    build_schedule,
    build_train_transform,
    clips_in_evaluation,
    largest_size,
)
from deformable_detr.builders.data import fixed_micro_batch
from deformable_detr.config import ConfigError, RunConfig
from deformable_detr.data.coco import CocoDataset
from deformable_detr.data.loader import build_evaluation_loader, build_loader
from deformable_detr.data.samplers import StepSampler
from deformable_detr.data.transformed import TransformedDataset
from deformable_detr.engine.checkpoints.transfer import TransferReport
from deformable_detr.engine.ema import ExponentialMovingAverage
from deformable_detr.engine.evaluate import Validation
from deformable_detr.engine.memory import warm_up
from deformable_detr.engine.run.early_stopping import EarlyStopping
from deformable_detr.engine.run.folder import RunFolder
from deformable_detr.engine.run.stopping import StopRequest
from deformable_detr.engine.state import TrainState
from deformable_detr.engine.train import TrainLoop, total_steps
from deformable_detr.labels import LabelSpace
from deformable_detr.messages import shown
from deformable_detr.models.deformable_detr import DeformableDETR
from deformable_detr.workflows.finetuning import FinetuneSource

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """Data sets of a run.

    Attributes:
        train: the training set.
        val: the validation set, with the same categories.
        train_samples: the training set with augmentation, as the model sees it.
        sampler: the order of training samples, restricted to this process.
    """

    train: CocoDataset
    val: CocoDataset
    train_samples: TransformedDataset
    sampler: StepSampler

    @classmethod
    def open(cls, config: RunConfig) -> "TrainingData":
        """Read the annotations of both sets.

        Raises:
            ValueError: an annotation file breaks a rule, or there is nothing to learn.
        """
        train = build_dataset(config, "train")
        val = build_dataset(config, "val", label_space=train.label_space, exif_otherwise=train.exif)
        _check_class_weights(config, train.label_space)
        is_whole = config.data.augmentation.kind != "zoom_crop"  # a crop shows few of the objects
        _check_objects(train, num_queries=config.model.queries.num_queries, is_whole=is_whole)
        samples = TransformedDataset(
            train,
            build_train_transform(config.data.augmentation),
            seed=config.train.seed,
            repeats=config.data.repeats,
        )
        return cls(train, val, samples, _build_sampler(config, train, len(samples)))

    def with_order(self, config: RunConfig) -> "TrainingData":
        """Return the same data in the order of micro-batches of `config`."""
        sampler = _build_sampler(config, self.train, len(self.train_samples))
        return replace(self, sampler=sampler)


def _build_sampler(config: RunConfig, train: CocoDataset, num_samples: int) -> StepSampler:
    threshold = config.data.repeat_threshold
    return build_sampler(
        config,
        num_samples=num_samples,
        aspect_ratios=train.sizes[:, 0] / train.sizes[:, 1],
        factors=None if threshold is None else train.repeat_factors(threshold),
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )


def _check_class_weights(config: RunConfig, label_space: LabelSpace) -> None:
    count, classes = len(config.loss.class_weights), label_space.num_classes
    if count not in (0, classes):
        raise ConfigError(
            f"loss.class_weights: must have a weight for each of the {classes} classes, "
            f"{label_space.describe()}, got {count}"
        )


def _check_objects(train: CocoDataset, *, num_queries: int, is_whole: bool) -> None:
    """Require an object to learn; warn of whole images with more objects than queries can find."""
    most = int(train.num_objects.max())
    if most == 0:
        left_out = ", ".join(f"{count} {reason}" for reason, count in train.num_dropped.items())
        raise ValueError(
            f"data.train.annotations must have at least one object to learn, got none in "
            f"{shown(train.annotations.file)}; annotations left out: {left_out}"
        )
    crowded = int((train.num_objects > num_queries).sum())
    if crowded and is_whole and distributed.is_main():
        logger.warning(
            "%d of %d training images have more objects, up to %d, than the model has queries, %d: "
            "a step that shows them all does not learn the rest; raise model.queries.num_queries",
            crowded,
            len(train),
            most,
            num_queries,
        )


def build_run_model(
    config: RunConfig, label_space: LabelSpace, source: FinetuneSource | None, *, resume: bool
) -> tuple[DeformableDETR, TransferReport | None]:
    """Build the model on the CPU with its initial weights; report what `source` contributed."""

    def build(load_backbone_weights: bool) -> DeformableDETR:
        torch.manual_seed(config.train.seed)  # for weights that are not pre-trained
        with distributed.main_first():
            return build_model(
                config,
                num_classes=label_space.num_classes,
                load_backbone_weights=load_backbone_weights,
            )

    if source is not None:
        return source.build_model(build, label_space, config.model.backbone)
    return build(not resume), None


def build_state(config: RunConfig, data: TrainingData, model: DeformableDETR) -> TrainState:
    """Build the training state before the first step; the model is on its device already."""
    steps_per_epoch = data.sampler.steps_per_epoch
    schedule = build_schedule(
        config.train.schedule,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps(
            steps_per_epoch, epochs=config.train.epochs, max_steps=config.train.max_steps
        ),
    )
    decay = config.train.ema_decay
    return TrainState(
        model,
        build_optimizer(config.train.optimizer, model),
        schedule,
        label_space=data.train.label_space,
        config=_decided(config, data),
        ema=ExponentialMovingAverage(model, decay=decay) if decay else None,
        precision=config.train.precision,
    )


def _decided(config: RunConfig, data: TrainingData) -> dict[str, Any]:
    """Return the config as plain JSON, with the decision of the training set as `data.exif`."""
    content = config.model_dump(mode="json")
    content["data"]["exif"] = data.train.exif
    return content


def build_loop(
    config: RunConfig, data: TrainingData, state: TrainState, files: RunFolder, stop: StopRequest
) -> TrainLoop:
    """Build the training loop of a run; on a GPU, run the largest possible batch once first."""
    criterion = build_criterion(config)
    train = config.train
    is_on_gpu = state.device.type == "cuda"
    if is_on_gpu:  # out-of-memory errors surface before training, and memory fragments less
        warm_up(state, criterion, num_images=fixed_micro_batch(config), size=largest_size(config))
    loader = build_loader(
        data.train_samples,
        data.sampler,
        num_workers=config.data.num_workers,
        pin_memory=is_on_gpu,
        max_padded_pixels=config.data.max_padded_pixels,
        timeout_s=train.timeout_s,
    )
    return TrainLoop(
        criterion=criterion,
        loader=loader,
        sampler=data.sampler,
        folder=files,
        validation=_build_validation(config, data, pin_memory=is_on_gpu),
        seed=train.seed,
        epochs=train.epochs,
        max_steps=train.max_steps,
        max_grad_norm=train.clip_norm,
        log_every_steps=train.log_every,
        checkpoint_every_steps=train.checkpoint_every,
        timeout_s=train.timeout_s,
        early_stopping=None
        if train.early_stopping is None
        else EarlyStopping(train.early_stopping.patience, train.early_stopping.min_delta),
        stop=stop,
    )


def _build_validation(config: RunConfig, data: TrainingData, *, pin_memory: bool) -> Validation:
    return Validation(
        build_evaluation_loader(
            data.val,
            build_eval_transform(config.data),
            batch_size=config.train.eval_batch,
            num_workers=config.data.num_workers,
            pin_memory=pin_memory,
            timeout_s=config.train.timeout_s,
        ),
        data.val.annotations,
        every_epochs=config.train.eval_every_epochs,
        with_loss=config.train.validation_loss,
        clip=clips_in_evaluation(config),
        describe=data.val.describe_id,
    )
