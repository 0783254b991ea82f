"""Session header with the installation under test, and a fixed seed per test."""

import os
from pathlib import Path

import pytest
import torch
from helpers.shared_data import TEST_DATA
from hypothesis import settings

import deformable_detr
from deformable_detr.ops import available_backends

settings.register_profile("suite", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("suite")


REQUIRE_NATIVE = "DEFORMABLE_DETR_REQUIRE_NATIVE"


def pytest_sessionstart() -> None:
    missing = available_backends()["native"]
    if missing and os.environ.get(REQUIRE_NATIVE) == "1":
        pytest.exit(f"{REQUIRE_NATIVE}=1, but {missing}", returncode=1)


def pytest_report_header() -> list[str]:
    backends = ", ".join(
        f"{name} ({reason})" if reason else name for name, reason in available_backends().items()
    )
    return [
        f"deformable_detr: {Path(deformable_detr.__file__).parent}",
        f"torch: {torch.__version__}, CUDA {'yes' if torch.cuda.is_available() else 'no'}",
        f"back-ends: {backends}",
        f"test data: {TEST_DATA} ({'present' if TEST_DATA.is_dir() else 'absent'})",
    ]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
