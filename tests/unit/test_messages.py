"""Foreign values and texts in messages: what they may hold, and how long they are."""

from pathlib import Path

import pytest

from deformable_detr.messages import counted, in_brief, in_lines, listed, printable, shown

HOSTILE = {
    "escape": "\x1b[31mred\x1b[0m",
    "newline": "a\nerror: b",
    "right to left": "a\u202egpj.exe",
    "surrogate": "\udcff",
    "NUL": "a\0b",
    "long": "x" * 5_000_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize(
    "form",
    [in_brief, shown, lambda text: shown(Path(text)), lambda text: listed([text]), printable],
)
def test_nothing_reaches_the_terminal_that_it_would_act_on(form, text):
    printed = form(text)
    assert printed.isprintable()
    assert printed.encode("utf-8")


@pytest.mark.parametrize("value", [HOSTILE["long"], [HOSTILE["long"]], {"a": HOSTILE["long"]}])
def test_a_value_is_cut(value):
    assert len(in_brief(value)) < 100
    assert len(shown(value)) <= 80


def test_what_can_be_read_is_kept():
    assert shown("Ärger 树 पेड़.png") == "Ärger 树 पेड़.png"
    assert in_brief("a") == "'a'"
    assert shown("a\\b") == "a\\b"


@pytest.mark.parametrize(
    ("noun", "plural"),
    [("image", "images"), ("box", "boxes"), ("class", "classes"), ("category", "categories")],
)
def test_a_number_has_its_noun(noun, plural):
    assert counted(1, noun) == f"1 {noun}"
    assert counted(0, noun) == f"0 {plural}"
    assert counted(2, noun) == f"2 {plural}"


def test_a_message_keeps_its_own_lines():
    assert in_lines("a\nb\tc") == "a\nb\\tc"
    assert len(in_lines(HOSTILE["long"])) == 2000
    assert in_lines("a\n" * 1000).split("\n")[99:] == ["a", "... and 901 more lines"]


def test_a_value_that_has_no_repr():
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    assert in_brief(nested) == "a list nested too deeply"
    assert in_brief([10**5000]) == "a list with a very long integer"
