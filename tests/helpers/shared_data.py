"""Where the shared test data are: real annotations and photos that the repository does not hold."""

import os
from pathlib import Path

import pytest

VARIABLE = "DEFORMABLE_DETR_TEST_DATA"
_REPOSITORY = Path(__file__).resolve().parents[2]
TEST_DATA = Path(os.environ.get(VARIABLE, _REPOSITORY.parent / "shared" / "data"))


def shared_data(relative: str) -> Path:
    """The path of a shared file or folder; skips the test, with the reason, where it is absent."""
    path = TEST_DATA / relative
    if not path.exists():
        pytest.skip(f"no shared test data: {path} is missing; set {VARIABLE} to their folder")
    return path
