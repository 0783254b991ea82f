"""Redirection of what is printed in a terminal, so that it does not meet a line that changes."""

import logging
import sys
from collections.abc import Callable
from typing import Any, TextIO

_LOGGERS = ("", "deformable_detr")  # whose handlers may hold a stream since before


class PrintedLines:
    """Lines that anything prints to the terminal, passed to a function instead.

    Args:
        show: called with whole lines, without the last line break; returns whether it shows them.
            A stream that someone has kept is written to after the end.
    """

    def __init__(self, show: Callable[[str], bool]) -> None:
        self._show = show
        self._replaced: dict[str, _Stream] = {}

    def start(self) -> None:
        """Replace the streams of `sys` that are terminals, also in log handlers."""
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is not None and stream.isatty():
                self._replaced[name] = replacement = _Stream(stream, self._show)
                setattr(sys, name, replacement)
                _move_handlers(stream, replacement)

    def stop(self) -> None:
        """Restore the streams."""
        for name, replacement in self._replaced.items():
            _move_handlers(replacement, replacement.original)
            if getattr(sys, name) is replacement:
                setattr(sys, name, replacement.original)
            replacement.original.write(replacement.held)
            replacement.held = ""
        self._replaced.clear()


class _Stream:
    """Text stream that holds what is written until the end of the line."""

    def __init__(self, original: TextIO, show: Callable[[str], bool]) -> None:
        self.original, self.held = original, ""
        self._show = show

    def write(self, text: str) -> int:
        lines, end, rest = f"{self.held}{text}".rpartition("\n")
        self.held = rest
        if end and not self._show(lines):
            self.original.write(f"{lines}\n")
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)


def _move_handlers(stream: object, other: Any) -> None:
    for name in _LOGGERS:
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
                handler.setStream(other)
