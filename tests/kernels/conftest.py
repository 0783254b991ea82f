import pytest
import torch

INSTRUCTION_SETS = ("generic", "AVX2", "AVX-512")


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request):
    """Use each instruction set of this processor in turn, and restore the best one."""
    cpu_capability = torch.ops.deformable_detr.cpu_capability
    best = INSTRUCTION_SETS.index(cpu_capability(-1))
    index = INSTRUCTION_SETS.index(request.param)
    if index > best:
        pytest.skip(f"this processor lacks {request.param}")
    assert cpu_capability(index) == request.param
    yield request.param
    cpu_capability(best)
