"""Base classes of re-parameterized blocks: fusion, geometry, norms."""

import copy
import functools
from abc import abstractmethod
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from typing_extensions import Self

from deformable_detr.layers.norm import (
    FixedStatisticsNorm2d,
    Norm,
    is_affine_norm,
    statistics,
    uses_batch_statistics,
)
from deformable_detr.layers.reparam.algebra import Kernel
from deformable_detr.layers.reparam.branches import NormLayer
from deformable_detr.layers.reparam.windows import conv_through, square_window
from deformable_detr.ops.geometry import IntPair

Statistics = Literal["frozen", "train"]
BlockInit = Literal["own_branch", "paper"]
DEFAULT_NORM_EPS = 1e-5  # of nn.BatchNorm2d
DEFAULT_NORM_MOMENTUM = 0.1  # of nn.BatchNorm2d


class ReparameterizedBlock(nn.Module):
    """Base class of blocks whose branches are equivalent to one convolution."""

    @abstractmethod
    def equivalent_kernel(self) -> Kernel:
        """Compute the kernel for the stored statistics; differentiable in every parameter."""

    @abstractmethod
    def fuse(self) -> nn.Conv2d:
        """Return a new convolution that is equivalent to the block in eval mode.

        Raises:
            ValueError: the block uses the statistics of the batch in its current mode.
        """


