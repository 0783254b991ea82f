"""Check the arguments of a command without running it."""

import typer
import typer.main
from typer.core import TyperCommand

from deformable_detr.cli.main import DEBUG, app
from deformable_detr.config import ConfigError
from deformable_detr.config.loading import load_config

_UsageError = typer.BadParameter.__mro__[2]  # Typer exports no common base of these errors


def all_commands() -> dict[tuple[str, ...], TyperCommand]:
    """Return the commands and their groups by the words that call them; () is the root."""
    found = {}
    pending = {(): typer.main.get_command(app)}
    while pending:
        words, command = pending.popitem()
        found[words] = command
        inner = getattr(command, "commands", {})
        pending |= {(*words, name): one for name, one in inner.items()}
    return found


def error_of(arguments: list[str]) -> str:
    """Return the error that a command would end with before it does anything, or ""."""
    try:
        command = typer.main.get_command(app)
        rest = [argument for argument in arguments if argument != DEBUG]
        while hasattr(command, "commands") and not rest[0].startswith("-"):
            command = command.commands[rest.pop(0)]
        if hasattr(command, "commands"):  # not checked further: options of the root act at once
            command.make_parser(command.context_class(command)).parse_args(rest)
            return ""
        options = command.make_context(command.name, list(rest)).params
        if command.name == "train":
            name = options.get("config") or "quickstart"  # the settings of --data are over it
            is_ours = "/" not in name and name != "NAME"
            overrides = [one for one in options["overrides"] or () if one != "auto"]  # of --resume
            load_config(name if is_ours else "deformable_detr_r50", overrides)
    except (_UsageError, KeyError, ConfigError) as error:
        return str(error) or type(error).__name__
    return ""
