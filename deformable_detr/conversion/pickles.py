"""Read files written by any version of `torch.save`, without running any code in them.

PyTorch's weights-only unpickler reads tensors and plain values. It also gets stand-ins for the
few classes in checkpoints of other implementations, such as the options of a run; they store
their state and do nothing else. Any other class is an error.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from deformable_detr.files.torch_files import load_torch_file
from deformable_detr.messages import shown


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
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds anything but data, or asks for more memory than its
            own size.
    """
    return load_torch_file(path, f"checkpoint {shown(path)}", stand_ins=_STAND_INS, mmap=True)
