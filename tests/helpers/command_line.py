"""Run the command line in this process."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from deformable_detr.cli.main import main


@dataclass(frozen=True)
class Outcome:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


class CommandLine:
    """Callable with the arguments of `deformable-detr`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> Outcome:
        self._monkeypatch.setattr(sys, "argv", ["deformable-detr", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            code = end.code
        else:
            code = 0
        captured = self._capsys.readouterr()
        assert isinstance(code, int | None)
        return Outcome(code or 0, captured.out, captured.err)

    def fails(self, *arguments: str | Path) -> str:
        """Run a command that must fail with one line on stderr; return it without `error: `."""
        outcome = self(*arguments)
        assert outcome.code == 2
        assert outcome.out == ""
        assert outcome.err.startswith("error: ")
        assert "Traceback" not in outcome.err
        return outcome.err.removeprefix("error: ").rstrip("\n")
