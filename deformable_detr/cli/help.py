"""Help texts: plain, at most 80 columns wide, with examples at the end.

The examples are the section `Examples:` of the docstring of a command.
"""

import inspect
import re
from typing import Any

from typer.core import TyperCommand, TyperGroup

_EXAMPLES = "\n\nExamples:\n"
_CHOICES = re.compile(r"<([^<>]+\|[^<>]+)>")
_TYPE = re.compile(r" <[^<>]*>$")


class _Help:
    """Help text of a command or a group, for their base classes."""

    help: str | None
    get_params: Any

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Write the description, without the examples."""
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(self._parts()[0])

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options; types are in their names, such as FILE or N."""
        rows: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for one in self.get_params(ctx):
            if record := one.get_help_record(ctx):
                is_argument = one.param_type_name == "argument"
                name = _TYPE.sub("", record[0]) if is_argument else record[0]
                name = _CHOICES.sub(r"\1", name)
                rows["Arguments" if is_argument else "Options"].append((name, record[1]))
        for title, of_title in rows.items():
            if of_title:
                with formatter.section(title):
                    formatter.write_dl(of_title)
        if isinstance(self, TyperGroup):
            self.format_commands(ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples as they are, to be copied."""
        with formatter.section("Examples"):
            for line in self._parts()[1].splitlines():
                formatter.write(f"  {line.strip()}\n")

    def _parts(self) -> tuple[str, str]:
        """Return the description and the examples."""
        text, _, examples = inspect.cleandoc(self.help or "").partition(_EXAMPLES)
        return text, examples


class Command(_Help, TyperCommand):
    """Command with such a help text."""


class Group(_Help, TyperGroup):
    """Group of commands with such a help text."""
