import json

import pytest
import torch
from helpers.benchmark_report import make_machine, make_report
from helpers.command_line import CommandLine

from deformable_detr.benchmark import layers, machine
from deformable_detr.benchmark.layers import Comparison, Pair
from deformable_detr.benchmark.machine import Machine
from deformable_detr.benchmark.ops import suite
from deformable_detr.benchmark.ops.suite import Plan, Report
from deformable_detr.benchmark.ops.workload import DECODER, ENCODER
from deformable_detr.benchmark.summary import Summary


class FakeSuite:
    """Stand-in for `suite.run` that records its plans and returns a prepared report."""

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


def test_only_json_is_written_to_stdout(run: CommandLine, fake: FakeSuite) -> None:
    record = json.loads(run("benchmark", "ops", "--json").out)

    assert record["dtype"] == "float32"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_one_clear_line(run: CommandLine) -> None:
    message = run.fails("benchmark", "ops", "--device", "cuda")

    assert message.endswith("found none; choose --device cpu")


def test_an_unknown_shape_is_a_usage_error(run: CommandLine) -> None:
    outcome = run("benchmark", "ops", "--shape", "encode")

    assert outcome.code == 2
    assert "encoder" in outcome.err


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
