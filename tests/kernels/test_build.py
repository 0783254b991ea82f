"""Compilation plan of setup.py, and dependencies of the compiled module."""

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.operator_calls import requires_native

from deformable_detr.ops import library

SETUP = Path(__file__).parents[2] / "setup.py"


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("setup_py", SETUP)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def everything(build):
    """A machine with every tool."""
    return build.Toolchain(
        compiler="/usr/bin/c++",
        nvcc=Path("/cuda/bin/nvcc"),
        nvcc_major=13,
        torch_cuda="13.2",
        cuda_runtime=Path("/cuda/lib64"),
    )


LACKS = {
    "nvcc was not found": {"nvcc": None},
    "does not report its version; does it run": {"nvcc_major": None},
    "torch is built without CUDA": {"torch_cuda": None},
    "must be that of torch, 12.8, but .*nvcc has 13": {"torch_cuda": "12.8"},
    "the static CUDA runtime .* was not found": {"cuda_runtime": None},
}


@pytest.mark.parametrize(
    ("choice", "cpu", "cuda"),
    [("auto", True, True), ("cuda", True, True), ("cpu", True, False), ("none", False, False)],
)
def test_a_machine_with_every_tool_compiles_as_requested(build, everything, choice, cpu, cuda):
    plan = build.decide(choice, everything)
    assert (plan.cpu, plan.cuda) == (cpu, cuda)
    assert bool(plan.note) == (choice == "none")


@pytest.mark.parametrize(("message", "lack"), LACKS.items(), ids=LACKS)
def test_auto_compiles_for_the_cpu_if_cuda_is_not_possible(build, everything, message, lack):
    plan = build.decide("auto", dataclasses.replace(everything, **lack))
    assert (plan.cpu, plan.cuda) == (True, False)
    assert plan.note.startswith("CPU operators only: ")
    assert build.cuda_obstacle(dataclasses.replace(everything, **lack)) in plan.note


@pytest.mark.parametrize(("message", "lack"), LACKS.items(), ids=LACKS)
def test_requested_cuda_raises_on_each_obstacle(build, everything, message, lack):
    with pytest.raises(
        RuntimeError, match=f"DEFORMABLE_DETR_NATIVE=cuda cannot be done: .*{message}"
    ):
        build.decide("cuda", dataclasses.replace(everything, **lack))


def test_an_nvcc_that_does_not_run_has_no_version(build, tmp_path):
    broken = tmp_path / "nvcc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    assert build.nvcc_major_version(broken) is None  # not executable
    broken.chmod(0o755)
    assert build.nvcc_major_version(broken) is None
    broken.write_text("#!/bin/sh\necho Cuda compilation tools, release 12.8, V12.8.93\n")
    assert build.nvcc_major_version(broken) == 12


