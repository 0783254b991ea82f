"""Help text of every command."""

import re
import shlex

import pytest
from helpers.command_line import CommandLine
from helpers.usage import all_commands, error_of

COMMANDS = sorted(all_commands())
GROUPS = [words for words in COMMANDS if hasattr(all_commands()[words], "commands")]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_help_text_fits_into_80_columns_and_names_no_types(
    run: CommandLine, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    outcome = run(*words, "-h")

    assert outcome.code == 0
    assert [line for line in outcome.out.splitlines() if len(line) > 80] == []
    assert re.findall(r"<.*?>", outcome.out) == []
    assert re.findall(r"\.\.\.$", outcome.out, re.MULTILINE) in ([], ["..."])  # of the usage
    assert "-h, --help" in outcome.out
    assert run(*words, "--help") == outcome


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_help_text_ends_with_examples_that_are_valid(
    run: CommandLine, words: tuple[str, ...]
) -> None:
    _, _, block = run(*words, "-h").out.partition("\nExamples:\n")

    examples = [shlex.split(line) for line in block.splitlines()]
    assert 1 <= len(examples) <= 3
    start = ["deformable-detr", *words]
    for example in examples:
        assert example[: len(start)] == start
        assert error_of(example[1:]) == ""


@pytest.mark.parametrize("words", GROUPS, ids=" ".join)
def test_a_group_describes_each_command_in_a_whole_line(
    run: CommandLine, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, _, block = run(*words, "-h").out.partition("\nCommands:\n")
    lines = dict(re.findall(r"^  (\S+) +(.+)$", block.partition("\n\n")[0], re.MULTILINE))
    for name, command in all_commands()[words].commands.items():
        assert lines[name] == command.help.split("\n")[0]
