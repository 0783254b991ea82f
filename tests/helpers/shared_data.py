"""Paths of the shared test data: real annotations and images that are not in the repository."""

import os
from pathlib import Path

import pytest

VARIABLE = "DEFORMABLE_DETR_TEST_DATA"
_REPOSITORY = Path(__file__).resolve().parents[2]
TEST_DATA = Path(os.environ.get(VARIABLE, _REPOSITORY.parent / "shared" / "data"))


def shared_data(relative: str) -> Path:
    """Return the path of a shared file or folder, or skip the test if it does not exist."""
    path = TEST_DATA / relative
    if not path.exists():
        pytest.skip(f"no shared test data: {path} is missing; set {VARIABLE} to their folder")
    return path
