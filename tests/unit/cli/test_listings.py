"""`deformable-detr configs` and `deformable-detr settings`."""

import re
from pathlib import Path

import pytest
from helpers.command_line import CommandLine

from deformable_detr.config.loading import load_config
from deformable_detr.config.problems import setting_keys

ROOT = Path(__file__).parents[3]


@pytest.fixture
def run(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    monkeypatch.setenv("COLUMNS", "80")
    return run


def test_configs_lists_every_file_in_one_line_with_its_title(run: CommandLine) -> None:
    lines = run("configs").out.splitlines()

    titles = dict(re.fullmatch(r"(\S+)  +(\S.*)", line).groups() for line in lines)
    files = {
        path.relative_to(ROOT / "configs").with_suffix("").as_posix()
        for path in (ROOT / "configs").rglob("*.yaml")
    }
    assert set(titles) == files
    assert max(map(len, lines)) <= 80
    assert len(set(titles.values())) == len(files)
    assert titles["deformable_detr_r50_refine"] == "Deformable DETR + box refinement, AP 46.2"
    assert titles["backbones/resnet18"] == "Deformable DETR, ResNet-18"


def test_the_published_ap_of_configs_are_those_of_the_page(run: CommandLine) -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    of_page = re.findall(r"^\| `(\w+)`[^|]* \|(?: \d+ \|)? (\d\d\.\d)\b", page, re.MULTILINE)
    assert len(of_page) == 9

    listed = re.findall(r"^(\S+) .*, AP (\S+)$", run("configs").out, re.MULTILINE)

    assert sorted(listed) == sorted(of_page)


def test_settings_lists_every_key_with_its_default(run: CommandLine) -> None:
    lines = run("settings").out.splitlines()

    assert max(map(len, lines)) <= 80
    settings = [line for line in lines if not line.startswith(" ")]
    assert len(lines) == 2 * len(settings)  # each has a description of one line
    keys = {re.match(r"[a-z0-9_.]+", line)[0] for line in settings}
    assert keys == set(setting_keys())
    given = [line for line in settings if line.startswith(("train.epochs=", "data.exif="))]
    load_config("deformable_detr_r50", given)
    assert "train.epochs=50" in given


def test_settings_with_a_word_have_it_and_are_shown_whole(run: CommandLine) -> None:
    text = run("settings", "Warmup").out

    key, kind, *description = text.splitlines()
    assert key == "train.schedule.warmup_steps=0"
    assert kind == "    integer >= 0"
    assert " ".join(line.strip() for line in description) == (
        "Number of warm-up steps, in which the learning rate rises linearly; 0 for none."
    )
    assert "boolean (of asff)" in run("settings", "neck.rfb").out


@pytest.mark.parametrize(
    ("word", "remedy"),
    [
        ("optimiser", "did you mean optimizer?"),
        ("train.optimzer.lr", "did you mean train.optimizer.lr or train.optimizer.kind or "),
        ("zzzqqq", "without WORD, all are listed"),
        ("x" * 100_000, "without WORD, all are listed"),
    ],
)
def test_a_word_that_no_setting_has_is_one_error_with_the_nearest(
    run: CommandLine, word: str, remedy: str
) -> None:
    message = run.fails("settings", word)

    assert message.startswith("WORD must be in the key or description of a setting, got '")
    assert remedy in message
    assert len(message) < 300