class BranchBlock(ReparameterizedBlock):
    """Geometry, norms and fusion shared by both blocks.

    The kernel is square and odd; the subclasses document the arguments. Each implements
    `_own_branch`, the convolution and norm of the whole kernel, and `_branches_kernel`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair,
        padding: IntPair,
        dilation: IntPair,
        groups: int,
        bias: bool,
        *,
        norm: Statistics,
        init: BlockInit = "own_branch",
        norm_eps: float = DEFAULT_NORM_EPS,
        norm_momentum: float | None = DEFAULT_NORM_MOMENTUM,
    ) -> None:
        super().__init__()
        _require_choice("norm", norm, get_args(Statistics))
        _require_choice("init", init, get_args(BlockInit))
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                "in_channels and out_channels must be divisible by groups, got "
                f"{in_channels}, {out_channels} and {groups}"
            )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.norm: Statistics = norm
        self.window = square_window(
            kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation
        )
        self.norm_layer: NormLayer = (
            functools.partial(FixedStatisticsNorm2d, eps=norm_eps)
            if norm == "frozen"
            else functools.partial(nn.BatchNorm2d, eps=norm_eps, momentum=norm_momentum)
        )
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    @classmethod
    def from_conv_norm(
        cls,
        conv: nn.Conv2d,
        conv_norm: nn.Module | None,
        *,
        norm: Statistics = "frozen",
        init: BlockInit = "own_branch",
    ) -> Self:
        """Build a block to replace a trained convolution and the norm after it.

        They become the branch of the whole kernel. With `init="own_branch"` the other branches
        start at zero: in eval mode, and with `norm="frozen"` also in train mode, the block
        computes the same as the pair in eval mode. All norms of the block get the eps of the
        norm, and with `norm="train"` its momentum; they are synchronized between processes if it
        is. Their gamma and beta are trained, even if the norm has none.

        Args:
            conv: convolution with a square, odd kernel and zero padding.
            conv_norm: a batch norm, frozen or not, or None if there is none; the block then keeps
                the bias of the convolution as its own.
            norm: as for the block.
            init: as for the block.

        Raises:
            ValueError: the convolution or the norm is of an unsupported kind.
        """
        if (
            type(conv) is not nn.Conv2d
            or conv.padding_mode != "zeros"
            or isinstance(conv.padding, str)
        ):
            raise ValueError(
                f"conv must be an nn.Conv2d that pads with a number of zeros, got {conv}"
            )
        if conv_norm is not None and not is_affine_norm(conv_norm):
            raise ValueError(
                f"conv_norm must be a batch norm that stores statistics, or None, got {conv_norm}"
            )
        # Each is a pair of numbers, but nn.Conv2d is typed less strictly.
        names = ("kernel_size", "stride", "padding", "dilation")
        geometry: dict[str, Any] = {name: getattr(conv, name) for name in names}
        block = cls(
            conv.in_channels,
            conv.out_channels,
            **geometry,
            groups=conv.groups,
            bias=conv_norm is None and conv.bias is not None,
            norm=norm,
            init=init,
            norm_eps=DEFAULT_NORM_EPS if conv_norm is None else conv_norm.eps,
            norm_momentum=getattr(conv_norm, "momentum", DEFAULT_NORM_MOMENTUM),
        )
        block._load_own_branch(conv, conv_norm)
        if isinstance(conv_norm, nn.SyncBatchNorm) and norm == "train":
            block = nn.SyncBatchNorm.convert_sync_batchnorm(block, conv_norm.process_group)
        return block.to(conv.weight.device, conv.weight.dtype).train(conv.training)

    @torch.no_grad()
    def _load_own_branch(self, conv: nn.Conv2d, conv_norm: Norm | None) -> None:
        own_conv, own_norm = self._own_branch()
        own_mean, own_variance = statistics(own_norm)
        own_conv.weight.copy_(conv.weight)
        if conv_norm is None:
            own_variance.fill_(1 - own_norm.eps)  # the norm is the identity
            if self.bias is not None and conv.bias is not None:
                self.bias.copy_(conv.bias)
            return
        mean, variance = statistics(conv_norm)
        own_mean.copy_(mean if conv.bias is None else mean - conv.bias)
        own_variance.copy_(variance)
        counters = [getattr(one, "num_batches_tracked", None) for one in (own_norm, conv_norm)]
        if counters[0] is not None and counters[1] is not None:
            counters[0].copy_(counters[1])  # without a momentum, the weight of the next batch
        if conv_norm.weight is not None:
            own_norm.weight.copy_(conv_norm.weight)
        if conv_norm.bias is not None:
            own_norm.bias.copy_(conv_norm.bias)

    @abstractmethod
    def _own_branch(self) -> tuple[nn.Conv2d, Norm]:
        """Return the KxK convolution and its norm."""

    @abstractmethod
    def _branches_kernel(self) -> Kernel:
        """Compute the kernel of all branches, without the block's own bias."""

    def _add_bias(self, output: Tensor) -> Tensor:
        return output if self.bias is None else output + self.bias[:, None, None]

    def equivalent_kernel(self) -> Kernel:
        """See `ReparameterizedBlock`."""
        weight, bias = self._branches_kernel()
        return Kernel(weight, bias if self.bias is None else bias + self.bias)

    def fuse(self) -> nn.Conv2d:
        """See `ReparameterizedBlock`; the kernel is computed in float64 and rounded once."""
        if any(uses_batch_statistics(module) for module in self.modules()):
            raise ValueError(
                "the block must be in eval mode to be fused, got train mode, where norm='train' "
                "uses the statistics of the batch; call eval() first"
            )
        with torch.no_grad():
            own = self._own_branch()[0].weight
            exact = copy.deepcopy(self).to("cpu", torch.float64).equivalent_kernel()
            # On "meta", no initial values are drawn from the global random number generator.
            with torch.device("meta"):
                conv = conv_through(
                    self.window, self.in_channels, self.out_channels, groups=self.groups, bias=True
                )
            conv.weight, conv.bias = (nn.Parameter(tensor.to(own)) for tensor in exact)
        return conv.train(self.training)

    def extra_repr(self) -> str:
        """See `nn.Module`."""
        window = self.window
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={window.kernel_size}, "
            f"stride={window.stride}, padding={window.padding}, dilation={window.dilation}, "
            f"groups={self.groups}, bias={self.bias is not None}, norm={self.norm!r}"
        )


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")
