"""The search with hostile inputs notices faults that are planted."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from fuzzing.edits import RECORD_EDITS, drawn, edited
from fuzzing.pool import Worker
from fuzzing.sound import Sound, annotations, write_sound
from fuzzing.worker import TRIALS, Trial
from helpers.scripts import load_script

from deformable_detr import Detector

script = load_script("fuzz_inputs")

# In place of an entry point, for the names of files that plant a fault.
PLANTED = """
import logging
import time
from pathlib import Path
from fuzzing import worker

def try_planted(trial, info, sound, detector):
    def step():
        match info["fault"]:
            case "hang":
                time.sleep(60)
            case "traceback":
                raise TypeError("unexpected")
            case "lines":
                raise ValueError("hostile\\nTraceback")
            case "control":
                raise ValueError("hostile \\x1b[2J")
            case "nameless":
                raise ValueError("something is wrong")
            case "memory":
                bytearray(b"x") * (300 << 20)
            case "too much memory":
                bytearray(b"x") * (8 << 30)
            case "time":
                begin = time.process_time()
                while time.process_time() < begin + 2.8:
                    pass
            case "overwrite":
                (sound.photos / "1.png").write_bytes(b"")
            case "death":
                worker.os._exit(3)
            case "log":
                logging.getLogger("deformable_detr").warning("a\\x1b[2J")
            case "refused":
                raise ValueError("hostile.json must be sound")
        return 1

    trial.run("step", step)
    trial.run("other", lambda: 2 if info["fault"] == "differs" else 1)
    if info["fault"] == "differs":
        trial.agree("step", "other")

worker.TRIALS = {"planted": try_planted}
worker.main()
"""
FAULTS = {  # the last two end the worker
    "traceback": r"TypeError at .* is no refusal: 'unexpected'",
    "lines": r"ValueError at .* must be one short printable line",
    "control": r"ValueError at .* must be one short printable line",
    "nameless": "does not name the input: 'something is wrong'",
    "memory": r"took 1\d{3} MB",
    "too much memory": "MemoryError",
    "time": r"took 2\.\d s of processor time",
    "overwrite": r"changed: \S+1\.png",
    "log": r"log line: 'a\\x1b\[2J'",
    "differs": "findings differ",
    "hang": r"no end after [89] s",
    "death": "the worker died",
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Sound:
    return write_sound(tmp_path_factory.mktemp("fuzz") / "sound")


def test_sound_inputs_are_accepted_everywhere(sound: Sound, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for source, name in (
        (sound.annotations, "hostile.json"),
        (sound.config, "config.yaml"),
        (sound.checkpoint, "hostile.pth"),
        (sound.photos / "1.png", "images/1.png"),
    ):
        shutil.copyfile(source, tmp_path / name)
    array = {"dtype": "u1", "shape": [40, 48, 3], "fill": "noise", "layout": "F"}
    detector = Detector.from_checkpoint(sound.checkpoint, "cpu")
    for kind, info in (
        ("annotations", {}),
        ("config", {}),
        ("override", {"override": "train.epochs=3"}),
        ("checkpoint", {"checkpoint": "hostile.pth"}),
        ("photo", {"photo": "1.png"}),
        ("array", {"array": array}),
    ):
        trial = Trial(["hostile"])
        TRIALS[kind](trial, {"folder": str(tmp_path), **info}, sound, detector)
        assert trial.problems == []
        assert trial.steps
        assert all(ok for ok, _ in trial.steps.values()), (kind, trial.steps)


@pytest.mark.slow
def test_planted_faults_are_noticed(
    sound: Sound,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def plant(seed: int, index: int, sound: Sound, folder: Path) -> dict[str, Any]:
        return {"kind": "planted", "fault": names[index], "names": ["hostile"]}

    names = ["none", "refused", *FAULTS]
    program = tmp_path / "planted.py"
    program.write_text(PLANTED)
    worker = Worker(sound, program=(str(program),), wait_s=8)
    monkeypatch.setattr(script, "write_input", plant)
    monkeypatch.setattr("fuzzing.pool.MOST_S", 2.5)
    monkeypatch.setattr("fuzzing.pool.MOST_MB", 1000.0)
    try:
        verdicts = script.try_inputs(0, range(len(names)), sound, worker, tmp_path)
    finally:
        worker.stop()

    assert verdicts[0].works
    assert verdicts[0].problems == verdicts[1].problems == []
    for verdict, (name, expected) in zip(verdicts[2:], FAULTS.items(), strict=True):
        [problem] = verdict.problems
        assert re.search(expected, problem), (name, problem)
    script.print_table(verdicts)
    table = capsys.readouterr().out
    assert re.search(r"planted +14 +1 +1 +12 ", table)
    assert table.count("FAILED planted, --only ") == 12


@pytest.mark.parametrize(
    ("code", "printed", "expected"),
    [
        (0, "12 images\n", []),
        (2, "12 images\nerror: it is wrong\n", []),
        (2, "usage\n", ["must have one line of error"]),
        (2, "error: one\nerror: two\n", ["must have one line of error"]),
        (0, "a \x1b[2J\n", ["no short printable line"]),
        (1, "Traceback (most recent call last):\nTypeError: x\n", ["traceback: TypeError: x"]),
        (-11, "", ["exit code -11"]),
    ],
)
def test_output_of_a_command_is_judged(code: int, printed: str, expected: list[str]) -> None:
    problems = script.wrong_with(code, printed)
    assert len(problems) == len(expected)
    for problem, beginning in zip(problems, expected, strict=True):
        assert problem.startswith(beginning)


def test_inputs_depend_on_the_seed_only() -> None:
    first, again, other = (drawn(RECORD_EDITS, seed) for seed in (1, 1, 2))
    assert repr(first) == repr(again) != repr(other)
    kinds = {repr(edited(annotations(), drawn(RECORD_EDITS, seed))) for seed in range(20)}
    assert len(kinds) > 15


@pytest.mark.slow
@pytest.mark.parametrize(("inputs", "commands"), [("60", "0"), ("0", "10")])
def test_a_sample_works_or_is_refused(
    inputs: str, commands: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = script.main(["--seed", "11", "--inputs", inputs, "--commands", commands])
    out = capsys.readouterr().out
    assert code == 0, out
    counts = [int(row.split()[-6]) for row in out.splitlines()[1:]]
    assert sum(counts) == int(inputs) + int(commands)
