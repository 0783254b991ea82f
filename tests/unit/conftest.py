from pathlib import Path

import pytest
from helpers.command_line import CommandLine
from helpers.tiny_checkpoint import write_checkpoint


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """Command line as a function of its arguments."""
    monkeypatch.setenv("COLUMNS", "120")
    return CommandLine(monkeypatch, capsys)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a tiny untrained detector."""
    path = tmp_path_factory.mktemp("checkpoint") / "last.pth"
    write_checkpoint(path)
    return path
