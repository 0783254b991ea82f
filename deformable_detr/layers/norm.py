"""Batch norms with stored statistics: an affine map per channel."""

from typing import TypeAlias, TypeGuard

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d


class FixedStatisticsNorm2d(nn.Module):
    """Batch norm that uses its stored statistics in training too; gamma and beta are trained.

    It is meant for batches of one or two images, whose own statistics are too noisy. Names in the
    state dict are those of `nn.BatchNorm2d`, including its counter, so that each can load the
    other's. It is not a subclass, so that code that freezes or synchronizes batch norms ignores it.

    Args:
        num_features: C.
        eps: constant added to the variance.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W)."""
        return nn.functional.batch_norm(
            features, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )

    def extra_repr(self) -> str:
        """See `nn.Module`."""
        return f"{self.num_features}, eps={self.eps}"


Norm: TypeAlias = FixedStatisticsNorm2d | nn.BatchNorm2d | nn.SyncBatchNorm | FrozenBatchNorm2d
_NORMS = (FixedStatisticsNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)


def is_affine_norm(module: nn.Module) -> TypeGuard[Norm]:
    """Return whether `module` is, in eval mode, just an affine map per channel.

    The answer is False for subclasses: timm's, for example, include an activation.
    """
    return type(module) in _NORMS and module.running_mean is not None


def uses_batch_statistics(norm: nn.Module) -> bool:
    """Return whether `norm` normalizes by the statistics of the batch in its current mode."""
    return norm.training and isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm)


def statistics(norm: Norm) -> tuple[Tensor, Tensor]:
    """Return the stored mean and variance, both (C,).

    Raises:
        ValueError: the norm stores none.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("norm must store statistics, got one with track_running_stats=False")
    return norm.running_mean, norm.running_var


def scale_and_shift(norm: Norm) -> tuple[Tensor, Tensor]:
    """Return the norm with stored statistics as `scale * x + shift`, both (C,), differentiable.

    Raises:
        ValueError: the norm stores none.
    """
    mean, variance = statistics(norm)
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = norm.weight * scale
    shift = -mean * scale
    return scale, shift if norm.bias is None else norm.bias + shift
