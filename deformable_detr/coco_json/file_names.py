"""File names of images in annotation files: paths that stay below the folder of the images."""

import os
import re
from pathlib import Path
from typing import Any

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_ROOTED = re.compile(r"[/\\]|[A-Za-z]:[/\\]|[A-Za-z][A-Za-z0-9+.-]+:/")  # or a drive, or a URL
_SEPARATORS = re.compile(r"[/\\]")
_LONGEST_PART, _LONGEST = 255, 4000  # bytes that file systems take
_CERTAINLY_SHORT = 200


def is_below_folder(name: Any) -> bool:
    r"""Return whether a value is a relative path of a file that stays below its folder.

    Absolute paths of any system, URLs and `..` do not, on every system alike: a backslash separates
    as a slash does. Symbolic links are not looked at. Neither is a name a path that no file can
    have: with a null byte, without UTF-8, or of more than 255 bytes between two separators.
    """
    if not isinstance(name, str):
        return False
    if len(name) <= _CERTAINLY_SHORT and _PLAIN.fullmatch(name):
        return True
    if _ROOTED.match(name) or Path(name).drive or "\0" in name:
        return False
    parts = [part for part in _SEPARATORS.split(name) if part not in ("", ".")]
    if not parts or ".." in parts:
        return False
    try:
        lengths = [len(os.fsencode(part)) for part in name.split("/")]
    except UnicodeEncodeError:
        return False
    return max(lengths) <= _LONGEST_PART and sum(lengths) + len(lengths) <= _LONGEST
