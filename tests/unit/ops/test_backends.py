"""Choice of the back-end, and messages if the native one is not available."""

from types import SimpleNamespace

import pytest
import torch

from deformable_detr.ops import available_backends, library, ms_deform_attn
from deformable_detr.ops.ms_deformable_attention import dispatch

CPU = torch.device("cpu")


@pytest.fixture
def pure_install(monkeypatch):
    """Simulate an installation without the compiled module."""
    monkeypatch.setattr(library, "LOAD_ERROR", ImportError("No module named '_C'"))
    dispatch._warn_of_reference.cache_clear()
    yield
    dispatch._warn_of_reference.cache_clear()


@pytest.fixture
def compiled_for(monkeypatch):
    """Simulate CUDA kernels compiled for some architectures, and a device of another."""

    def pretend(architectures, capability):
        monkeypatch.setattr(library, "LOAD_ERROR", None)
        monkeypatch.setattr(
            library, "_C", SimpleNamespace(CUDA_ARCHITECTURES=architectures), raising=False
        )
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "GPU X")
        return library.obstacle(torch.device("cuda"))

    return pretend


def one_sample():
    return (
        torch.ones(1, 4, 1, 1),
        ((2, 2),),
        torch.full((1, 1, 1, 1, 1, 2), 0.5),
        torch.ones(1, 1, 1, 1, 1),
    )


def test_a_pure_install_computes_and_warns_once(pure_install):
    message = r"runs in plain PyTorch on cpu, measured .* slower .*: the native ops are not built"
    with pytest.warns(RuntimeWarning, match=message) as warned:
        outputs = [ms_deform_attn(*one_sample()).item() for _ in range(3)]
    assert outputs == [1, 1, 1]
    assert [warning.filename for warning in warned] == [__file__]


def test_the_native_back_end_of_a_pure_install_raises(pure_install):
    message = (
        r"the native ops are not built; reinstall with a C\+\+ compiler "
        r"\(No module named '_C'\), or choose backend='reference'"
    )
    with pytest.raises(RuntimeError, match=message):
        ms_deform_attn(*one_sample(), backend="native")


def test_requesting_the_reference_never_warns(pure_install, recwarn):
    ms_deform_attn(*one_sample(), backend="reference")
    assert len(recwarn) == 0


def test_a_pure_install_still_lists_both_back_ends(pure_install):
    backends = available_backends()
    assert backends["reference"] == ""
    assert backends["native"].startswith("the native ops are not built")


def test_a_device_that_has_no_kernels_uses_the_reference_without_a_warning(recwarn):
    assert dispatch.resolve_backend("auto", torch.device("mps")) == "reference"
    assert len(recwarn) == 0


@pytest.mark.parametrize(
    ("architectures", "capability"),
    [
        ("sm_80", (8, 0)),
        ("sm_80", (8, 9)),  # machine code runs on its generation
        ("sm_75 sm_90", (9, 0)),
        ("sm_90a", (9, 0)),
        ("sm_75 compute_80", (12, 0)),  # PTX runs on every later one
    ],
)
def test_a_gpu_with_compiled_code_is_supported(compiled_for, architectures, capability):
    assert compiled_for(architectures, capability) == ""


@pytest.mark.parametrize(
    ("architectures", "capability"),
    [
        ("sm_86", (8, 0)),
        ("sm_80", (9, 0)),
        ("sm_90a", (10, 0)),
        ("compute_90a", (10, 0)),
        ("compute_120", (9, 0)),
    ],
)
def test_an_unsupported_gpu_is_named_with_the_remedy(compiled_for, architectures, capability):
    major, minor = capability
    assert compiled_for(architectures, capability) == (
        f"the native ops are built for {architectures}, not for GPU X (sm_{major}{minor}); "
        f"reinstall with TORCH_CUDA_ARCH_LIST={major}.{minor}"
    )


def test_a_binary_without_cuda_is_reported(compiled_for):
    assert compiled_for("", (9, 0)).startswith("the native ops are built without CUDA")
