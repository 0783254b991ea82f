"""Docstrings begin with a noun or an imperative, as D401 of ruff checks for functions."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "deformable_detr"
RIDDLES = {"what", "whether", "where", "how", "which", "of", "as", "one", "those", "every"}


def test_docstrings_begin_with_a_noun_or_an_imperative() -> None:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    first_words = {
        f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 1)}": docstring.split()[0].lower()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, documented) and (docstring := ast.get_docstring(node))
    }
    assert len(first_words) > 1000
    assert {place: word for place, word in first_words.items() if word in RIDDLES} == {}
