"""Batch norms on stored statistics: affine maps of every channel."""

from typing import TypeAlias, TypeGuard

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d


class FixedStatisticsNorm2d(nn.Module):
    """Batch norm on its stored statistics, in training too; gamma and beta are trained.

    For batches of one or two images, whose own statistics say little. Names in the state dict
    are those of `nn.BatchNorm2d`, its counter included, so that either loads the other's. It is
    not a subclass, so that what freezes or synchronizes batch norms leaves it alone.

    Args:
        num_features: C.
        eps: added to the variance.
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
        """(N, C, H, W) -> (N, C, H, W)."""
        return nn.functional.batch_norm(
            features, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )

    def extra_repr(self) -> str:
        """See `nn.Module`."""
        return f"{self.num_features}, eps={self.eps}"


Norm: TypeAlias = FixedStatisticsNorm2d | nn.BatchNorm2d | nn.SyncBatchNorm | FrozenBatchNorm2d
_NORMS = (FixedStatisticsNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)


def is_affine_norm(module: nn.Module) -> TypeGuard[Norm]:
    """True if `module` is, in eval mode, nothing but an affine map of every channel.

    Subclasses are not: timm's, for one, hold an activation.
    """
    return type(module) in _NORMS and module.running_mean is not None


def uses_batch_statistics(norm: nn.Module) -> bool:
    """True if `norm` would now normalize by the statistics of the batch."""
    return norm.training and isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm)


def statistics(norm: Norm) -> tuple[Tensor, Tensor]:
    """The stored mean and variance, both (C,).

    Raises:
        ValueError: the norm stores none.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("norm must store statistics, got one with track_running_stats=False")
    return norm.running_mean, norm.running_var


def scale_and_shift(norm: Norm) -> tuple[Tensor, Tensor]:
    """The norm on its stored statistics as `scale * x + shift`: two of (C,), differentiable.

    Raises:
        ValueError: the norm stores none.
    """
    mean, variance = statistics(norm)
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = norm.weight * scale
    shift = -mean * scale
    return scale, shift if norm.bias is None else norm.bias + shift
