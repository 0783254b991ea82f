"""Summary of a run that is printed before its first step."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.optim import Optimizer

from deformable_detr.messages import counted
from deformable_detr.ops import Backend, resolve_backend


def describe_batch(*, total_batch: int, micro_batch: int, world_size: int) -> str:
    """Describe the factors of the total batch, and the cost of uneven shares."""
    accumulation, rest = divmod(total_batch // micro_batch, world_size)
    if rest:
        return (
            f"{total_batch} = {total_batch // micro_batch} x {micro_batch} images, {accumulation} "
            f"or {accumulation + 1} times for each of {world_size} processes, some of which wait"
        )
    return (
        f"{total_batch} = {micro_batch} images x "
        f"{counted(world_size, 'process')} x {counted(accumulation, 'accumulation')}"
    )


def describe_device(device: torch.device, backend: Backend) -> str:
    """Describe the device, and the back-end of deformable attention on it."""
    resolved = resolve_backend(backend, device)
    chosen = resolved if backend == resolved else f"{backend}: {resolved}"
    return f"{device}, attention back-end {chosen}"


def describe_parameters(model: nn.Module) -> str:
    """Describe the number of parameters, and of those that are trained."""
    total = sum(parameter.numel() for parameter in model.parameters())
    trainable = sum(
        parameter.numel() for parameter in model.parameters() if parameter.requires_grad
    )
    return f"{total:,} parameters ({trainable:,} trainable)"


def describe_learning_rates(optimizer: Optimizer) -> str:
    """Describe the learning rate of each parameter group, before the schedule's factor."""
    return ", ".join(f"{group['role']} {group['initial_lr']:g}" for group in optimizer.param_groups)


def describe_dataset(num_images: int, num_objects: int, num_dropped: Mapping[str, int]) -> str:
    """Describe the size of a data set, and the boxes dropped from it by reason."""
    dropped = ", ".join(
        f"{counted(count, 'box')} dropped: {reason}"
        for reason, count in num_dropped.items()
        if count
    )
    sizes = f"{counted(num_images, 'image')} with {counted(num_objects, 'object')}"
    return sizes + (f" ({dropped})" if dropped else "")
