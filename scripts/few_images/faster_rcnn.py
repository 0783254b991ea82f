"""torchvision's Faster R-CNN, with the backbone, images and augmentation of the preset.

The backbone is the MobileNetV2 of the preset with frozen batch norms and a frozen stem, under a
feature pyramid of strides 8, 16, 32 and 64. Anchors have one size per level, from the quantiles of
the training boxes as the model sees them, and three aspect ratios. Training is torchvision's:
stochastic gradient descent with momentum; with warm-up and cosine schedule of the preset.
"""

import contextlib
import io
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torchvision
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import MultiScaleRoIAlign, box_convert
from torchvision.ops.misc import FrozenBatchNorm2d

from deformable_detr.builders import build_eval_transform
from deformable_detr.config import RunConfig
from deformable_detr.data.collate import Batch
from deformable_detr.data.loader import build_evaluation_loader, build_loader
from deformable_detr.engine.run.folder import RunFolder
from deformable_detr.workflows.before_training.settings import settings_of_run
from deformable_detr.workflows.training_parts import TrainingData
from few_images.measured import DivergedError, Run, seconds_per_step
from few_images.preset import METRICS, length_of

# Last block of MobileNetV2 before each stride doubles, and its number of channels.
BLOCKS = {8: (6, 32), 16: (13, 96), 32: (18, 1280)}
FROZEN_BLOCKS = 4  # those up to stride 4, as model.backbone.freeze_up_to_stride
DETECTIONS = 300
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4  # torchvision's reference scripts
ANCHOR_BATCHES = 10
_LR = "lr="


def train_faster_rcnn(
    data: Path, settings: Sequence[str], *, seed: int, steps: int, folder: Path
) -> Run:
    """Train Faster R-CNN; see `Trainer`. The setting `lr` is its learning rate."""
    lr = float(next(one for one in settings if one.startswith(_LR)).removeprefix(_LR))
    own = [one for one in settings if not one.startswith(_LR)]
    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    config = settings_of_run(
        None,
        RunFolder(folder),
        data=data,
        split_by=None,
        overrides=[*length_of(steps), f"train.seed={seed}", *own],
        resume=False,
        finetune_from=None,
        device=torch.device("cpu"),
    ).config
    opened = TrainingData.open(config)
    model = build_faster_rcnn(config, opened)
    marks = _train(model, config, opened, lr=lr, steps=steps)
    return Run(seconds_per_step(marks), _evaluate(model, config, opened))


def build_faster_rcnn(config: RunConfig, data: TrainingData) -> FasterRCNN:
    """Build the detector, with the weights of its backbone and anchors that fit the data."""
    backbone = torchvision.models.mobilenet_v2(norm_layer=FrozenBatchNorm2d)
    weights = torch.load(getattr(config.model.backbone, "weights", ""), weights_only=True)
    backbone.load_state_dict(
        {key: one for key, one in weights.items() if not key.endswith("num_batches_tracked")}
    )
    for block in backbone.features[:FROZEN_BLOCKS]:
        block.requires_grad_(False)
    names = [str(level) for level in range(len(BLOCKS))]
    pyramid = BackboneWithFPN(
        backbone.features,
        {str(block): name for (block, _), name in zip(BLOCKS.values(), names, strict=True)},
        [channels for _, channels in BLOCKS.values()],
        256,
    )
    sides = _box_sides(data)
    levels = len(BLOCKS) + 1  # and the pooled one
    sizes = np.quantile(sides, [(level + 0.5) / levels for level in range(levels)])
    return FasterRCNN(
        pyramid,
        data.train.label_space.num_classes + 1,  # and background
        rpn_anchor_generator=AnchorGenerator(
            tuple((float(size),) for size in sizes), ((0.5, 1.0, 2.0),) * levels
        ),
        box_roi_pool=MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2),
        box_detections_per_img=DETECTIONS,
        box_score_thresh=0.01,
        image_mean=[0.0] * 3,  # images are normalized already, and have their size
        image_std=[1.0] * 3,
        _skip_resize=True,
    )


def _box_sides(data: TrainingData) -> list[float]:
    """Return the square roots of box areas in a sample of augmented images, in pixels."""
    loader = build_loader(data.train_samples, data.sampler, num_workers=0, pin_memory=False)
    sides: list[float] = []
    for batch, _ in zip(loader, range(ANCHOR_BATCHES), strict=False):
        for boxes in (one["boxes"] for one in _unpadded(batch)[1]):
            sides += (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt().tolist()
    return sides


def _unpadded(batch: Batch) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Return images of different sizes, and their targets as torchvision wants them."""
    images, targets = [], []
    for image, mask, target in zip(
        batch.images.images, batch.images.padding_mask, batch.targets, strict=True
    ):
        height, width = int((~mask[:, 0]).sum()), int((~mask[0]).sum())
        images.append(image[:, :height, :width])
        boxes = target.boxes * torch.tensor([width, height, width, height])
        boxes = box_convert(boxes, "cxcywh", "xyxy")
        whole = (boxes[:, 2:] > boxes[:, :2]).all(1)
        targets.append({"boxes": boxes[whole], "labels": target.labels[whole] + 1})
    return images, targets


def _batches(data: TrainingData, steps: int) -> Iterator[Batch]:
    loader = build_loader(data.train_samples, data.sampler, num_workers=0, pin_memory=False)
    done = epoch = 0
    while done < steps:
        data.sampler.set_epoch(epoch)
        for batch in loader:
            yield batch
            done += 1
            if done == steps:
                return
        epoch += 1


def _train(
    model: nn.Module, config: RunConfig, data: TrainingData, *, lr: float, steps: int
) -> list[tuple[int, float]]:
    """Train; return (step, processor time)."""
    parameters = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    warmup = config.train.schedule.warmup_steps

    def factor(step: int) -> float:
        share = max(step - warmup, 0) / max(steps - warmup, 1)
        return min((step + 1) / warmup, 1.0) * (1 + math.cos(math.pi * share)) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    model.train()
    marks = []
    for step, batch in enumerate(_batches(data, steps), 1):
        images, targets = _unpadded(batch)
        loss = sum(model(images, targets).values())
        if not math.isfinite(loss.item()):
            raise DivergedError(f"the loss of step {step} is {loss.item()}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        marks.append((step, time.process_time()))
    return marks


@torch.no_grad()
def _evaluate(model: nn.Module, config: RunConfig, data: TrainingData) -> dict[str, float]:
    """Score the validation set with pycocotools."""
    loader = build_evaluation_loader(
        data.val,
        build_eval_transform(config.data),
        batch_size=config.train.eval_batch,
        num_workers=0,
        pin_memory=False,
    )
    model.eval()
    results = []
    for batch in loader:
        images, _ = _unpadded(batch)
        for image, target, found in zip(images, batch.targets, model(images), strict=True):
            height, width = target.original_size
            scale = torch.tensor([width / image.shape[2], height / image.shape[1]] * 2)
            boxes = box_convert(found["boxes"] * scale, "xyxy", "xywh")
            ids = data.train.label_space.ids_of((found["labels"] - 1).numpy())
            results += [
                {"image_id": target.image_id, "category_id": key, "bbox": box, "score": score}
                for key, box, score in zip(
                    ids.tolist(), boxes.tolist(), found["scores"].tolist(), strict=True
                )
            ]
    if not results:
        return dict.fromkeys(METRICS, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(config.data.val.annotations))
        scored = COCOeval(truth, truth.loadRes(results), "bbox")
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    return dict(zip(METRICS, map(float, scored.stats), strict=False))
