"""The script that checks the tests of a module: the changes it makes, and what it reports."""

import json
from pathlib import Path

import pytest
from helpers.scripts import load_script

script = load_script("mutate")

MODULE = """
def clipped(value: float, low: float | None = None) -> float:
    if low is None:
        return value
    return max(value, low)


def count(limit: int) -> int:
    total = 0
    while total < limit:
        total += 1
    return total
"""
TESTS = """
from toy.numbers import clipped, count

def test_clipped() -> None:
    assert clipped(1.0, 2.0) == 2.0
    assert clipped(3.0) == 3.0

def test_count() -> None:
    assert count(3) == 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Checkout with a package of one module and a test of it."""
    file = tmp_path / "toy" / "numbers.py"
    file.parent.mkdir()
    (file.parent / "__init__.py").touch()
    file.write_text(MODULE)
    tests = tmp_path / "tests" / "unit"
    tests.mkdir(parents=True)
    (tests / "test_numbers.py").write_text(TESTS)
    (tests / "test_others.py").write_text("import json\n")
    (tmp_path / "configs").mkdir()
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "PACKAGE", "toy")
    return file


def test_a_survivor_is_reported(
    module: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    equivalent, noticed = "max(low, value)", "min(value, low)"
    chosen = [one for one in script.mutants_of(module) if one[0].after in (equivalent, noticed)]
    monkeypatch.setattr(script, "mutants_of", lambda file: chosen)
    out = tmp_path / "outcomes.json"
    assert script.main([str(module), "--out", str(out)]) == 1
    outcomes = {one["mutant"]["after"]: one for one in json.loads(out.read_text())}
    assert outcomes[equivalent]["result"] == "survived"
    assert outcomes[noticed]["result"] == "killed"
    assert outcomes[noticed]["by"] == "tests/unit/test_numbers.py::test_clipped"
    assert module.read_text() == MODULE
    assert "2 mutants, 1 survived" in capsys.readouterr().out


def test_a_change_that_never_ends_is_stopped(module: Path, tmp_path: Path) -> None:
    runner = script.Runner(tmp_path / "copy")
    with runner.changed("toy/numbers.py", MODULE.replace("total += 1", "pass")):
        assert runner.run(["tests/unit/test_numbers.py"], limit_s=3.0)[0] is None
    assert runner.run(["tests/unit/test_numbers.py"], limit_s=30.0)[:2] == (0, "")


def test_annotations_are_not_changed(module: Path) -> None:
    changes = {(one.before, one.after) for one, _ in script.mutants_of(module)}
    assert not any("float" in before for before, _ in changes)
    assert ("total < limit", "total <= limit") in changes
    assert ("total += 1", "pass") in changes
    assert ("0", "1") in changes


def test_tests_that_fail_without_a_change_are_an_error(module: Path) -> None:
    module.write_text(MODULE.replace("total = 0", "total = 9"))
    with pytest.raises(RuntimeError, match=r"must pass without a mutant.*test_count"):
        script.main([str(module)])
