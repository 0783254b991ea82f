"""Acceptance gates of the native operators, on reports with made-up times."""

import dataclasses

import pytest
from helpers.benchmark_report import make_memory, make_report, make_scaling
from helpers.scripts import load_script

from deformable_detr.benchmark.ops.suite import Report
from deformable_detr.benchmark.ops.workload import DECODER, ENCODER

script = load_script("check_speed_goals")


def judge(report: Report) -> dict[str, script.Verdict]:
    return {verdict.title: verdict for verdict in script.judge(report)}


def judge_all(**changed: float) -> dict[str, script.Verdict]:
    return judge(make_report(**changed))


def test_every_goal_has_a_verdict_and_can_pass() -> None:
    verdicts = judge_all()

    assert [title for title, verdict in verdicts.items() if not verdict.passes] == []
    assert list(verdicts) == [
        "encoder forward, warm: reference / transformers",
        "encoder forward, default: reference / transformers",
        "decoder forward, warm: reference / transformers",
        "encoder backward, warm: reference / transformers",
        "decoder backward, warm: reference / transformers",
        "encoder forward, warm: native / reference",
        "encoder forward, default: native / reference",
        "encoder forward, warm: native fused / reference module",
        "encoder forward, warm: native bfloat16 / reference",
        "decoder forward, warm: native / reference",
        "encoder backward, warm: native / reference",
        "decoder backward, warm: native / reference",
        "encoder forward, default: native, N = 2 / N = 1",
        "encoder backward, default: native, N = 2 / N = 1",
        "encoder forward: native, peak extra memory",
        "encoder forward+backward: native, peak extra memory",
    ]


@pytest.mark.parametrize(
    ("title", "goal"),
    [
        ("encoder forward, warm: native / reference", 45),
        ("encoder forward, default: native / reference", 75),
        ("decoder forward, warm: native / reference", 30),
        ("encoder backward, warm: native / reference", 37),
        ("decoder backward, warm: native / reference", 13),
    ],
)
def test_a_speed_up_passes_at_085_of_its_goal(title: str, goal: float) -> None:
    reached, missed = (750.0 / (goal * share) for share in (0.851, 0.849))

    assert judge_all(native=reached)[title].passes
    verdict = judge_all(native=missed)[title]
    assert not verdict.passes
    assert (verdict.goal, verdict.gate) == (goal, pytest.approx(0.85 * goal))
    assert verdict.measured == pytest.approx(0.849 * goal)
    samples = DECODER.samples if title.startswith("decoder") else ENCODER.samples
    assert verdict.ns_per_sample == pytest.approx(missed * 1e6 / samples)


def test_the_fused_operator_is_compared_with_the_reference_module() -> None:
    title = "encoder forward, warm: native fused / reference module"

    assert judge_all(native_fused=800 / 45)[title].measured == pytest.approx(45)
    assert not judge_all(native_fused=800 / 38)[title].passes


def test_bfloat16_is_compared_with_the_float32_reference() -> None:
    title = "encoder forward, warm: native bfloat16 / reference"

    assert judge_all(native_bfloat16=750 / 60)[title].measured == pytest.approx(60)
    assert not judge_all(native_bfloat16=750 / 50)[title].passes


@pytest.mark.parametrize(
    ("speed", "passes"), [(0.89, False), (0.91, True), (1.09, True), (1.11, False)]
)
def test_the_reference_must_be_as_fast_as_transformers(speed: float, passes: bool) -> None:
    title = "encoder backward, warm: reference / transformers"

    assert judge_all(transformers=750 * speed)[title].passes == passes


@pytest.mark.parametrize(("cost", "passes"), [(2.09, True), (2.11, False)])
def test_two_images_may_take_little_more_than_twice_the_time_of_one(
    cost: float, passes: bool
) -> None:
    verdicts = judge(dataclasses.replace(make_report(), scaling=make_scaling(cost_of_pair=cost)))

    assert [v.passes for title, v in verdicts.items() if "N = 2" in title] == [passes] * 2


def test_memory_has_a_limit_without_tolerance() -> None:
    memory = make_memory(forward=26.1, both=75.0)
    verdicts = judge(dataclasses.replace(make_report(), memory=memory))

    assert [v.passes for title, v in verdicts.items() if "memory" in title] == [False, True]


def test_a_goal_that_was_not_measured_does_not_pass() -> None:
    memory = make_memory(forward=None, both=None)
    verdicts = judge(dataclasses.replace(make_report(), timings={}, scaling=[], memory=memory))

    assert list(verdicts) == list(judge_all())
    assert {verdict.measured for verdict in verdicts.values()} == {None}
    assert not any(verdict.passes for verdict in verdicts.values())


@pytest.mark.parametrize(("native", "code", "word"), [(10.0, 0, "pass"), (20.0, 1, "FAIL")])
def test_the_command_prints_a_line_per_goal_and_its_exit_code_is_the_verdict(
    native: float,
    code: int,
    word: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(script, "run", lambda plan, machine, report: make_report(native=native))
    monkeypatch.setattr(script.sys, "argv", ["check_speed_goals.py"])

    assert script.main() == code
    lines = capsys.readouterr().out.split("Goals\n")[1].splitlines()
    assert len(lines) == len(judge_all())
    assert (
        f"{word}  encoder forward, default: native / reference: {750 / native:.2f} x, "
        f"must be at least 63.8 (goal 75), {native * 1e6 / ENCODER.samples:.2f} ns per sample"
    ) in lines


def test_fewer_rounds_are_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script.sys, "argv", ["check_speed_goals.py", "--rounds", "8"])
    with pytest.raises(SystemExit):
        script.main()
