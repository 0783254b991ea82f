"""Settings, classes and tensors of this package that files of other formats have no place for.

`convert` stores them under a key that the loaders of these formats ignore, so that a file read back
here has lost nothing: in the dictionary of a `.pth` file; in the metadata of a `.safetensors` file,
where they are dropped when another program saves other weights in its place.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from deformable_detr.arguments import MOST_ENTRIES, require_bounded
from deformable_detr.config.upgrade import upgrade
from deformable_detr.conversion.preprocessing import parse_json
from deformable_detr.files.torch_files import load_safetensors
from deformable_detr.finite import to_json
from deformable_detr.labels import LabelSpace
from deformable_detr.messages import shown
from deformable_detr.models.deformable_detr import DeformableDETR

KEY = "deformable_detr"
TENSORS_FILE = "deformable_detr.safetensors"  # beside a `.safetensors` file
COUNTER = "num_batches_tracked"  # of batch norms


@dataclass(frozen=True)
class Stored:
    """Content of a checkpoint that is stored beside the weights.

    Attributes:
        config: the whole config of the run, plain JSON; in a read one, keys have current names.
        categories: label space in COCO's form.
        tensors: tensors without an equivalent elsewhere, by our names: counters of batch norms, and
            parts that only training uses.
    """

    config: dict[str, Any]
    categories: list[dict[str, Any]]
    tensors: dict[str, Tensor]

    @classmethod
    def of(
        cls,
        model: DeformableDETR,
        label_space: LabelSpace,
        config: Mapping[str, Any],
        left_out: tuple[str, ...],
    ) -> "Stored":
        """Collect what is stored of a detector and the config of its run.

        Args:
            model: the detector.
            label_space: its classes.
            config: the config, plain JSON.
            left_out: beginnings of the names of tensors that the file has no other place for.
        """
        tensors = {
            name: tensor
            for name, tensor in model.state_dict().items()
            if name.endswith(COUNTER) or name.startswith(left_out)
        }
        return cls(dict(config), label_space.to_json(), tensors)

    @classmethod
    def from_plain(cls, content: object, what: str) -> "Stored":
        """Check the value of `KEY`.

        Args:
            content: the value.
            what: name of the file in errors.

        Raises:
            ValueError: it is not what `to_plain` returns.
        """
        given = content if isinstance(content, Mapping) else {}
        config, categories = given.get("config"), given.get("categories")
        tensors = given.get("tensors", {})
        if (
            not isinstance(config, dict)
            or not isinstance(categories, list)
            or not all(isinstance(category, dict) for category in categories)
            or not isinstance(tensors, dict)
            or not all(isinstance(tensor, Tensor) for tensor in tensors.values())
        ):
            raise ValueError(
                f"{KEY!r} of {what} must hold config, categories and tensors, as `convert` writes "
                f"them, got {type(content).__name__} of {sorted(map(str, given))}; "
                "convert the original again"
            )
        require_bounded(categories, f"categories of {what}", most=MOST_ENTRIES)
        try:
            return cls(upgrade(config), categories, tensors)
        except ValueError as error:
            raise ValueError(f"{KEY!r} of {what} has no usable config: {error}") from error

    def to_plain(self) -> dict[str, Any]:
        """Return the value of `KEY` in a `.pth` file."""
        return {"config": self.config, "categories": self.categories, "tensors": self.tensors}

    def write_beside(self, file: Path) -> dict[str, str]:
        """Write the tensors beside a `.safetensors` file, and return its metadata."""
        if self.tensors:
            tensors = {name: tensor.contiguous().clone() for name, tensor in self.tensors.items()}
            save_file(tensors, file.with_name(TENSORS_FILE))
        plain = {"config": self.config, "categories": self.categories}
        return {KEY: to_json({**plain, "tensors": sorted(self.tensors)}, f"metadata of {file}")}


def read_stored(file: Path, what: str) -> Stored | None:
    """Read what is stored with a `.safetensors` file; None if nothing is.

    Raises:
        ValueError: what is stored is damaged or incomplete.
    """
    text = _metadata(file).get(KEY)
    if text is None:
        return None
    content = parse_json(text, f"{KEY!r} of {what}")
    if isinstance(content, dict) and (names := content.pop("tensors", None)):
        content["tensors"] = _read_tensors(file.with_name(TENSORS_FILE), names, what)
    return Stored.from_plain(content, what)


def _metadata(file: Path) -> dict[str, str]:
    """Read the metadata of a sound `.safetensors` file; `safe_open` opens names in UTF-8 only."""
    with file.open("rb") as opened:
        (size,) = struct.unpack("<Q", opened.read(8))
        header: dict[str, Any] = json.loads(opened.read(size))
    metadata: dict[str, str] = header.get("__metadata__") or {}
    return metadata


def _read_tensors(file: Path, names: object, what: str) -> dict[str, Tensor]:
    """Read the tensors beside a `.safetensors` file, which names them."""
    try:
        tensors = load_safetensors(file, f"file {shown(file)}")
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(
            f"{what} needs {file} beside it, which `convert` has written with it ({error}); "
            "copy it too"
        ) from error
    if sorted(tensors) != names:
        raise ValueError(f"{file} must belong to {what}, got {len(tensors)} other tensors")
    return tensors
