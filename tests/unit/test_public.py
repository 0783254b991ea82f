"""The public names of `deformable_detr`, and the cost of importing it."""

import subprocess
import sys

import pytest

import deformable_detr

# Changing it needs the steps of "Public names and deprecation" in CONTRIBUTING.md.
PUBLIC = {
    "Detector",
    "PreemptedError",
    "Target",
    "__version__",
    "build_criterion",
    "build_model",
    "check_data",
    "evaluate",
    "explain",
    "export_weights",
    "import_weights",
    "load_config",
    "official_losses",
    "overfit",
    "predict",
    "report",
    "train",
}


def test_importing_the_package_and_reading_a_config_need_no_pytorch():
    code = (
        "import sys, deformable_detr\n"
        "deformable_detr.load_config('deformable_detr_r50', ['match_official=true'])\n"
        "print('torch' in sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.stdout, result.returncode) == ("False\n", 0), result.stderr


def test_public_names_are_frozen():
    assert set(deformable_detr.__all__) == PUBLIC


def test_every_public_name_can_be_imported():
    for name in deformable_detr.__all__:
        assert getattr(deformable_detr, name) is not None


def test_unknown_name_raises():
    with pytest.raises(AttributeError, match="has no attribute 'Model'"):
        _ = deformable_detr.Model
