import errno
import logging
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers.command_line import CommandLine

from deformable_detr.cli import evaluate
from deformable_detr.cli.terminal import PrintableFormatter, echo, print_traceback, set_up_output
from deformable_detr.version import __version__
from deformable_detr.workflows import evaluation


def test_help_needs_no_pytorch() -> None:
    """PyTorch takes seconds to import, too long to wait for a help text."""
    program = (
        "import sys\n"
        "from deformable_detr.cli.main import app\n"
        "commands = ('', 'train', 'evaluate', 'report', 'predict', 'convert', 'explain', 'data')\n"
        "for command in (*commands, 'benchmark ops', 'doctor bundle', 'doctor env'):\n"
        "    app([*command.split(), '--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'timm', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )

    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Usage:") == 11


def test_the_help_of_the_root_names_every_command(run: CommandLine) -> None:
    outcome = run("--help")

    assert outcome.code == 0
    commands = ("train", "evaluate", "report", "predict", "convert", "explain", "data")
    for command in (*commands, "configs", "settings", "benchmark", "doctor"):
        assert command in outcome.out
    for option in ("--version", "--debug"):
        assert option in outcome.out


def test_the_version_is_printed(run: CommandLine) -> None:
    assert run("--version").out == f"deformable-detr {__version__}\n"


def test_the_package_runs_as_a_module() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "deformable_detr", "--version"], capture_output=True, text=True
    )

    assert result.stdout == f"deformable-detr {__version__}\n"


def test_wrong_usage_has_exit_code_two_and_no_traceback(run: CommandLine) -> None:
    outcome = run("predict", "--treshold", "1")

    assert outcome.code == 2
    assert "--treshold" in outcome.err
    assert "Traceback" not in outcome.err


WRONG = ("evaluate", "--annotations", "none.json", "--results", "none.json")


def test_an_error_is_one_line_on_stderr(run: CommandLine) -> None:
    message = run.fails(*WRONG)

    assert message == "annotation file none.json must exist, found nothing there"


@pytest.mark.parametrize("arguments", [("--debug", *WRONG), (*WRONG, "--debug")])
def test_debug_raises_the_error_with_its_traceback(
    run: CommandLine, arguments: tuple[str, ...]
) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.json must exist"):
        run(*arguments)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("no such GPU"), "no such GPU"),
        (OSError(28, "No space left", "a\nb"), "a\\nb: No space left; free space there"),
        (NotADirectoryError(20, "Not a folder", b"a\xff"), "a\\udcff: Not a folder"),
        (OSError(5, "Input/output error"), "a file: Input/output error"),
        (MemoryError(), "out of memory; close other programs, or ask for less, such as smaller"),
        (RecursionError("maximum"), "something in a file is nested too deeply; --debug shows"),
        (ValueError("\x1b[31m\u202e\udcff"), r"\x1b[31m\u202e\udcff"),
        (ValueError("x" * 5_000_000), "x" * 1997 + "..."),
        (ValueError("a\n" * 1000), "a\n" * 100 + "... and 901 more lines"),
        (ValueError(), "ValueError"),
    ],
)
def test_expected_errors_are_printed_without_traceback(
    run: CommandLine, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(evaluate, "print_metrics", fail)
    monkeypatch.setattr(evaluation, "score_results", lambda *_, **__: None)

    message = run.fails(*WRONG)
    assert message.startswith(line)
    assert len(message) <= 2000


def test_unexpected_errors_keep_their_traceback(
    run: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "score_results", lambda: None)

    with pytest.raises(TypeError):
        run(*WRONG)


@pytest.mark.parametrize("argument", ["", "--out="])
def test_an_empty_argument_is_no_path(run: CommandLine, argument: str) -> None:
    assert run.fails("predict", argument) == f"an argument must not be empty, got {argument!r}"


HOSTILE = "\x1b[31m\u202e\udcff\x07" + "x" * 10_000


def test_a_traceback_and_a_log_line_hold_nothing_that_a_terminal_acts_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    formatter = PrintableFormatter()
    try:
        raise ValueError(HOSTILE)
    except ValueError as error:
        caught = (type(error), error, error.__traceback__)
    print_traceback(*caught)
    record = logging.LogRecord("a", 20, "a", 1, HOSTILE + "%s", (Path("a\nb"),), caught)

    for text in (capsys.readouterr().err, formatter.format(record)):
        assert all(line.isprintable() and len(line) <= 2000 for line in text.split("\n"))
        assert "Traceback" in text
        assert r"\x1b[31m\u202e\udcff\x07xx" in text
    record = logging.LogRecord("a", 20, "a", 1, "in %s", (Path("a\nb"),), None)
    assert formatter.format(record) == r"in a\nb"
    capsys.readouterr()
    echo("\x1b[31m")
    assert capsys.readouterr().out == "\\x1b[31m\n"


@pytest.mark.parametrize(
    "arguments", [(HOSTILE,), ("evaluate", "--" + HOSTILE), ("explain", "a", "--queries", HOSTILE)]
)
def test_a_usage_error_quotes_nothing_that_a_terminal_acts_on(
    run: CommandLine, arguments: tuple[str, ...]
) -> None:
    outcome = run(*arguments)

    assert outcome.code == 2
    assert outcome.err.replace("\n", "").isprintable()
    assert len(outcome.err) < 5000


def test_an_interrupt_exits_with_code_130_and_no_traceback(
    run: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "score_results", interrupt)

    outcome = run(*WRONG)

    assert outcome.code == 130
    assert outcome.err == "interrupted\n"


AT_EXIT = """
import atexit, signal, time
from deformable_detr.cli.main import app
atexit.register(lambda: (signal.raise_signal(signal.SIGINT), time.sleep(1)))
def work():
    pass
app.command()(work)
"""
IN_CLEANUP = """
import signal
from deformable_detr.cli.main import app
class Loader:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
def work():
    loader = Loader()
    signal.raise_signal(signal.SIGINT)
app.command()(work)
"""
IN_DELETION = """
import signal
from deformable_detr.cli.main import app
class Loader:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
def work():
    loader = Loader()
app.command()(work)
"""
RUN = """
import sys
from deformable_detr.cli.main import main
sys.argv = ["deformable-detr", "work"]
main()
"""


@pytest.mark.parametrize(
    "program", [AT_EXIT, IN_CLEANUP, IN_DELETION], ids=["exit", "cleanup", "deletion"]
)
def test_an_interrupt_when_the_work_is_over_ends_without_a_traceback(program: str) -> None:
    """Python would print it and go on, in functions of libraries that run then."""
    result = subprocess.run([sys.executable, "-c", program + RUN], capture_output=True, text=True)

    assert result.returncode == -signal.SIGINT
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("error", "printed"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "a thread in the background has ended: a file: No space left on device; free space "
            "there\n",
        ),
        (KeyError("\x1b[2J"), "Traceback"),
    ],
)
def test_an_error_of_the_system_in_a_thread_is_one_line(
    error: Exception,
    printed: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """TensorBoard, for example, writes in a thread."""

    def fail() -> None:
        raise error

    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    set_up_output()
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()

    shown = capsys.readouterr().err
    assert shown.startswith(printed)
    assert shown == printed or printed == "Traceback"
    assert "\x1b" not in shown
