"""Limits on modules per folder, and on modules of the same name."""

from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "deformable_detr"
MAX_MODULES = 15  # per folder, without subfolders
MAX_NAMESAKES = 2
# Folders with modules named after their role (`cli/train.py`, `config/train.py`) or an operator.
OF_EQUAL_ROLE = {"benchmark", "builders", "cli", "config", "ops", "workflows"}


def test_no_folder_has_many_modules() -> None:
    modules = [path for path in PACKAGE.rglob("*.py") if path.stem != "__init__"]
    counts = Counter(path.parent.relative_to(PACKAGE).as_posix() for path in modules)
    assert {name: count for name, count in counts.items() if count > MAX_MODULES} == {}


def test_few_modules_share_a_name() -> None:
    paths = [*PACKAGE.glob("*.py"), *PACKAGE.glob("*/*.py")]
    stems = [path.stem for path in paths if path.parent.name not in OF_EQUAL_ROLE]
    counts = Counter(stem for stem in stems if stem not in {"__init__", "base"})
    assert {stem: count for stem, count in counts.items() if count > MAX_NAMESAKES} == {}
