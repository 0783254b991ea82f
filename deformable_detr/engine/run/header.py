"""What a run prints before its first step, in numbers."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.optim import Optimizer

from deformable_detr.ops import Backend, resolve_backend


def describe_batch(*, total_batch: int, micro_batch: int, world_size: int) -> str:
    """The total batch and what it is made of; where shares are uneven, what that costs."""
    accumulation, rest = divmod(total_batch // micro_batch, world_size)
    if rest:
        return (
            f"{total_batch} = {total_batch // micro_batch} x {micro_batch} images, {accumulation} "
            f"or {accumulation + 1} times for each of {world_size} processes, some of which wait"
        )
    return (
        f"{total_batch} = {micro_batch} images x "
        f"{world_size} {'process' if world_size == 1 else 'processes'} x "
        f"{accumulation} {'accumulation' if accumulation == 1 else 'accumulations'}"
    )


def describe_device(device: torch.device, backend: Backend) -> str:
    """Where a run computes, and what deformable attention runs on there."""
    resolved = resolve_backend(backend, device)
    chosen = resolved if backend == resolved else f"{backend}: {resolved}"
    return f"{device}, attention back-end {chosen}"


def describe_parameters(model: nn.Module) -> str:
    """How many parameters a model has, and how many of them learn."""
    total = sum(parameter.numel() for parameter in model.parameters())
    trainable = sum(
        parameter.numel() for parameter in model.parameters() if parameter.requires_grad
    )
    return f"{total:,} ({trainable:,} trainable)"


def describe_learning_rates(optimizer: Optimizer) -> str:
    """The rate of every group of parameters that is trained, before the schedule's factor."""
    return ", ".join(f"{group['role']} {group['initial_lr']:g}" for group in optimizer.param_groups)


def describe_dataset(num_images: int, num_dropped: Mapping[str, int]) -> str:
    """The size of a data set and what was left out of it, by reason."""
    dropped = ", ".join(
        f"{count} boxes dropped: {reason}" for reason, count in num_dropped.items() if count
    )
    return f"{num_images:,} images" + (f" ({dropped})" if dropped else "")
