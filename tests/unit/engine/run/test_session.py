import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from helpers.tiny_training import tiny_state

from deformable_detr.engine.run import session
from deformable_detr.engine.run.folder import RunFolder
from deformable_detr.engine.run.session import locked, recorded_state
from deformable_detr.engine.run.stopping import PreemptedError

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "ab")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_elsewhere(files: RunFolder) -> Iterator[subprocess.Popen[str]]:
    """Start another process that holds the lock until it is killed."""
    files.path.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", HOLD, str(files.lock)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def read_state(files: RunFolder) -> dict[str, object]:
    return json.loads(files.state.read_text())


def test_a_second_start_raises_and_names_the_running_process(tmp_path: Path) -> None:
    files = RunFolder(tmp_path / "run")
    with held_elsewhere(files):
        files.state.write_text('{"host": "node7", "pid": 123}')
        with (
            pytest.raises(RuntimeError, match=r"must not be in use, .* process 123 on node7 is"),
            locked(files, wait_s=0),
        ):
            pass
        files.state.unlink()
        with (
            pytest.raises(RuntimeError, match="which another process is writing to"),
            locked(files, wait_s=0),
        ):
            pass


def test_a_second_start_waits_for_one_that_is_ending(tmp_path: Path) -> None:
    files = RunFolder(tmp_path / "run")
    with held_elsewhere(files) as process:
        process.stdin.close()  # it ends by itself
        with locked(files):
            assert process.wait() == 0


def test_a_lock_ends_with_its_process_even_if_it_is_killed(tmp_path: Path) -> None:
    files = RunFolder(tmp_path / "run")
    with held_elsewhere(files) as process:
        with pytest.raises(RuntimeError, match="must not be in use"), locked(files, wait_s=0):
            pass
        process.kill()
        assert process.wait() == -9
        with locked(files, wait_s=0):
            assert files.lock.is_file()


def test_the_lock_is_held_inside_the_context_only(tmp_path: Path) -> None:
    files = RunFolder(tmp_path / "run")
    try_it = (
        "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'ab'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    )
    command = [sys.executable, "-c", try_it, str(files.lock)]
    with locked(files):
        assert subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 1
    assert subprocess.run(command, check=False).returncode == 0


def test_a_file_system_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(file: object, flags: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(session.fcntl, "lockf", refuse)
    with locked(RunFolder(tmp_path)):
        assert "cannot be locked (Operation not supported)" in caplog.text


def test_a_folder_that_cannot_be_written_to_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(RuntimeError, match=r"file/run cannot be written to \(.*; choose another"),
        locked(RunFolder(tmp_path / "file" / "run")),
    ):
        pass


@pytest.mark.parametrize(
    ("error", "name"),
    [(None, "finished"), (PreemptedError("x"), "preempted"), (KeyError("x"), "failed")],
)
def test_the_state_of_a_run_is_recorded(tmp_path: Path, error: Exception | None, name: str) -> None:
    files, state = RunFolder(tmp_path), tiny_state()
    with suppress(PreemptedError, KeyError), recorded_state(files, state):
        assert read_state(files)["state"] == "running"
        state.step = 5
        if error is not None:
            raise error
    content = read_state(files)
    assert (content["state"], content["step"], content["pid"]) == (name, 5, os.getpid())
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
