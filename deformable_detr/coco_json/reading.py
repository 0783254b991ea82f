"""Reading of JSON, and of the numbers in it."""

import json
import sys
from pathlib import Path
from typing import Any

from deformable_detr.files import require_regular_file
from deformable_detr.files.formats import TO_COCO, kind_of_content
from deformable_detr.messages import shown

_LARGEST_INTEGER = 2**63 - 1  # of int64, which holds ids


def read_json(file: Path, what: str) -> Any:
    """Read a JSON file; integers of thousands of digits become infinite.

    Args:
        file: path of the file, in UTF-8 with or without a byte order mark.
        what: its name in errors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no regular file, or the content is not JSON.
    """
    return parse_json(read_content(file, what), file, what)


def read_content(file: Path, what: str) -> bytes:
    """Return the bytes of a file; for arguments and errors see `read_json`."""
    require_regular_file(file, what)
    return file.read_bytes()


def parse_json(content: bytes, file: Path, what: str) -> Any:
    """Parse the bytes of a file; for arguments and errors see `read_json`."""
    try:
        return _parse(content.decode(json.detect_encoding(content), "surrogatepass"))
    except RecursionError as error:
        raise ValueError(
            f"{what} {shown(file)} must be JSON, got lists nested too deeply"
        ) from error
    except ValueError as error:  # of JSON or of UTF-8
        kind = kind_of_content(content)
        advice = f"; {TO_COCO}" if what == "annotation file" else ""
        other = f"{kind}{advice}" if kind and kind != "a JSON file" else ""
        raise ValueError(
            f"{what} {shown(file)} must be JSON in UTF-8, got "
            + (other or f"{error}; is the file whole?")
        ) from error


def is_integer(value: Any) -> bool:
    """Return whether a JSON value is an integer that int64 holds; a bool is none."""
    return type(value) is int and -_LARGEST_INTEGER <= value <= _LARGEST_INTEGER


def is_number(value: Any, limit: float = sys.float_info.max) -> bool:
    """Return whether a JSON value is a finite number of at most `limit`, which float64 holds."""
    return (type(value) is float or type(value) is int) and -limit <= value <= limit


def kind_of(value: Any) -> str:
    """Describe the type of a JSON value, for errors."""
    return "nothing" if value is None else f"a {type(value).__name__}"


def _parse(content: str) -> Any:
    try:
        return json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError:  # an integer has more digits than Python converts
        return json.loads(content, parse_int=_integer)


def _integer(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:
        return float(digits)  # infinite, which the rules refuse where a number is needed
