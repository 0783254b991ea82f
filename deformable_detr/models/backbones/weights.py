"""Pre-trained weights of a backbone: read from a file, and matched by name or by order."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from deformable_detr.files.torch_files import SAFETENSORS, load_safetensors, load_torch_file
from deformable_detr.messages import shown
from deformable_detr.models.backbones.input_channels import fit_input, with_input_channels

_BATCH_COUNTER = "num_batches_tracked"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors or .pth file, without running code from the file.

    A .pth file may contain the state dict itself, or have it under "state_dict" or "model".

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file does not contain a state dict.
    """
    what = f"backbone weights {shown(path)}"
    if path.suffix == SAFETENSORS:
        return load_safetensors(path, what)
    content = load_torch_file(path, what)
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(
        isinstance(value, Tensor) for value in content.values()
    ):
        raise ValueError(f"{what} must hold a state dict, got something else")
    return dict(content)


def load_backbone_weights(network: nn.Module, path: Path) -> None:
    """Load the weights of a classification network into `network`, which may be a part of it.

    Names match if they are equal apart from dots and underscores (timm's truncated networks write
    `blocks_0` for `blocks.0`). If names do not match, the file's tensors are taken in order, which
    fits files of the same architecture from another library; shapes and the last part of every
    name (weight, bias, running_mean, running_var) must then agree. A first convolution of three
    channels is adapted to the network's, see `repeat_input_channels`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file does not fit; names the first parameter that differs.
    """
    file_tensors = {
        name.removeprefix("module."): tensor
        for name, tensor in read_state_dict(path).items()
        if not name.endswith(_BATCH_COUNTER)
    }
    wanted = {
        name: tensor
        for name, tensor in network.state_dict().items()
        if not name.endswith(_BATCH_COUNTER)
    }
    by_name = {name.replace(".", "_"): tensor for name, tensor in file_tensors.items()}
    if all(name.replace(".", "_") in by_name for name in wanted):
        matched = {name: by_name[name.replace(".", "_")] for name in wanted}
    else:
        matched = _match_in_order(wanted, file_tensors, path)
    matched = with_input_channels(wanted, matched)
    for name, tensor in matched.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(
                f"backbone weights {path.name} must fit the network, but {name} has shape "
                f"{tuple(wanted[name].shape)} there and {tuple(tensor.shape)} in the file"
            )
    network.load_state_dict(matched, strict=False)


def _match_in_order(
    wanted: Mapping[str, Tensor], file_tensors: Mapping[str, Tensor], path: Path
) -> dict[str, Tensor]:
    matched = {}
    file_items = list(file_tensors.items())
    for position, (name, tensor) in enumerate(wanted.items()):
        if position >= len(file_items):
            raise ValueError(
                f"backbone weights {path.name} must hold the network's {len(wanted)} tensors, "
                f"got {len(file_items)}"
            )
        file_name, file_tensor = file_items[position]
        same_role = name.rpartition(".")[2] == file_name.rpartition(".")[2]
        if not same_role or tensor.shape != fit_input(file_tensor, tensor).shape:
            raise ValueError(
                f"backbone weights {path.name} must fit the network by name or by order, but "
                f"{name} {tuple(tensor.shape)} does not match {file_name} "
                f"{tuple(file_tensor.shape)}; is it the file of another architecture?"
            )
        matched[name] = file_tensor
    return matched
