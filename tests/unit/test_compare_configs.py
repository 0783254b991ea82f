"""Comparison of configs: it continues after an interruption, and reports differences."""

import json
import sys
import threading

import pytest
from helpers.scripts import load_script


@pytest.fixture
def script(monkeypatch):
    module = load_script("compare_configs")
    monkeypatch.setattr(module, "_size", lambda config, settings: f"{len(config)} | 0.5")
    return module


def record(config, seed, *, last=6.0):
    numbers = {"first_loss": 12.0 + seed, "last_loss": last, "cpu_seconds": 30}
    numbers |= {"AP": 0.05 * seed, "AP50": 0.1 * seed, "AP75": 0.0}
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
        "| `a` | 1 | 0.5 | 12.50, 6.00 | 0.025 (0.000 to 0.050) | 0.050 (0.000 to 0.100) | "
        "0.000 (0.000 to 0.000) | 30 |"
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
    monkeypatch.setattr(script, "_command", lambda *arguments: commands.append(arguments) or 3.04)
    losses = [{"total": 12.0}, {"total": 6.0}]
    measured = [dict.fromkeys(("AP", "AP50", "AP75", "AR100"), 0.1)]
    monkeypatch.setattr(
        script, "_metrics", lambda folder, kind: losses if kind == "train" else measured
    )
    found = script.run("a", 0, 60, ["train.clip_norm=1"], tmp_path, resumes=False)
    assert found["settings"] == ["train.clip_norm=1"]
    assert found["cpu_seconds"] == 3.0
    assert "train.clip_norm=1" in commands[0]


def test_a_config_has_its_own_settings_and_runs_go_side_by_side(
    script, monkeypatch, tmp_path, capsys
):
    both = threading.Barrier(2, timeout=10)
    runs = []

    def run(config, seed, steps, settings, out, *, resumes):
        both.wait()
        runs.append((config, settings))
        return record(config, seed) | {"settings": settings}

    monkeypatch.setattr(script, "run", run)
    arguments = ("--seeds", "0", "--set", "b=2", "--parallel", "2")
    call(script, monkeypatch, tmp_path, "a", "a x.y={} z=1", *arguments)
    assert sorted(runs) == [("a", ("b=2",)), ("a", ("b=2", "x.y={}", "z=1"))]
    assert "| `a x.y={} z=1` |" in capsys.readouterr().out


def test_cpu_time_is_that_of_the_command_and_a_failure_shows_its_output(script):
    assert 0.01 < script._command("--version") < 60
    with pytest.raises(RuntimeError, match=r"error: config must be .*\n*exit code 2"):
        script._command("train", "--config", "none_of_these")
