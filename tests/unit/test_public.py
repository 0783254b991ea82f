"""Public names of `deformable_detr`, which are imported on first access."""

import subprocess
import sys

import pytest

import deformable_detr


def test_importing_the_package_and_reading_a_config_need_no_pytorch():
    code = (
        "import sys, deformable_detr\n"
        "deformable_detr.load_config('deformable_detr_r50', ['match_official=true'])\n"
        "print('torch' in sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.stdout, result.returncode) == ("False\n", 0), result.stderr


def test_all_public_names_can_be_imported():
    for name in deformable_detr.__all__:
        assert getattr(deformable_detr, name) is not None


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="has no attribute 'Model'"):
        _ = deformable_detr.Model
