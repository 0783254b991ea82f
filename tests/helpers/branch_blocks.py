"""Re-parameterized blocks with random weights and statistics, and their oracles in float64."""

import torch
from torch import nn
from torch.nn import functional as F

from deformable_detr.layers.reparam.blocks import ACBlock, DiverseBranchBlock

# in_channels, out_channels, groups; as measured with the published code
CHANNELS = [(32, 64, 1), (32, 64, 2), (32, 32, 32), (32, 32, 1)]


def randomize(module):
    """Randomize weights with torch's initial magnitude, and norms around their initial values."""
    for name, tensor in module.state_dict().items():
        with torch.no_grad():
            if name.endswith("num_batches_tracked"):
                continue
            if tensor.ndim == 4:
                tensor.normal_(std=(3 * tensor[0].numel()) ** -0.5)
            elif name.endswith(("running_mean", "bias")):
                tensor.uniform_(-0.5, 0.5)
            else:  # gamma, running_var
                tensor.uniform_(0.5, 1.5)
    return module


def random_block(kind, *args, **options):
    return randomize(kind(*args, **options)).eval()


def oracle(block, features):
    """Compute the sum of the branches with the functional API from the state dict."""
    state = {name: tensor.double() for name, tensor in block.state_dict().items()}
    compute = {ACBlock: _ac_oracle, DiverseBranchBlock: _dbb_oracle}[type(block)]
    output = compute(block, state, features.double())
    return output + state["bias"][:, None, None] if "bias" in state else output


def _norm(state, prefix, features):
    names = ("running_mean", "running_var", "weight", "bias")
    return F.batch_norm(features, *(state[f"{prefix}.{name}"] for name in names), eps=1e-5)


def _dbb_oracle(block, state, features):
    window, groups = block.window, block.groups
    stride, dilation = window.stride, window.dilation
    rows, columns = window.padding
    # Pad the input with zeros; each branch then makes its own border of them.
    padded = F.pad(features, (columns, columns, rows, rows))

    def conv(inputs, weight, **geometry):
        return F.conv2d(inputs, weight, groups=groups, **geometry)

    def pool(inputs):
        k, C = window.kernel_size[0], inputs.shape[1]
        ones = inputs.new_ones(C, 1, k, k)
        return F.conv2d(inputs, ones, stride=stride, dilation=dilation, groups=C) / k**2

    looking = {"stride": stride, "dilation": dilation}
    origin = conv(padded, state["dbb_origin.conv.weight"], **looking)
    output = _norm(state, "dbb_origin.bn", origin)
    if "dbb_1x1.conv.weight" in state:
        pixel = conv(features, state["dbb_1x1.conv.weight"], stride=stride)
        output = output + _norm(state, "dbb_1x1.bn", pixel)
    averaged = padded
    if "dbb_avg.conv.weight" in state:
        averaged = _norm(state, "dbb_avg.bn.bn", conv(padded, state["dbb_avg.conv.weight"]))
    output = output + _norm(state, "dbb_avg.avgbn", pool(averaged))
    if "dbb_1x1_kxk.idconv1.weight" in state:
        inner = padded + conv(padded, state["dbb_1x1_kxk.idconv1.weight"])
    else:
        inner = conv(padded, state["dbb_1x1_kxk.conv1.weight"])
    inner = _norm(state, "dbb_1x1_kxk.bn1.bn", inner)
    chained = conv(inner, state["dbb_1x1_kxk.conv2.weight"], **looking)
    return output + _norm(state, "dbb_1x1_kxk.bn2", chained)


def _ac_oracle(block, state, features):
    window, size = block.window, block.window.kernel_size[0]
    output = 0.0
    for branch in ("square", "ver", "hor"):
        weight = state[f"{branch}_conv.weight"]
        whole = weight.new_zeros(*weight.shape[:2], size, size)
        middle = size // 2
        if branch == "square":
            whole = weight
        elif branch == "ver":
            whole[..., middle] = weight[..., 0]
        else:
            whole[..., middle, :] = weight[..., 0, :]
        geometry = (window.stride, window.padding, window.dilation, block.groups)
        output = output + _norm(state, f"{branch}_bn", F.conv2d(features, whole, None, *geometry))
    return output


def norms_of(module):
    return [m for m in module.modules() if hasattr(m, "running_mean")]


def count_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def pair(norm, *args, **options):
    """Make a random convolution and the norm after it, in eval mode."""
    conv = nn.Conv2d(*args, **options)
    return randomize(nn.Sequential(conv, norm(conv.out_channels))).eval()
