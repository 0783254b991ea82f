"""Machine code of the CUDA kernels: registers, memory instructions, barriers; needs no GPU."""

import functools
import json
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers.cuda_kernels import SOURCES, TOOLS, instantiations, nvcc, requires_nvcc

_REPORT = TOOLS / "sass_report.py"
_HAS_DISASSEMBLER = shutil.which("cuobjdump") is not None or find_spec("triton") is not None
pytestmark = [
    requires_nvcc,
    pytest.mark.skipif(not _HAS_DISASSEMBLER, reason="cuobjdump is missing; triton includes one"),
    pytest.mark.skipif(not _REPORT.is_file(), reason=f"no SASS reader: {_REPORT} is missing"),
]

ARCHITECTURES = ("sm_80", "sm_90")
TYPES = {"float": torch.float32, "__half": torch.float16, "__nv_bfloat16": torch.bfloat16}
CHANNELS = (16, 32, 64)
DIRECTIONS = ("forward", "backward")


@functools.cache
def report(architecture: str) -> dict[tuple[str, str, int, bool], dict]:
    """Return the report of every kernel, by direction, type, D and whether it is fused."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernels.cu"
        source.write_text(
            "".join(instantiations(dtype, D) for dtype in TYPES.values() for D in CHANNELS)
        )
        command = [sys.executable, str(_REPORT), str(source), "--arch", architecture]
        command += ["--include", str(SOURCES), "--json"]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    kernels = {}
    for row in json.loads(printed):
        match = re.search(r"ms_deform_attn_(\w+)<(\w+), (\d+), (true|false)", row["kernel"])
        assert match is not None, row["kernel"]
        direction, type_name, D, fused = match.groups()
        kernels[direction, type_name, int(D), fused == "true"] = row
    return kernels


every_kernel = [
    pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"]),
    pytest.mark.parametrize("D", CHANNELS),
    pytest.mark.parametrize("type_name", TYPES),
    pytest.mark.parametrize("architecture", ARCHITECTURES),
]


def for_every_kernel(test):
    for mark in (pytest.mark.parametrize("direction", DIRECTIONS), *every_kernel):
        test = mark(test)
    return test


@for_every_kernel
def test_local_memory_is_not_used(direction, architecture, type_name, D, fused):
    kernel = report(architecture)[direction, type_name, D, fused]
    assert (kernel["stack"], kernel["spill_stores"], kernel["spill_loads"]) == (0, 0, 0)
    assert kernel["local"] == {}


@for_every_kernel
def test_kernels_have_no_barriers(direction, architecture, type_name, D, fused):
    assert report(architecture)[direction, type_name, D, fused]["barriers"] == {}


@for_every_kernel
def test_value_is_loaded_in_vectors_of_16_bytes(direction, architecture, type_name, D, fused):
    # Only value, and the output's gradient in backward, are loaded as constant memory.
    loads = report(architecture)[direction, type_name, D, fused]["global_loads"]
    constant = {name: count for name, count in loads.items() if name.endswith(".CONSTANT")}
    assert set(constant) == {"LDG.E.128.CONSTANT"}
    lanes = D * TYPES[type_name].itemsize // 16
    corners_at_once = 4 if direction == "forward" else 4 * lanes + 1
    assert constant["LDG.E.128.CONSTANT"] == corners_at_once


@for_every_kernel
def test_registers_leave_room_for_several_blocks(direction, architecture, type_name, D, fused):
    registers = report(architecture)[direction, type_name, D, fused]["registers"]
    if direction == "forward":
        assert registers <= (40 if type_name == "float" else 48)
    else:
        assert registers <= (128 if D == 64 else 80)


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("D", CHANNELS)
@pytest.mark.parametrize("type_name", TYPES)
def test_gradients_of_value_are_added_four_at_a_time_on_sm_90(type_name, D, fused):
    atomics = report("sm_90")["backward", type_name, D, fused]["atomics"]
    assert list(atomics) == ["REDG.E.ADD.F32x4.FTZ.RN.STRONG.GPU"]
    # Four corners per sample, as many samples as a group has lanes, four channels each.
    lanes = D * TYPES[type_name].itemsize // 16
    assert sum(atomics.values()) == 4 * lanes * (D // lanes) // 4


@pytest.mark.slow
@pytest.mark.parametrize("number", [75, 86, 89, 100, 110, 120])
def test_kernels_compile_for_the_other_generations(number, tmp_path):
    text = instantiations(torch.float32, 0) + instantiations(torch.bfloat16, 32)
    said = nvcc(text, tmp_path / "kernels.cubin", "-cubin", f"-arch=sm_{number}", "-Xptxas=-v")
    assert "warning" not in said
    assert said.count("0 bytes stack frame") == said.count("stack frame") > 0
