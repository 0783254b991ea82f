"""Blocks that are trained as several branches and can be fused into one convolution."""

from torch import Tensor, nn

from deformable_detr.layers.norm import Norm
from deformable_detr.layers.reparam.algebra import (
    Kernel,
    add_branches,
    fuse_conv_norm,
    kernel_of,
    pad_kernel,
)
from deformable_detr.layers.reparam.base import (
    DEFAULT_NORM_EPS,
    DEFAULT_NORM_MOMENTUM,
    BlockInit,
    BranchBlock,
    Statistics,
)
from deformable_detr.layers.reparam.branches import AverageBranch, ChainBranch, ConvNormBranch
from deformable_detr.layers.reparam.windows import conv_through
from deformable_detr.ops.geometry import ConvGeometry, IntPair


class ACBlock(BranchBlock):
    """Asymmetric convolution block (ACNet, ICCV 2019): sum of KxK, Kx1 and 1xK with a norm each.

    Names in the state dict are those of the published implementation.

    Args:
        in_channels: C_in; as for `nn.Conv2d`, like the six arguments that follow.
        out_channels: C_out.
        kernel_size: odd, and equal in both directions.
        stride: stride of all branches.
        padding: any number of zeros.
        dilation: dilation of all branches.
        groups: groups of all branches.
        bias: whether to add a bias to the sum, in addition to those of the norms.
        norm: "frozen" keeps the norms' statistics and trains their gamma and beta; "train" is
            `nn.BatchNorm2d`, for batches that are large enough.
        init: "own_branch" starts the gammas of Kx1 and 1xK at 0, so that the block starts as a
            convolution and its norm; "paper" starts all gammas at 1.
        norm_eps: constant added to the variances.
        norm_momentum: weight of a batch in the norms' statistics with norm "train"; None for the
            average of all batches.

    Raises:
        ValueError: the kernel is not square and odd, or a value is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair = 1,
        padding: IntPair = 0,
        dilation: IntPair = 1,
        groups: int = 1,
        bias: bool = False,
        *,
        norm: Statistics = "frozen",
        init: BlockInit = "own_branch",
        norm_eps: float = DEFAULT_NORM_EPS,
        norm_momentum: float | None = DEFAULT_NORM_MOMENTUM,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            norm=norm,
            init=init,
            norm_eps=norm_eps,
            norm_momentum=norm_momentum,
        )
        window, channels = self.window, (in_channels, out_channels)
        rows, columns = window.padding
        middle_row, middle_column = _middle(window)
        # The single column is in the middle of the window, and so may need less padding than the
        # square, or no padding and a cropped map.
        self._crop = (max(middle_row - rows, 0), max(middle_column - columns, 0))
        column = ConvGeometry(
            (window.kernel_size[0], 1),
            window.stride,
            (rows, max(columns - middle_column, 0)),
            window.dilation,
        )
        row = ConvGeometry(
            (1, window.kernel_size[1]),
            window.stride,
            (max(rows - middle_row, 0), columns),
            window.dilation,
        )
        self.square_conv = conv_through(window, *channels, groups=groups)
        self.square_bn = self.norm_layer(out_channels)
        self.ver_conv = conv_through(column, *channels, groups=groups)
        self.hor_conv = conv_through(row, *channels, groups=groups)
        self.ver_bn = self.norm_layer(out_channels)
        self.hor_bn = self.norm_layer(out_channels)
        if init == "own_branch":
            nn.init.zeros_(self.ver_bn.weight)
            nn.init.zeros_(self.hor_bn.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, output height, output width), like `nn.Conv2d`."""
        rows, columns = self._crop
        height, width = features.shape[2:]
        square = self.square_bn(self.square_conv(features))
        vertical = self.ver_bn(self.ver_conv(features[..., columns : width - columns]))
        horizontal = self.hor_bn(self.hor_conv(features[..., rows : height - rows, :]))
        return self._add_bias(square + vertical + horizontal)

    def _own_branch(self) -> tuple[nn.Conv2d, Norm]:
        return self.square_conv, self.square_bn

    def _branches_kernel(self) -> Kernel:
        vertical = fuse_conv_norm(kernel_of(self.ver_conv), self.ver_bn)
        horizontal = fuse_conv_norm(kernel_of(self.hor_conv), self.hor_bn)
        return add_branches(
            fuse_conv_norm(kernel_of(self.square_conv), self.square_bn),
            pad_kernel(vertical, self.window.kernel_size),
            pad_kernel(horizontal, self.window.kernel_size),
        )


