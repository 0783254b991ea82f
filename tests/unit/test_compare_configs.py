"""Comparison of configs: it continues after an interruption, and reports differences."""

import json
import sys

import pytest
from helpers.scripts import load_script


@pytest.fixture
def script(monkeypatch):
    module = load_script("compare_configs")
    monkeypatch.setattr(module, "_size", lambda config, settings: f"{len(config)} | 0.5")
    return module


def record(config, seed, *, last=6.0):
    numbers = {"first_loss": 12.0 + seed, "last_loss": last, "AP50": 0.1 * seed, "cpu_seconds": 30}
    return {"config": config, "seed": seed, "steps": 60, **numbers}


def call(script, monkeypatch, folder, *arguments):
    monkeypatch.setattr(sys, "argv", ["compare_configs.py", "--out", str(folder), *arguments])
    script.main()


def test_runs_in_the_file_are_not_repeated(script, monkeypatch, tmp_path, capsys):
    done = [record("a", 0), record("b", 0)]
    text = "".join(json.dumps(line) + "\n" for line in done)
    cut_off = json.dumps(record("a", 1))[:-9]
    (tmp_path / "runs.jsonl").write_text(text + cut_off)
    runs = []

    def run(config, seed, steps, settings, out, *, resumes):
        runs.append((config, seed, resumes))
        return record(config, seed)

    monkeypatch.setattr(script, "run", run)
    call(script, monkeypatch, tmp_path, "a", "b", "c", "--seeds", "0", "1")
    assert runs == [("c", 0, True), ("a", 1, False), ("b", 1, False), ("c", 1, False)]
    assert len(script.read_records(tmp_path / "runs.jsonl")) == 6
    assert capsys.readouterr().out.splitlines()[2] == (
        "| `a` | 1 | 0.5 | 12.50, 6.00 | 0.050 (0.000 to 0.100) | 30 |"
    )
    call(script, monkeypatch, tmp_path, "a", "b", "c", "--seeds", "0", "1")
    assert len(runs) == 4


def test_a_loss_that_does_not_fall_is_an_error(script, monkeypatch, tmp_path):
    monkeypatch.setattr(
        script, "run", lambda config, seed, *rest, resumes: record(config, seed, last=12.0 + seed)
    )
    with pytest.raises(SystemExit, match="must fall in every run, got none in a seed 0, a seed 2"):
        call(script, monkeypatch, tmp_path, "a", "--seeds", "0", "2")


def test_runs_with_other_settings_are_separate(script, monkeypatch, tmp_path):
    runs = []

    def run(config, seed, steps, settings, out, *, resumes):
        runs.append((config, settings))
        return record(config, seed) | {"settings": settings}

    monkeypatch.setattr(script, "run", run)
    for _ in range(2):
        call(script, monkeypatch, tmp_path, "a", "--seeds", "0")
        call(
            script, monkeypatch, tmp_path, "a", "--seeds", "0", "--set", "train.clip_norm=1", "b=2"
        )
    assert runs == [("a", ()), ("a", ("train.clip_norm=1", "b=2"))]


@pytest.mark.parametrize(("ap50", "passes"), [(0.39, True), (0.19, False), (0.41, False)])
def test_values_of_a_setting_are_compared_with_the_first(
    script, monkeypatch, tmp_path, capsys, ap50, passes
):
    runs = []

    def run(config, seed, steps, settings, out, *, resumes):
        runs.append((seed, settings))
        measured = 0.2 + 0.1 * seed if settings[-1] == "p=x" else ap50
        return record(config, seed) | {"settings": list(settings), "AP50": measured}

    monkeypatch.setattr(script, "run", run)
    arguments = ("a", "--seeds", "0", "1", "2", "--set", "b=2", "--vary", "p=x,y")
    if passes:
        call(script, monkeypatch, tmp_path, *arguments)
    else:
        with pytest.raises(SystemExit, match=r"of a must be within 0\.100 .* with p=y, got a diff"):
            call(script, monkeypatch, tmp_path, *arguments)
    assert runs == [(seed, ("b=2", value)) for seed in (0, 1, 2) for value in ("p=x", "p=y")]
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| `a p=x`", "| `a p=y`"]


def test_settings_reach_the_command(script, monkeypatch, tmp_path):
    commands = []
    monkeypatch.setattr(script, "_command", lambda *arguments: commands.append(arguments))
    losses = [{"total": 12.0}, {"total": 6.0}]
    measured = [dict.fromkeys(("AP", "AP50", "AP75", "AR100"), 0.1)]
    monkeypatch.setattr(
        script, "_metrics", lambda folder, kind: losses if kind == "train" else measured
    )
    found = script.run("a", 0, 60, ["train.clip_norm=1"], tmp_path, resumes=False)
    assert found["settings"] == ["train.clip_norm=1"]
    assert "train.clip_norm=1" in commands[0]
