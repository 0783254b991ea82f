"""Foreign values and texts in messages: escaped, and cut to a readable length."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

SHOWN = 5  # values that a list in a message gives
_CHARACTERS = 80
_PATH_CHARACTERS = 300
_LINE_CHARACTERS = 2000
_LINES = 100


def in_brief(value: Any) -> str:
    """Return the `repr` of a value for a message: cut, and of a long integer only its length."""
    if isinstance(value, str):  # without a copy of a long text
        return repr(value) if len(value) <= _CHARACTERS else f"{value[: _CHARACTERS - 3]!r}..."
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of about {round(value.bit_length() * 0.30103)} digits"
    try:
        text = repr(value)
    except ValueError:  # it holds such an integer
        return f"a {type(value).__name__} with a very long integer"
    except RecursionError:
        return f"a {type(value).__name__} nested too deeply"
    except Exception:  # of a foreign class
        return f"a {type(value).__name__}"
    return _cut(printable(text))


def shown(text: object) -> str:
    """Return a foreign text for a message: escaped and cut; of a long path, the end is kept."""
    escaped = printable(str(text))
    if isinstance(text, PurePath):
        is_long = len(escaped) > _PATH_CHARACTERS
        return f"...{escaped[3 - _PATH_CHARACTERS :]}" if is_long else escaped
    return _cut(escaped)


def listed(values: Sequence[object]) -> str:
    """List the first values, as `shown` gives them, and the number of the rest."""
    more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
    return ", ".join(map(shown, values[:SHOWN])) + more


def counted(number: int, noun: str) -> str:
    """Return a number with its noun in the singular or plural: "1 image", "2 boxes"."""
    if number == 1:
        return f"1 {noun}"
    if noun.endswith(("s", "x", "ch")):
        return f"{number:,} {noun}es"
    if noun.endswith("y"):
        return f"{number:,} {noun[:-1]}ies"
    return f"{number:,} {noun}s"


def in_lines(message: str) -> str:
    """Return a whole message for a terminal: its own line breaks stay, the rest is escaped and cut.

    The last check before a message is printed. Foreign texts in it have been through `shown` or
    `in_brief`, or they could add lines of their own.
    """
    lines = message.split("\n", _LINES)
    if len(lines) > _LINES:
        lines[-1] = f"... and {lines[-1].count(chr(10)) + 1} more lines"
    return "\n".join(_printable_line(line) for line in lines)


def printable(text: str) -> str:
    """Escape what a terminal would act on: control characters, bidirectional marks, surrogates."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def _printable_line(line: str) -> str:
    text = printable(line[: _LINE_CHARACTERS + 1])
    return text if len(text) <= _LINE_CHARACTERS else f"{text[: _LINE_CHARACTERS - 3]}..."


def _cut(text: str) -> str:
    return text if len(text) <= _CHARACTERS else f"{text[: _CHARACTERS - 3]}..."
