"""Build script: compile `ops/src` and add `configs/` to the wheel; the rest is in pyproject.toml.

`DEFORMABLE_DETR_NATIVE` selects what to compile: `auto` (CPU if there is a C++ compiler, CUDA if
there is an nvcc that matches torch), `cuda`, `cpu` or `none`. `TORCH_CUDA_ARCH_LIST` is honored.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
CONFIGS = ROOT / "configs"
SOURCES = ROOT / "ops" / "src"

CHOICES = ("auto", "cuda", "cpu", "none")
# Oldest Python and torch whose stable ABIs the binary is built for.
WHEEL_TAG = "cp310"
TORCH_TARGET_VERSION = "0x020a000000000000"  # 2.10
# One architecture per generation; binaries also run on the other GPUs of the generation.
CUDA_ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "110", "120")

PURE_COST = (
    "the operators are not compiled: this install runs deformable attention in plain PyTorch, "
    "which takes tens of times as long"
)


@dataclass(frozen=True)
class Toolchain:
    """Tools of the machine; None for a missing one."""

    compiler: str | None
    nvcc: Path | None
    nvcc_major: int | None  # also None if nvcc does not run
    torch_cuda: str | None  # CUDA version that torch was built with, such as "13.0"
    cuda_runtime: Path | None  # folder of the static CUDA runtime


@dataclass(frozen=True)
class Plan:
    """Parts to compile, and a note for the user who installs."""

    cpu: bool
    cuda: bool
    note: str = ""


def cuda_obstacle(toolchain: Toolchain) -> str:
    """Return the reason why the CUDA kernels cannot be compiled; "" if they can."""
    if toolchain.nvcc is None:
        return "nvcc was not found on PATH or in CUDA_HOME"
    if toolchain.torch_cuda is None:
        return f"{toolchain.nvcc} was found, but torch is built without CUDA"
    if toolchain.nvcc_major is None:
        return f"{toolchain.nvcc} was found, but does not report its version; does it run?"
    if toolchain.nvcc_major != int(toolchain.torch_cuda.split(".")[0]):
        return (
            f"the major version of CUDA must be that of torch, {toolchain.torch_cuda}, "
            f"but {toolchain.nvcc} has {toolchain.nvcc_major}"
        )
    if toolchain.cuda_runtime is None:
        return f"the static CUDA runtime (cudart_static) was not found beside {toolchain.nvcc}"
    return ""


def decide(choice: str, toolchain: Toolchain) -> Plan:
    """Choose what to compile.

    Raises:
        RuntimeError: an explicit choice cannot be compiled on this machine.
    """
    if choice not in CHOICES:
        raise RuntimeError(f"DEFORMABLE_DETR_NATIVE must be one of {CHOICES}, got {choice!r}")
    if choice == "none":
        return Plan(cpu=False, cuda=False, note=f"with DEFORMABLE_DETR_NATIVE=none {PURE_COST}")
    if toolchain.compiler is None:
        if choice == "auto":
            return Plan(cpu=False, cuda=False, note=f"{_no_compiler()}; {PURE_COST}")
        raise RuntimeError(
            f"DEFORMABLE_DETR_NATIVE={choice} needs a C++ compiler; {_no_compiler()}"
        )
    if choice == "cpu":
        return Plan(cpu=True, cuda=False)
    obstacle = cuda_obstacle(toolchain)
    if obstacle and choice == "cuda":
        raise RuntimeError(f"DEFORMABLE_DETR_NATIVE=cuda cannot be done: {obstacle}")
    return Plan(cpu=True, cuda=not obstacle, note=obstacle and f"CPU operators only: {obstacle}")


def _no_compiler() -> str:
    named = os.environ.get("CXX")
    if named is None:
        return "no C++ compiler was found"
    return f"CXX must be the name or path of a C++ compiler, without arguments, got {named!r}"


def find_toolchain() -> Toolchain:
    """Find the compilers; torch must be installed.

    Raises:
        RuntimeError: torch is missing.
    """
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        raise RuntimeError(
            "torch must be installed before the operators are compiled: pip install torch "
            "torchvision, then pip install --no-build-isolation .; or set "
            f"DEFORMABLE_DETR_NATIVE=none ({error})"
        ) from error
    compiler = shutil.which(cpp_extension.get_cxx_compiler())
    home = cpp_extension.CUDA_HOME
    found = shutil.which("nvcc", path=str(Path(home) / "bin")) if home else None
    nvcc = Path(found) if found else None
    major = None
    if nvcc is not None:
        major = nvcc_major_version(nvcc)
    runtime = find_cuda_runtime(nvcc, Path(torch.__file__).parents[1])
    return Toolchain(compiler, nvcc, major, torch.version.cuda, runtime)


def nvcc_major_version(nvcc: Path) -> int | None:
    """Return the major version of an nvcc, or None if it does not run."""
    try:
        version = re.search(r"release (\d+)\.", output_of(nvcc, "--version"))
    except (OSError, subprocess.CalledProcessError):
        return None
    return int(version[1]) if version else None


def output_of(program: Path, *arguments: str) -> str:
    """Return the standard output of a program."""
    return subprocess.run(
        [program, *arguments], check=True, capture_output=True, text=True, encoding="utf-8"
    ).stdout


def find_cuda_runtime(nvcc: Path | None, site_packages: Path) -> Path | None:
    """Find the folder of the static CUDA runtime: in the toolkit, else in torch's packages."""
    if nvcc is None:
        return None
    name = "cudart_static.lib" if sys.platform == "win32" else "libcudart_static.a"
    toolkit = nvcc.resolve().parents[1]
    folders = [toolkit / "lib64", toolkit / "lib" / "x64", *toolkit.glob("targets/*/lib")]
    folders += sorted(site_packages.glob("nvidia/*/lib"))
    return next((folder for folder in folders if (folder / name).is_file()), None)


