import json

import pytest
import torch
from helpers.benchmark_report import make_machine, make_report
from helpers.command_line import CommandLine

from deformable_detr.benchmark import layers, machine, suite
from deformable_detr.benchmark.layers import Comparison, Pair
from deformable_detr.benchmark.machine import Machine
from deformable_detr.benchmark.suite import Plan, Report
from deformable_detr.benchmark.summary import Summary
from deformable_detr.benchmark.workload import DECODER, ENCODER


class FakeSuite:
    """Stands for `suite.run`: remembers the plans, and has the report ready."""

    def __init__(self) -> None:
        self.plans: list[Plan] = []
        self.report: Report = make_report()

    def __call__(self, plan: Plan, machine: Machine, report: object) -> Report:
        assert callable(report)
        report("one stage: round 1")
        report("one stage: round 2")
        self.plans.append(plan)
        return self.report


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeSuite:
    stand_in = FakeSuite()
    monkeypatch.setattr(suite, "run", stand_in)
    monkeypatch.setattr(machine, "describe_machine", lambda device: make_machine())
    monkeypatch.setattr(suite, "check_device", lambda device: None)
    return stand_in


def test_everything_is_measured_by_default(run: CommandLine, fake: FakeSuite) -> None:
    outcome = run("benchmark", "ops")

    assert outcome.code == 0
    assert fake.plans == [Plan("cpu", "float32", (ENCODER, DECODER), rounds=9, with_extras=True)]
    assert "encoder, forward: 2,281,088 samples" in outcome.out
    assert "Goals" not in outcome.out
    assert outcome.err == "one stage\n"


def test_a_busy_machine_is_warned_about_before_minutes_are_spent(
    run: CommandLine, fake: FakeSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = make_machine(busy_cores=1.5)
    monkeypatch.setattr(machine, "describe_machine", lambda device: busy)

    lines = run("benchmark", "ops").err.splitlines()

    assert lines[0].startswith("warning: other programs keep 1.5 of 2 cores busy")
    assert lines[1] == "one stage"


def test_options_reach_the_plan(run: CommandLine, fake: FakeSuite) -> None:
    run("benchmark", "ops", "--shape", "decoder", "--dtype", "bfloat16", "--rounds", "3")

    assert fake.plans == [Plan("cpu", "bfloat16", (DECODER,), rounds=3, with_extras=False)]


def test_json_stands_alone_on_stdout(run: CommandLine, fake: FakeSuite) -> None:
    record = json.loads(run("benchmark", "ops", "--json").out)

    assert record["goals"] is None
    assert record["dtype"] == "float32"


def test_check_has_exit_code_zero_if_every_goal_is_reached(
    run: CommandLine, fake: FakeSuite
) -> None:
    outcome = run("benchmark", "ops", "--check")

    assert outcome.code == 0
    assert "Goals" in outcome.out
    assert "fail" not in outcome.out


def test_check_has_exit_code_one_if_a_goal_is_missed(run: CommandLine, fake: FakeSuite) -> None:
    fake.report = make_report(native=30.0)

    outcome = run("benchmark", "ops", "--check", "--json")

    assert outcome.code == 1
    missed = [goal["title"] for goal in json.loads(outcome.out)["goals"] if not goal["passes"]]
    assert "encoder forward, warm: native / reference" in missed


@pytest.mark.parametrize(
    "options", [("--shape", "decoder"), ("--dtype", "float16"), ("--device", "cuda")]
)
def test_check_has_its_own_shapes_and_dtypes(
    run: CommandLine, fake: FakeSuite, options: tuple[str, str]
) -> None:
    message = run.fails("benchmark", "ops", "--check", *options)

    assert options[1] in message
    assert message.endswith("leave out --device, --dtype and --shape")
    assert fake.plans == []


def test_check_wants_enough_rounds(run: CommandLine, fake: FakeSuite) -> None:
    message = run.fails("benchmark", "ops", "--check", "--rounds", "8")

    assert message == "--rounds must be at least 9 with --check, got 8"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_one_clear_line(run: CommandLine) -> None:
    message = run.fails("benchmark", "ops", "--device", "cuda")

    assert message.endswith("found none; choose --device cpu")


def test_an_unknown_shape_is_wrong_usage(run: CommandLine) -> None:
    outcome = run("benchmark", "ops", "--shape", "encode")

    assert outcome.code == 2
    assert "encoder" in outcome.err


def test_deformable_kernels_are_timed_beside_their_reference(run: CommandLine) -> None:
    outcome = run("benchmark", "deform-kernel", "--rounds", "2")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert "MFLOP" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["wall"] * 3 + ["processor"] * 3
    assert float(lines[-1].split()[1]) > 0


def test_layers_that_miss_a_limit_make_the_command_fail(
    run: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair("this", torch.rand, torch.rand, limit=1.05)
    times = Summary(1.0, 2.0, 3.0, 4.0)
    for ratio, code, verdict in ((1.05, 0, "holds"), (1.06, 1, "MISSED")):
        found = [Comparison(pair, times, times, Summary(0.9, 0.95, ratio, 1.2))]
        monkeypatch.setattr(layers, "measure", lambda rounds, report, found=found: found)
        outcome = run("benchmark", "layers")
        assert outcome.code == code
        assert outcome.out == (
            f"this: 3.00 ms, 3.00 ms, ratio {ratio:.3f} (0.950 to 1.200), limit 1.05 {verdict}\n"
        )
