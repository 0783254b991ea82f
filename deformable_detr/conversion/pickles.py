"""Read files written by any version of `torch.save`, without running any code in them.

PyTorch's weights-only unpickler reads tensors and plain values. It also gets stand-ins for the
few classes in checkpoints of other implementations, such as the options of a run; they store
their state and do nothing else. Any other class is an error.
"""

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from deformable_detr.engine.checkpoints.sealed_file import ZIP_MAGIC

# Exceptions that PyTorch raises for damaged files, depending on the damage.
_DAMAGE = (
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    OSError,
)


class Options:
    """Stand-in for `argparse.Namespace`: named values."""

    values: Mapping[str, Any] = MappingProxyType({})

    def __setstate__(self, state: Any) -> None:
        self.values = dict(state) if isinstance(state, Mapping) else {}


class _Unread:
    """Stand-in for objects that are not needed, such as NumPy numbers in a log."""

    def __new__(cls, *_: Any) -> "_Unread":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


class _Dictionary(dict[Any, Any]):
    """Stand-in for dictionaries with attributes."""

    def __setstate__(self, state: Any) -> None:
        pass


_UNREAD = (
    "numpy.dtype",
    "numpy.ndarray",
    *(
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float64", "Float32", "Int64", "Int32", "Bool")),
    "mmengine.logging.history_buffer.HistoryBuffer",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.WindowsPath",
)
_STAND_INS: tuple[tuple[type, str], ...] = (
    (Options, "argparse.Namespace"),
    (_Dictionary, "mmengine.config.config.ConfigDict"),
    (_Dictionary, "addict.addict.Dict"),
    *((_Unread, name) for name in _UNREAD),
)


def read_pickle(path: Path) -> Any:
    """Read a file that `torch.save` wrote; tensors are on the CPU, memory-mapped if possible.

    Raises:
        ValueError: the file is damaged, or holds anything but data.
    """
    _require_pickle(path)
    try:
        with torch.serialization.safe_globals(list(_STAND_INS)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about unusual pickle protocols
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"checkpoint {path} must hold tensors and plain values only, got other objects, "
            "which could run code when loaded; do not trust this file"
        ) from error
    except _DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"checkpoint {path} is damaged ({reason})") from error


def _require_pickle(path: Path) -> None:
    """Raise unless the file starts like an archive (new format) or a bare pickle (old)."""
    with path.open("rb") as file:
        start = file.read(len(ZIP_MAGIC))
    if start == ZIP_MAGIC and zipfile.is_zipfile(path):
        return
    if start != ZIP_MAGIC and start[:1] == pickle.PROTO:
        return
    kind = "is truncated" if start == ZIP_MAGIC else "is not a file that PyTorch wrote"
    raise ValueError(f"checkpoint {path} {kind} ({path.stat().st_size} bytes)")