def cuda_architecture_flags(nvcc: Path) -> list[str]:
    """Return -gencode flags for `TORCH_CUDA_ARCH_LIST`, else for `CUDA_ARCHITECTURES` nvcc knows.

    Raises:
        RuntimeError: the list has an architecture that torch does not know.
    """
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    if listed:
        from torch.utils import cpp_extension

        try:
            flags: list[str] = cpp_extension._get_cuda_arch_flags()
        except (ValueError, LookupError) as error:
            raise RuntimeError(
                "TORCH_CUDA_ARCH_LIST must name CUDA architectures such as '8.0;9.0+PTX', "
                f"got {listed!r} ({error})"
            ) from error
        return flags
    known = output_of(nvcc, "--list-gpu-arch").split()
    chosen = [number for number in CUDA_ARCHITECTURES if f"compute_{number}" in known]
    flags = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in chosen]
    newest = chosen[-1]
    return [*flags, f"-gencode=arch=compute_{newest},code=compute_{newest}"]


def native_extension(plan: Plan, toolchain: Toolchain) -> Extension:
    """Define `deformable_detr.ops._C`, for all Python and torch versions from the oldest one on."""
    from torch.utils import cpp_extension

    is_msvc = sys.platform == "win32"
    hidden = [] if is_msvc else ["-fvisibility=hidden"]
    flags = {
        "cxx": ["/O2", "/std:c++20"] if is_msvc else ["-O3", "-std=c++20", "-g0", *hidden],
        "nvcc": ["-O3", "-std=c++20", "--threads=0", *(f"-Xcompiler={flag}" for flag in hidden)],
    }
    # Symbols of linked archives must not be exported either.
    link_flags = ["-Wl,--exclude-libs,ALL"] if sys.platform == "linux" else []
    sources = [SOURCES / "library.cpp", *sorted(SOURCES.glob("cpu/*.cpp"))]
    options: dict[str, Any] = {}
    if plan.cuda and toolchain.nvcc is not None:
        sources += sorted(SOURCES.glob("cuda/*.cu"))
        architectures = cuda_architecture_flags(toolchain.nvcc)
        flags["nvcc"] += architectures
        codes = " ".join(re.findall(r",code=(\w+)", " ".join(architectures)))
        flags["cxx"].append(f'-DDEFORMABLE_DETR_CUDA_ARCHITECTURES="{codes}"')
        # The runtime is linked statically, and no CUDA library of torch is linked, so that the
        # binary also loads with a CPU build of torch. With a CUDA build, linking libtorch.so, of
        # which nothing is used directly, makes torch's CUDA functions available.
        options["library_dirs"] = [str(toolchain.cuda_runtime)]
        options["libraries"] = ["cudart_static"]
        if sys.platform == "linux":
            options["libraries"] += ["dl", "rt", "pthread"]
            link_flags += ["-Wl,--no-as-needed", "-ltorch"]
    return cpp_extension.CppExtension(
        "deformable_detr.ops._C",
        [str(source.relative_to(ROOT)) for source in sources],
        depends=[str(path.relative_to(ROOT)) for path in sorted(SOURCES.rglob("*.*h"))],
        define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION)],
        extra_compile_args=flags,
        extra_link_args=link_flags,
        py_limited_api=True,
        **options,
    )


class BuildWithConfigs(build_py):
    """Build command that copies `configs/` into the package, where `config.loading` looks."""

    note = ""

    def run(self) -> None:
        """Build as usual, then copy the configs."""
        if self.note:
            self.warn(self.note)
        super().run()
        if self.editable_mode:  # the folder of the checkout is used
            return
        for source, target in self._copies().items():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Return all files that are built, including the copies."""
        outputs: list[str] = super().get_outputs(include_bytecode)
        return outputs + [str(target) for target in self._copies().values()]

    def _copies(self) -> dict[Path, Path]:
        folder = Path(self.build_lib) / "deformable_detr" / "configs"
        return {
            source: folder / source.relative_to(CONFIGS)
            for source in sorted(CONFIGS.rglob("*.yaml"))
        }


def main() -> None:
    """Decide what to compile, then run setuptools."""
    choice = os.environ.get("DEFORMABLE_DETR_NATIVE", "auto")
    try:
        nothing = Toolchain(None, None, None, None, None)
        toolchain = nothing if choice == "none" else find_toolchain()
        plan = decide(choice, toolchain)
        extensions = [native_extension(plan, toolchain)] if plan.cpu else []
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    BuildWithConfigs.note = plan.note
    commands: dict[str, Any] = {"build_py": BuildWithConfigs}
    if not plan.cpu:
        setup(cmdclass=commands)
        return
    from torch.utils.cpp_extension import BuildExtension

    setup(
        cmdclass={**commands, "build_ext": BuildExtension},
        ext_modules=extensions,
        options={"bdist_wheel": {"py_limited_api": WHEEL_TAG}},
    )


if __name__ == "__main__":
    main()
