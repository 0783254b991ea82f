"""Commands, options and settings on the pages exist."""

import re
import shlex
from pathlib import Path

import click
import pytest
import typer.main

from deformable_detr.cli.main import DEBUG, app
from deformable_detr.config import ConfigError
from deformable_detr.config.loading import load_config

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SETTING = re.compile(r"`((?:train|data|model|loss)\.[a-z_.]+[a-z])(?:=[^`]*)?`")
NO_SETTINGS = {"data.yaml", "model.safetensors", "train.init_checkpoint", "train.json"}


def commands(page: Path) -> list[list[str]]:
    """Return the arguments of each `deformable-detr` command in the Bash blocks of a page."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [arguments[1:] for arguments in words if arguments[:1] == ["deformable-detr"]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_have_these_options_and_settings(page: Path) -> None:
    assert [(line, error) for line in commands(page) if (error := error_of(line))] == []


def error_of(arguments: list[str]) -> str:
    """Return the error that a command would end with before it does anything, or ""."""
    try:
        command = typer.main.get_command(app)
        rest = [argument for argument in arguments if argument != DEBUG]
        while hasattr(command, "commands") and not rest[0].startswith("-"):
            command = command.commands[rest.pop(0)]
        options, _, _ = command.make_parser(command.context_class(command)).parse_args(rest)
        if command.name == "train":
            name = options.get("config") or "quickstart"  # the settings of --data are over it
            is_ours = "/" not in name and name != "NAME"
            overrides = [one for one in options["overrides"] or () if one != "auto"]  # of --resume
            load_config(name if is_ours else "deformable_detr_r50", overrides)
    except (typer.BadParameter, click.ClickException, KeyError, ConfigError) as error:
        return str(error) or type(error).__name__
    return ""


def test_settings_in_the_text_exist() -> None:
    known = set(SETTING.findall((ROOT / "docs" / "settings.md").read_text(encoding="utf-8")))
    pages = [page for page in PAGES if page.name != "settings.md"]
    named = {name for page in pages for name in SETTING.findall(page.read_text(encoding="utf-8"))}
    parts = {key.rpartition(".")[0] for key in known}
    assert named - known - parts - NO_SETTINGS - {f"{part}.kind" for part in parts} == set()