def test_auto_without_a_compiler_is_pure_with_a_note_on_speed(build, everything, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    plan = build.decide("auto", dataclasses.replace(everything, compiler=None))
    assert (plan.cpu, plan.cuda) == (False, False)
    assert "no C++ compiler was found" in plan.note
    assert "tens of times as long" in plan.note


@pytest.mark.parametrize("choice", ["cpu", "cuda"])
def test_an_explicit_choice_without_a_compiler_raises(build, everything, choice):
    with pytest.raises(RuntimeError, match=f"NATIVE={choice} needs a C\\+\\+ compiler"):
        build.decide(choice, dataclasses.replace(everything, compiler=None))


def test_a_compiler_with_arguments_is_reported(build, everything, monkeypatch):
    monkeypatch.setenv("CXX", "g++ -m64")
    plan = build.decide("auto", dataclasses.replace(everything, compiler=None))
    assert "CXX must be the name or path of a C++ compiler" in plan.note
    assert "got 'g++ -m64'" in plan.note


def test_an_unknown_choice_raises(build, everything):
    with pytest.raises(RuntimeError, match=r"must be one of .*, got 'yes'"):
        build.decide("yes", everything)


def test_the_newest_architecture_of_nvcc_is_compiled_to_ptx_too(build, monkeypatch):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr(build, "output_of", lambda *_: "compute_75\ncompute_80\ncompute_90\n")
    assert build.cuda_architecture_flags(Path("nvcc")) == [
        "-gencode=arch=compute_75,code=sm_75",
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]


def test_the_list_of_architectures_is_used(build, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
    assert sorted(build.cuda_architecture_flags(Path("nvcc"))) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=compute_90",
        "-gencode=arch=compute_90,code=sm_90",
    ]


def test_a_blank_list_of_architectures_is_ignored(build, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", " ")
    monkeypatch.setattr(build, "output_of", lambda *_: "compute_80\n")
    assert len(build.cuda_architecture_flags(Path("nvcc"))) == 2


@pytest.mark.parametrize("listed", ["abc", "9.9"])
def test_a_list_of_unknown_architectures_raises(build, monkeypatch, listed):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    with pytest.raises(RuntimeError, match=f"TORCH_CUDA_ARCH_LIST must name .*, got '{listed}'"):
        build.cuda_architecture_flags(Path("nvcc"))


def test_the_runtime_of_the_toolkit_is_preferred_to_that_of_torchs_packages(build, tmp_path):
    name = "cudart_static.lib" if sys.platform == "win32" else "libcudart_static.a"
    toolkit, packages = tmp_path / "cuda", tmp_path / "site-packages"
    for folder in (toolkit / "bin", toolkit / "lib64", packages / "nvidia" / "cu13" / "lib"):
        folder.mkdir(parents=True)
    nvcc = toolkit / "bin" / "nvcc"
    assert build.find_cuda_runtime(None, packages) is None
    assert build.find_cuda_runtime(nvcc, packages) is None
    (packages / "nvidia" / "cu13" / "lib" / name).touch()
    assert build.find_cuda_runtime(nvcc, packages) == packages / "nvidia" / "cu13" / "lib"
    (toolkit / "lib64" / name).touch()
    assert build.find_cuda_runtime(nvcc, packages) == toolkit / "lib64"


@requires_native
def test_the_binary_works_with_every_python():
    assert library._C.__file__.endswith(("_C.abi3.so", "_C.pyd"))


def symbols(path, *options):
    """Return (kind, name) of a library's dynamic symbols: U is required, w is optional."""
    listing = subprocess.run(
        ["nm", "--dynamic", *options, path], check=True, capture_output=True, text=True
    ).stdout
    return [tuple(line.split()[-2:]) for line in listing.splitlines()]


@requires_native
@pytest.mark.skipif(sys.platform != "linux", reason="reads the symbols with nm")
def test_the_binary_needs_only_the_stable_interface_of_a_cpu_build_of_torch():
    needed = {
        name for kind, name in symbols(library._C.__file__, "--undefined-only") if kind == "U"
    }
    # Beginnings of the mangled names in at::, c10:: and torch::.
    unstable = [
        name
        for name in needed
        if name.startswith("_Z") and any(space in name for space in ("2at", "3c10", "5torch"))
    ]
    assert unstable == []
    of_torch = {name for name in needed if name.startswith(("aoti_torch_", "torch_"))}
    assert "aoti_torch_library_impl" in of_torch or "torch_library_impl" in of_torch
    of_cpu = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    assert of_torch <= {name for _, name in symbols(of_cpu, "--defined-only")}


@requires_native
@pytest.mark.skipif(sys.platform != "linux", reason="reads the symbols with nm")
def test_the_binary_exports_one_own_symbol_and_none_of_cuda():
    shown = [name for _, name in symbols(library._C.__file__, "--defined-only")]
    ours_or_of_cuda = [
        name for name in shown if name.startswith(("Py", "cu")) or "deformable_detr" in name
    ]
    assert ours_or_of_cuda == ["PyInit__C"]
