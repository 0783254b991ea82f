"""A small terminal: what a program shows on a screen of a given width, also after a resize."""

import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import TracebackType

_PARTS = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|[\r\n]|[^\x1b\r\n]+")
_IGNORED = {"m", "h", "l"}  # colors, and whether the cursor is visible


class Screen:
    """Characters of a terminal without limit of height.

    Args:
        width: columns.
        reflows: whether a resize breaks lines anew, as most terminals do; xterm cuts them.
    """

    def __init__(self, width: int, *, reflows: bool = True) -> None:
        self.width, self.reflows = width, reflows
        self._rows = [""]
        self._continues = [False]  # whether a row is the rest of the one above
        self._row = self._column = 0

    @property
    def lines(self) -> list[str]:
        """The rows, without spaces at their ends, up to the last one that is not empty."""
        rows = [row.rstrip() for row in self._rows]
        while rows and not rows[-1]:
            rows.pop()
        return rows

    def feed(self, text: str) -> None:
        """Show the output of a program."""
        while text:
            part = _PARTS.match(text)
            assert part, f"unknown output {text[:20]!r}"
            text = text[part.end() :]
            if part[0] == "\r":
                self._column = 0
            elif part[0] == "\n":
                self._down(continues=False)
            elif part[2]:
                self._control(part[1], part[2])
            else:
                self._write(part[0])

    def resize(self, width: int) -> None:
        """Change the width; the cursor stays at its character."""
        old, self.width = self.width, width
        if not self.reflows:
            self._rows = [row[:width] for row in self._rows]
            self._column = min(self._column, width - 1)
            return
        rows: list[str] = []
        continues: list[bool] = []
        cursor = (0, 0)
        start = 0
        while start < len(self._rows):
            end = start + 1
            while end < len(self._rows) and self._continues[end]:
                end += 1
            line = "".join(row.ljust(old) for row in self._rows[start:end]).rstrip()
            if start <= self._row < end:
                place = (self._row - start) * old + self._column
                cursor = (len(rows) + place // width, place % width)
            pieces = [line[at : at + width] for at in range(0, len(line), width)] or [""]
            rows += pieces
            continues += [False] + [True] * (len(pieces) - 1)
            start = end
        while len(rows) <= cursor[0]:
            rows.append("")
            continues.append(True)
        self._rows, self._continues = rows, continues
        self._row, self._column = cursor

    def _write(self, text: str) -> None:
        for one in text:
            if self._column == self.width:
                self._down(continues=True)
                self._column = 0
            row = self._rows[self._row].ljust(self._column)
            self._rows[self._row] = row[: self._column] + one + row[self._column + 1 :]
            self._column += 1

    def _down(self, *, continues: bool) -> None:
        self._row += 1
        if self._row == len(self._rows):
            self._rows.append("")
            self._continues.append(continues)
        self._continues[self._row] = continues

    def _control(self, numbers: str, name: str) -> None:
        row = self._rows[self._row]
        if name == "A":
            self._row = max(0, self._row - int(numbers or 1))
        elif name == "K":
            erased = {"": row[: self._column], "0": row[: self._column], "2": ""}
            self._rows[self._row] = erased[numbers]
        elif name == "J" and numbers in ("", "0"):
            self._rows[self._row] = row[: self._column]
            del self._rows[self._row + 1 :], self._continues[self._row + 1 :]
        else:
            assert name in _IGNORED, f"unknown control {numbers}{name}"


class Terminal:
    """A program in a terminal of its own, with its screen; use it as a context manager.

    Args:
        program: Python code. It goes on when it has read a line, which `go_on` writes.
        width: columns.
        reflows: as for `Screen`.
    """

    def __init__(self, program: str, width: int, *, reflows: bool = True) -> None:
        self.screen = Screen(width, reflows=reflows)
        self._own, theirs = os.openpty()
        self._set_width(width)
        environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=theirs,
            stderr=theirs,
            env={**environment, "TERM": "xterm", "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        os.close(theirs)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
        os.close(self._own)

    def wait_for(self, text: str, seconds: float = 60) -> list[str]:
        """Show the output until a line has this text, and return the lines."""
        end = time.monotonic() + seconds
        while not any(text in line for line in self.screen.lines):
            assert time.monotonic() < end, f"no {text!r} in {self.screen.lines}"
            ready, _, _ = select.select([self._own], [], [], 0.1)
            if ready:
                try:
                    self.screen.feed(os.read(self._own, 4096).decode())
                except OSError:  # the program has ended
                    time.sleep(0.05)
        return self.screen.lines

    def go_on(self) -> None:
        """Let the program read a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()

    def resize(self, width: int) -> None:
        """Change the width."""
        self.screen.resize(width)
        self._set_width(width)

    def _set_width(self, width: int) -> None:
        fcntl.ioctl(self._own, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
