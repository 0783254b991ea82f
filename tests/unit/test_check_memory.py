"""`scripts/check_memory.py` on a few images, and that it notices growth."""

from pathlib import Path

import pytest
from helpers.scripts import load_script

check = load_script("check_memory")


def test_sizes_are_distinct_and_repeatable() -> None:
    sizes = check.sizes_of(50, seed=1)
    assert len(set(sizes)) == 50
    assert sizes == check.sizes_of(50, seed=1)


@pytest.mark.parametrize(("options", "code"), [([], 1), (["--files", "--limit", "150"], 0)])
def test_growth_is_noticed(
    options: list[str],
    code: int,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    marks = iter([1000.0, 1050.0, 1100.0, 1150.0])
    monkeypatch.setattr(check, "resident_mb", lambda: next(marks))
    monkeypatch.setattr(check, "SHORT_SIDES", (20, 30))
    monkeypatch.setattr(check, "LONG_SIDES", (30, 40))
    assert check.main([str(checkpoint), "--images", "4", *options]) == code
    out = capsys.readouterr().out
    assert out.startswith("after 1 images: 1000 MB resident\n")
    assert out.count("MB resident") == 4
    assert "to the end: 150 MB" in out


def test_resident_memory_is_read() -> None:
    assert 10 < check.resident_mb() < 100_000
