"""Files of tensors from anywhere, read without running code and in memory of about their size.

A file of `torch.save` may ask for more than it holds: by compressed entries, by tensors that repeat
one value, by objects that only a call creates. Such files are refused, before they are loaded where
that is possible.
"""

import io
import pickle
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor, nn

from deformable_detr.files import is_utf8, require_regular_file
from deformable_detr.messages import in_brief, shown

ZIP_MAGIC = b"PK\x03\x04"  # torch.save writes zip archives
SAFETENSORS = ".safetensors"
MOST_OPCODES = 5_000_000  # of a pickle; a checkpoint of ResNet-101 has 200,000
_BARE_PICKLES = 5  # before the tensors of the format without an archive
_MOST_VIEWS = 4  # times the size of the file, for tensors that share memory
_SLACK = 1 << 20
_FEW_BYTES = 8_000_000  # of a pickle that cannot have too many steps
_CALLS = {"builtins bytearray", "__builtin__ bytearray"}  # which allocate what they are told
_CALL_BYTES = tuple(one.replace(" ", "\n").encode() for one in _CALLS)
_DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
# Exceptions that PyTorch raises for damaged files, depending on the damage.
_DAMAGE = (
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    OSError,
    struct.error,
    zipfile.BadZipFile,
)
_ADVICE = ("weights_only", "torch.load", "torch.jit", "safe_globals")  # to run code of the file


def load_torch_file(
    path: Path, what: str, *, stand_ins: Sequence[tuple[type, str]] = (), mmap: bool = False
) -> Any:
    """Read a file that `torch.save` wrote onto the CPU; no code in it is ever run.

    Args:
        path: the file.
        what: name of the file in errors, as in "checkpoint a.pth".
        stand_ins: classes to use in place of foreign ones, with their full names.
        mmap: map the tensors of an archive into memory, instead of reading them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, is damaged, holds more than tensors and plain values, or
            asks for more memory than its own size.
    """
    require_regular_file(path, what.removesuffix(shown(path)).strip())
    try:
        is_archive = _check_pickles(path, what)
        with (
            torch.serialization.safe_globals(list(stand_ins)),
            warnings.catch_warnings(),
            path.open("rb") as file,
        ):
            warnings.simplefilter("ignore")  # warnings about unusual pickle protocols
            is_named = is_utf8(path)  # PyTorch opens no other names itself
            content = torch.load(
                path if is_named else file,
                map_location="cpu",
                weights_only=True,
                mmap=mmap and is_archive and is_named,
            )
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{what} must hold tensors and plain values only, got other objects, "
            "which could run code when loaded; do not trust this file"
        ) from error
    except RefusedFileError:
        raise
    except _DAMAGE as error:
        raise ValueError(f"{what} is damaged ({_reason(error)})") from error
    require_sound_tensors(content, path.stat().st_size, what)
    return content


def load_safetensors(path: Path, what: str) -> dict[str, Tensor]:
    """Read a file of safetensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, is damaged, or has tensors of unusual types.
    """
    require_regular_file(path, what.removesuffix(shown(path)).strip())
    try:
        tensors = load_file(path) if is_utf8(path) else load(path.read_bytes())
    except (SafetensorError, *_DAMAGE) as error:
        raise ValueError(f"{what} must be a safetensors file ({_reason(error)})") from error
    require_sound_tensors(tensors, path.stat().st_size, what)
    return tensors


class RefusedFileError(ValueError):
    """Error of a file that is not damaged, but asks for too much."""


def require_sound_tensors(content: Any, size: int, what: str) -> None:
    """Raise unless all tensors are dense, of a usual type, and have a number of their own per cell.

    Args:
        content: tensors in dictionaries and lists, in any depth.
        size: size of their file in bytes.
        what: name of the file in errors.

    Raises:
        RefusedFileError: a tensor is not; the message names it.
    """
    seen: set[int] = set()
    views: dict[tuple[Any, ...], int] = {}
    waiting: list[tuple[object, Any]] = [("it", content)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Tensor):
            if problem := _problem(value):
                raise RefusedFileError(f"tensor {in_brief(name)} of {what} must {problem}")
            bytes_ = value.numel() * value.element_size()
            views[value.data_ptr(), tuple(value.shape), value.stride()] = bytes_
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            inner = value.items() if isinstance(value, Mapping) else ((name, one) for one in value)
            waiting += inner
    if sum(views.values()) > _MOST_VIEWS * size + _SLACK:
        raise RefusedFileError(
            f"{what} must have memory of its own for its tensors, got {sum(views.values())} bytes "
            f"of tensors in a file of {size} bytes"
        )


def _problem(tensor: Tensor) -> str:
    """Describe what a tensor must be and is not; "" if it is as it should be."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_nested:
        return f"be a plain tensor, got {type(tensor).__name__}"
    if tensor.layout != torch.strided:
        return f"be dense, got layout {tensor.layout}"
    if tensor.is_quantized or tensor.dtype not in _DTYPES:
        return f"have a usual type, got {tensor.dtype}; convert it to torch.float32"
    if tensor.device.type != "cpu":
        return f"hold values, got one on device {tensor.device}"
    held = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.element_size() > held:
        return f"have a number for each cell, got shape {tuple(tensor.shape)} with {held} bytes"
    return ""


def _check_pickles(path: Path, what: str) -> bool:
    """Check the file before it is loaded; return whether it is an archive."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(ZIP_MAGIC))
        file.seek(0)
        if start == ZIP_MAGIC and zipfile.is_zipfile(path):
            _check_archive(file, size, what)
            return True
        if start == ZIP_MAGIC:
            raise RefusedFileError(f"{what} is truncated ({size} bytes)")
        if start[:1] != pickle.PROTO:
            raise RefusedFileError(f"{what} is not a file that PyTorch wrote ({size} bytes)")
        for _ in range(_BARE_PICKLES):
            _check_opcodes(file, what)
        return False


def _check_archive(file: BinaryIO, size: int, what: str) -> None:
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        names = {entry.filename.rpartition("/")[2] for entry in entries}
        if "constants.pkl" in names:
            raise RefusedFileError(
                f"{what} must hold weights, got a TorchScript model; save its state_dict()"
            )
        held = sum(entry.file_size for entry in entries)
        if held > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise RefusedFileError(
                f"{what} must be stored without compression, as torch.save does, got an archive of "
                f"{size} bytes for {held}"
            )
        for entry in entries:
            if entry.filename.endswith("/data.pkl"):
                pickled = archive.read(entry)
                # Reading opcodes takes longer than loading: only where a call may be among them.
                if len(pickled) > _FEW_BYTES or any(call in pickled for call in _CALL_BYTES):
                    _check_opcodes(io.BytesIO(pickled), what)


def _check_opcodes(file: Any, what: str) -> None:
    """Raise for calls that allocate what they are told, and for a pickle without end."""
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if opcode.name == "GLOBAL" and argument in _CALLS:
                raise pickle.UnpicklingError(f"call of {argument}")
            if count == MOST_OPCODES:
                raise RefusedFileError(
                    f"{what} must have a pickle of at most {MOST_OPCODES} steps, got more"
                )
    except RefusedFileError:
        raise
    except ValueError:
        return  # damaged, or cut: loading says how


def _reason(error: Exception) -> str:
    """Return the first line of an error, unless it advises to trust the file."""
    text = (str(error).splitlines() or [""])[0]
    is_advice = not text or any(word in text for word in _ADVICE)
    return type(error).__name__ if is_advice else shown(text)
