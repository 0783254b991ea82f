"""Defaults of data, losses and training are defined in the config only."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[2] / "deformable_detr"
STATED = ("config/data.py", "config/train.py")
BELOW_BUILDERS = ("data", "engine", "evaluation", "layers", "losses", "models")
# Exceptions by file and name, with their reason.
ALLOWED = {
    ("distributed.py", "timeout_s"): "also used by commands without a config",
    ("data/transformed.py", "repeats"): "1 means no repetition, which is not a setting",
}


def named_numbers(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield constants, fields and parameters whose value or default is a number or a tuple."""
    pairs: list[tuple[str, ast.expr | None]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                pairs.append((name, node.value))
            case ast.arguments():
                plain = [one.arg for one in (*node.posonlyargs, *node.args)]
                pairs += zip(plain[::-1], node.defaults[::-1], strict=False)
                pairs += zip((one.arg for one in node.kwonlyargs), node.kw_defaults, strict=True)
    for name, value in pairs:
        match value:
            case ast.Call(args=[ast.Constant() as first, *_]):  # Field(0.1, ge=0)
                value = first
        try:
            number = ast.literal_eval(value) if value else None
        except ValueError:
            continue
        if number and isinstance(number, int | float | tuple) and number is not True:
            yield name.lower().lstrip("_"), number


def test_no_default_of_the_config_is_defined_again() -> None:
    stated = {pair for file in STATED for pair in named_numbers(PACKAGE / file)}
    assert {("lr", 2e-4), ("clip_norm", 0.1), ("max_size", 1333)} <= stated
    files = [PACKAGE / "distributed.py"]
    files += [file for part in BELOW_BUILDERS for file in (PACKAGE / part).rglob("*.py")]
    found = {
        (file.relative_to(PACKAGE).as_posix(), name)
        for file in files
        for name, value in named_numbers(file)
        if (name, value) in stated
    }
    assert found - ALLOWED.keys() == set()
