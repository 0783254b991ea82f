"""Commands, options and settings on the pages exist."""

import re
import shlex
from pathlib import Path

import pytest
from helpers.usage import error_of

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


def test_settings_in_the_text_exist() -> None:
    known = set(SETTING.findall((ROOT / "docs" / "settings.md").read_text(encoding="utf-8")))
    pages = [page for page in PAGES if page.name != "settings.md"]
    named = {name for page in pages for name in SETTING.findall(page.read_text(encoding="utf-8"))}
    parts = {key.rpartition(".")[0] for key in known}
    assert named - known - parts - NO_SETTINGS - {f"{part}.kind" for part in parts} == set()