class DiverseBranchBlock(BranchBlock):
    """Diverse Branch Block (CVPR 2021): sum of KxK; 1x1; 1x1, then KxK; and 1x1, then average.

    Each convolution and the average has a norm. A depthwise block has no 1x1 branch, and averages
    its input. Names in the state dict are those of the published implementation; unlike there,
    dilation applies to all branches.

    Args:
        in_channels: C_in; as for `nn.Conv2d`, like the six arguments that follow.
        out_channels: C_out.
        kernel_size: odd, and equal in both directions.
        stride: stride of all branches.
        padding: dilation * (kernel_size // 2) zeros, so that the 1x1 reads the middle.
        dilation: dilation of all branches.
        groups: groups of all branches.
        bias: whether to add a bias to the sum, in addition to those of the norms.
        norm: as for `ACBlock`.
        init: "own_branch" starts the last gamma of all branches but KxK at 0, so that the block
            starts as a convolution and its norm; "paper" starts all gammas at 1.
        norm_eps: constant added to the variances.
        norm_momentum: weight of a batch in the norms' statistics with norm "train"; None for the
            average of all batches.
        internal_channels: channels between the 1x1 and the KxK of their branch; by default C_in,
            or twice that in a depthwise block, as published.

    Raises:
        ValueError: the kernel is not square and odd, the padding is another number, or a value is
            out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair = 1,
        padding: IntPair = 0,
        dilation: IntPair = 1,
        groups: int = 1,
        bias: bool = False,
        *,
        norm: Statistics = "frozen",
        init: BlockInit = "own_branch",
        norm_eps: float = DEFAULT_NORM_EPS,
        norm_momentum: float | None = DEFAULT_NORM_MOMENTUM,
        internal_channels: int | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            norm=norm,
            init=init,
            norm_eps=norm_eps,
            norm_momentum=norm_momentum,
        )
        window = self.window
        if window.padding != _middle(window):
            raise ValueError(
                f"padding must be dilation * (kernel_size // 2) = {_middle(window)}, "
                f"got {window.padding}"
            )
        is_depthwise = groups == in_channels == out_channels
        if internal_channels is None:
            internal_channels = 2 * in_channels if is_depthwise else in_channels
        if internal_channels < 1 or internal_channels % groups:
            raise ValueError(
                f"internal_channels must be divisible by groups = {groups}, got {internal_channels}"
            )
        self._build_branches(internal_channels, has_1x1=not is_depthwise)
        if init == "own_branch":
            nn.init.zeros_(self.dbb_avg.avgbn.weight)
            nn.init.zeros_(self.dbb_1x1_kxk.bn2.weight)
            if self.dbb_1x1 is not None:
                nn.init.zeros_(self.dbb_1x1.bn.weight)

    def _build_branches(self, internal_channels: int, *, has_1x1: bool) -> None:
        channels = (self.in_channels, self.out_channels)
        groups, layer = self.groups, self.norm_layer
        conv = conv_through(self.window, *channels, groups=groups)
        self.dbb_origin = ConvNormBranch(conv, layer(self.out_channels))
        self.dbb_avg = AverageBranch(*channels, window=self.window, groups=groups, norm_layer=layer)
        self.dbb_1x1: ConvNormBranch | None = None
        if has_1x1:
            pixel = ConvGeometry((1, 1), self.window.stride)
            conv = conv_through(pixel, *channels, groups=groups)
            self.dbb_1x1 = ConvNormBranch(conv, layer(self.out_channels))
        self.dbb_1x1_kxk = ChainBranch(
            self.in_channels,
            internal_channels,
            self.out_channels,
            window=self.window,
            groups=groups,
            norm_layer=layer,
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, output height, output width), like `nn.Conv2d`."""
        output = self.dbb_origin(features) + self.dbb_avg(features) + self.dbb_1x1_kxk(features)
        if self.dbb_1x1 is not None:
            output = output + self.dbb_1x1(features)
        return self._add_bias(output)

    def _own_branch(self) -> tuple[nn.Conv2d, Norm]:
        return self.dbb_origin.conv, self.dbb_origin.bn

    def _branches_kernel(self) -> Kernel:
        kernels = [
            self.dbb_origin.equivalent_kernel(),
            self.dbb_avg.equivalent_kernel(),
            self.dbb_1x1_kxk.equivalent_kernel(),
        ]
        if self.dbb_1x1 is not None:
            pixel = self.dbb_1x1.equivalent_kernel()
            kernels.append(pad_kernel(pixel, self.window.kernel_size))
        return add_branches(*kernels)


def _middle(window: ConvGeometry) -> tuple[int, int]:
    """Return the distance (rows, columns) of the middle of an odd window from its first cell."""
    rows, columns = window.reach
    return rows // 2, columns // 2
