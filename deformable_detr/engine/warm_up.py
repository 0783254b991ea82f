"""The largest batch first, so that a run which needs too much memory ends before its first step."""

import torch

from deformable_detr.data.collate import Batch
from deformable_detr.engine.precision import autocast
from deformable_detr.engine.state import TrainState
from deformable_detr.engine.step_losses import with_mimicking
from deformable_detr.losses.criterion import SetCriterion
from deformable_detr.structures import ImageBatch, Size, Target


def warm_up(state: TrainState, criterion: SetCriterion, *, num_images: int, size: Size) -> None:
    """One forward and backward pass that leaves no trace: no weight, gradient, or random state.

    The allocator then holds the largest blocks that it will be asked for, rather than to find
    room for them later between smaller ones.

    Args:
        state: is left as it was.
        criterion: of the run.
        num_images: in the largest micro-batch.
        size: (height, width) of the largest micro-batch.

    Raises:
        RuntimeError: there is not enough memory.
    """
    device, model = state.device, state.model
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    was_training = model.training
    model.train()
    cuda_devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=cuda_devices):
            batch = _random_batch(num_images, size).to(device)
            with autocast(state.precision, device):
                output = model(batch.images)
            result = criterion(output, batch.targets, 1.0)
            with autocast(state.precision, device):
                losses = with_mimicking(model, batch, output, result, 1.0)
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            torch.autograd.grad(losses["total"], trained)
    except torch.OutOfMemoryError as error:
        height, width = size
        raise RuntimeError(
            f"the largest micro-batch of this run, {num_images} images of {height} x {width} "
            "pixels, must fit into memory, and does not; lower train.micro_batch or the sizes of "
            "data.augmentation, or set data.max_padded_pixels, train.gradient_checkpointing=true "
            "or train.precision=bfloat16"
        ) from error
    finally:
        model.train(was_training)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])


def _random_batch(num_images: int, size: Size) -> Batch:
    """Noise without padding, and one object in each image."""
    images = ImageBatch(
        torch.rand(num_images, 3, *size), torch.zeros(num_images, *size, dtype=torch.bool)
    )
    target = Target(torch.tensor([[0.5, 0.5, 0.9, 0.9]]), torch.zeros(1, dtype=torch.int64))
    return Batch(images, (target,) * num_images)
