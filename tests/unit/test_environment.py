"""What is known of the hardware."""

from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from deformable_detr import environment


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx512f avx512_bf16 amx_tile", True),
        ("fpu amx_bf16 amx_tile", True),
        ("fpu avx512f avx512_bf16x", False),
        ("fpu avx2", False),
    ],
)
def test_bfloat16_of_a_cpu(
    flags: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\nmodel name\t: avx512_bf16 \nflags\t\t: {flags}\nbugs\t: x\n")
    monkeypatch.setattr(environment, "_CPUINFO", file)
    assert environment.computes_bfloat16(torch.device("cpu")) is expected
    assert not environment.computes_bfloat16(torch.device("mps"))


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True)])
def test_bfloat16_of_a_gpu(capability: tuple[int, int], expected: bool) -> None:
    with patch.object(torch.cuda, "get_device_capability", lambda _: capability):
        assert environment.computes_bfloat16(torch.device("cuda", 0)) is expected
