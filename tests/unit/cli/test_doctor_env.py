"""`deformable-detr doctor env`: what it shows, and what it calls broken."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
import torchvision
from helpers.command_line import CommandLine

from deformable_detr.benchmark.ops.workload import Shape
from deformable_detr.ops import library
from deformable_detr.version import __version__
from deformable_detr.workflows.doctor import installation
from deformable_detr.workflows.doctor.installation import Speed, examine_installation, measure_speed


@pytest.fixture(autouse=True)
def sound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a machine without findings, and a short speed test."""
    monkeypatch.setattr(installation, "SPEED_SHAPE", Shape("tiny", ((4, 4), (2, 2))))
    monkeypatch.setattr(installation, "SPEED_TEST_S", 0.05)
    monkeypatch.setattr(installation, "num_cores", lambda: 2)
    monkeypatch.setattr(installation, "shared_memory_bytes", lambda: 2**33)


def test_the_report_shows_versions_operators_and_speed(run: CommandLine) -> None:
    outcome = run("doctor", "env")

    assert outcome.code == 0, outcome.out
    lines = [" ".join(line.split()) for line in outcome.out.splitlines()]
    for line in (
        f"deformable-detr {__version__}",
        f"torch {torch.__version__}",
        "native operators loaded",
        "cpu native available",
        f"CUDA kernels {', '.join(library.cuda_architectures()) or 'none'}",
        "nothing is wrong",
    ):
        assert line in lines
    assert any(
        line.startswith(f"CPU kernels {library.cpu_instruction_set()} in use") for line in lines
    )
    assert sum(line.startswith("speed, cpu") and line.endswith(" ms") for line in lines) == 2


def test_json_has_the_same_for_programs(run: CommandLine) -> None:
    record = json.loads(run("doctor", "env", "--json").out)

    assert record["operators"]["cpu"] == {"native": "", "reference": ""}
    assert record["instruction_set"] == record["instruction_sets"][-1]
    assert record["speed"][0]["ms"]["native"] > 0
    assert record["speed"][0]["difference"] < 1e-5
    assert (record["findings"], record["is_broken"]) == ([], False)


def test_the_speed_test_keeps_to_its_time() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    speed = measure_speed("cpu", 0.01)

    assert set(speed.ms) == {"native", "reference"}
    assert torch.equal(torch.get_rng_state(), before)


def _nothing(*_: object) -> None:
    raise RuntimeError("operator torchvision::nms does not exist")


WRONG = {
    "missing package": (
        lambda patch: patch.setattr(installation, "package_versions", lambda _: {"timm": ""}),
        "package timm is missing; pip install timm",
        True,
    ),
    "torchvision of another torch": (
        lambda patch: patch.setattr(torchvision.ops, "nms", _nothing),
        "does not fit torch",
        True,
    ),
    "operators not built": (
        lambda patch: patch.setattr(library, "LOAD_ERROR", ModuleNotFoundError("no _C")),
        "the native operators are not built",
        False,
    ),
    "operators of another torch": (
        lambda patch: patch.setattr(library, "LOAD_ERROR", ImportError("undefined symbol: \x1b")),
        r"the native operators do not load: undefined symbol: \x1b; pip install",
        True,
    ),
    "wrong results": (
        lambda patch: patch.setattr(
            installation, "measure_speed", lambda *_: Speed("cpu", {"native": 1.0}, 0.5)
        ),
        "differ from plain PyTorch on cpu by 0.5 of the largest value",
        True,
    ),
    "results that are not numbers": (
        lambda patch: patch.setattr(
            installation, "measure_speed", lambda *_: Speed("cpu", {"native": 1.0}, float("nan"))
        ),
        "differ from plain PyTorch on cpu by nan",
        True,
    ),
    "one thread": (
        lambda patch: (
            patch.setattr(installation, "num_cores", lambda: 64),
            patch.setattr(torch, "get_num_threads", lambda: 1),
        ),
        "PyTorch uses 1 thread on 64 cores; unset OMP_NUM_THREADS",
        False,
    ),
    "little shared memory": (
        lambda patch: patch.setattr(installation, "shared_memory_bytes", lambda: 2**26),
        "/dev/shm has 64 MiB free, too little for data-loader workers",
        False,
    ),
    "GPU without kernels": (
        lambda patch: (
            patch.setattr(torch.cuda, "device_count", lambda: 1),
            patch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0)),
            patch.setattr(torch.cuda, "get_device_name", lambda _: "GPU X"),
            patch.setattr(torch.version, "cuda", "12.8"),
            patch.setattr(
                library, "_C", SimpleNamespace(CUDA_ARCHITECTURES="sm_80"), raising=False
            ),
            patch.setattr(installation, "measure_speed", lambda *_: Speed("cpu", {}, None)),
        ),
        "cuda:0: the native ops are built for sm_80, not for GPU X (sm_90); reinstall with",
        False,
    ),
}


@pytest.mark.parametrize(("damage", "line", "is_broken"), WRONG.values(), ids=WRONG)
def test_each_fault_is_found_with_a_remedy(
    run: CommandLine, monkeypatch: pytest.MonkeyPatch, damage, line: str, is_broken: bool
) -> None:
    damage(monkeypatch)

    outcome = run("doctor", "env")

    assert outcome.code == (1 if is_broken else 0)
    assert line in outcome.out.replace("\n", " ")
    assert ("broken:" in outcome.out) == is_broken
    assert ("warning:" in outcome.out) != is_broken
    assert examine_installation().is_broken == is_broken


def test_a_torch_that_cannot_be_imported_is_one_line(
    run: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "deformable_detr.workflows.doctor.installation", None)

    outcome = run("doctor", "env")

    assert outcome.code == 1
    assert outcome.out.startswith("broken: a package cannot be imported (")
    assert outcome.out.count("\n") == 1
