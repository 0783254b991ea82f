"""CUDA kernels as PTX, executed on the CPU: compilation with nvcc, and launches."""

import functools
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.operator_calls import Call, coordinate_dtype
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = REPOSITORY / "ops" / "src"
TOOLS = REPOSITORY.parent / "shared" / "tools"

NVCC = shutil.which("nvcc")
requires_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is not on PATH")
requires_interpreter = pytest.mark.skipif(
    not (TOOLS / "ptxsim.py").is_file(), reason=f"no PTX interpreter: {TOOLS} lacks ptxsim.py"
)

CHANNELS_WITH_VECTORS = (16, 32, 64)  # as in Layout: others use the general form
_CPP_TYPES = {
    torch.float64: "double",
    torch.float32: "float",
    torch.float16: "__half",
    torch.bfloat16: "__nv_bfloat16",
}
_MANGLED = {
    torch.float64: "d",
    torch.float32: "f",
    torch.float16: "6__half",
    torch.bfloat16: "13__nv_bfloat16",
}
_GATHER_THREADS = 256


def form_of(dtype: torch.dtype, D: int) -> int:
    """Return the D for which the kernels are compiled; 0 is the general form."""
    return D if D in CHANNELS_WITH_VECTORS and dtype != torch.float64 else 0


def instantiations(dtype: torch.dtype, D: int) -> str:
    """Return C++ source that instantiates all kernels of a value type and a form."""
    T = _CPP_TYPES[dtype]
    folder = "cuda/ms_deformable_attention"
    lines = [f'#include "{folder}/{name}.cuh"' for name in ("gather", "im2col")]
    lines += ["using namespace deformable_detr;"]
    signature = f"(const __grid_constant__ Call<{T}>);"
    for fused in ("false", "true"):
        kernels = [
            f"forward<{T}, {D}, {fused}>",
            f"backward<{T}, {D}, {fused}, GradValue::kScatter>",
        ]
        if D == 0:
            kernels.append(f"backward<{T}, 0, {fused}, GradValue::kDefer>")
        lines += [
            f"template __global__ void deformable_detr::ms_deform_attn_{kernel}{signature}"
            for kernel in kernels
        ]
    if D == 0:
        lines.append(
            f"template __global__ void deformable_detr::ms_deform_attn_gather<{T}>"
            f"(const __grid_constant__ Call<{T}>, const int64_t*, const int64_t*, {T}*);"
        )
    return "\n".join(lines) + "\n"


def nvcc(text: str, output: Path, *flags: str, sources: Path = SOURCES) -> str:
    """Compile C++ source to `output` and return the messages of the compiler.

    Raises:
        RuntimeError: the compilation failed; contains the messages of the compiler.
    """
    assert NVCC is not None
    source = output.with_suffix(".cu")
    source.write_text(text)
    command = [NVCC, "-std=c++20", f"-I{sources}", *flags, str(source), "-o", str(output)]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode:
        raise RuntimeError(built.stderr)
    return built.stderr


@functools.cache
def compiled(dtype: torch.dtype, D: int, architecture: str, sources: Path = SOURCES):
    """Return the interpreter's module with the kernels of a value type and a form."""
    if str(TOOLS) not in sys.path:
        sys.path.insert(0, str(TOOLS))
    import ptxsim

    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder) / "kernels.ptx"
        nvcc(instantiations(dtype, D), ptx, "-ptx", f"-arch={architecture}", sources=sources)
        return ptxsim.Module(ptx.read_text())


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Copy a tensor for the interpreter, which represents bfloat16 by its bits."""
    tensor = tensor.detach().contiguous().clone()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def to_torch(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == torch.bfloat16 else tensor


def unwritten(shape: tuple[int, ...], dtype: torch.dtype) -> np.ndarray:
    """Allocate memory that a kernel must fill; it contains NaN."""
    return to_numpy(torch.full(shape, torch.nan, dtype=dtype))


@dataclass(frozen=True)
class SimulatedCall(Call):
    """A call whose "native" back-end is the CUDA kernels, executed on a PTX interpreter.

    This class repeats the host code of ms_deform_attn_cuda.cu: allocations, grids, and the casts
    and sums by PyTorch's operators.
    """

    architecture: str = "sm_80"
    deterministic: bool = False
    needs_reference_grad: bool = True
    sources: Path = SOURCES
    general: bool = False  # use the general form, even if there is a special one for this D
    images_per_grid: int = 65535

    def run(self, backend: str) -> Tensor:
        return super().run(backend) if backend != "native" else self.forward()

    def run_with_gradients(self, backend: str) -> tuple[Tensor, ...]:
        if backend != "native":
            return super().run_with_gradients(backend)
        return self.forward(), *self.backward()

    @property
    def _dtype(self) -> torch.dtype:
        return self.tensors[0].dtype

    def _sizes(self) -> dict[str, int]:
        N, S, M, D = self.tensors[0].shape
        _, Q, _, L, P, _ = self.tensors[-2].shape
        R = self.tensors[1].shape[-1] if self.is_fused else 0
        return {"N": N, "S": S, "M": M, "D": D, "Q": Q, "L": L, "P": P, "R": R}

    def _form(self, channels: int) -> int:
        # As in the host code: the deterministic backward only has the general form.
        return 0 if self.general else form_of(self._dtype, channels)

    def _launch(self, kernel: str, D: int, buffers: dict[str, np.ndarray]) -> None:
        sizes = self._sizes()
        module = compiled(self._dtype, D, self.architecture, self.sources)
        queries, threads = block_of(self._dtype, D)
        for first in range(0, sizes["N"], self.images_per_grid):
            images = min(sizes["N"] - first, self.images_per_grid)
            grid = (-(-sizes["Q"] // queries), sizes["M"], images)
            call = call_struct(buffers, sizes, self.level_shapes, self._dtype, first)
            module.launch(kernel, grid, (threads,), [call])

    def _launch_gather(self, buffers: dict[str, np.ndarray], *arrays: np.ndarray) -> None:
        sizes = self._sizes()
        blocks = -(-self.tensors[0].numel() // _GATHER_THREADS)
        call = call_struct(buffers, sizes, self.level_shapes, self._dtype)
        module = compiled(self._dtype, 0, self.architecture, self.sources)
        kernel = f"gatherI{_MANGLED[self._dtype]}E"
        more = [("ptr", array) for array in arrays]
        module.launch(kernel, (blocks,), (_GATHER_THREADS,), [call, *more])

    def _kernel(self, name: str, D: int, grad_value: str = "") -> str:
        template = f"I{_MANGLED[self._dtype]}Li{D}ELb{int(self.is_fused)}E"
        return f"ms_deform_attn_{name}{template}{grad_value}"

    def _inputs(self) -> dict[str, np.ndarray]:
        names = ("value", "reference_points", "points", "weights")
        names = names if self.is_fused else (names[0], *names[2:])
        return dict(zip(names, map(to_numpy, self.tensors), strict=True))

    def forward(self) -> Tensor:
        sizes = self._sizes()
        D = self._form(sizes["D"])
        output = unwritten((sizes["N"], sizes["Q"], sizes["M"] * sizes["D"]), self._dtype)
        self._launch(self._kernel("forward", D), D, {**self._inputs(), "output": output})
        return to_torch(output, self._dtype)

    def backward(self) -> tuple[Tensor, ...]:
        """Compute the gradient of every tensor."""
        sizes = self._sizes()
        wide = coordinate_dtype(self._dtype)
        points, weights = self.tensors[-2:]
        per_head = tuple(sizes[name] for name in ("N", "Q", "M", "L", "R"))
        buffers = {
            **self._inputs(),
            "grad_output": to_numpy(self.grad_output),
            "grad_points": unwritten(points.shape, wide),
            "grad_weights": unwritten(weights.shape, wide),
        }
        if self.is_fused and self.needs_reference_grad:
            buffers["grad_reference"] = unwritten(per_head, wide)
        grad_value = self._gather(buffers) if self.deterministic else self._scatter(buffers)
        others = [buffers["grad_points"], buffers["grad_weights"]]
        if "grad_reference" in buffers:
            others.insert(0, buffers["grad_reference"].sum(2))
        return grad_value, *(to_torch(array, wide) for array in others)

    def _scatter(self, buffers: dict[str, np.ndarray]) -> Tensor:
        D = self._form(self._sizes()["D"])
        sums = torch.zeros(self.tensors[0].shape, dtype=coordinate_dtype(self._dtype)).numpy()
        kernel = self._kernel("backward", D, "LNS_9GradValueE0E")
        self._launch(kernel, D, {**buffers, "grad_value": sums})
        return torch.from_numpy(sums).to(self._dtype)

    def _gather(self, buffers: dict[str, np.ndarray]) -> Tensor:
        count = self.tensors[-1].numel()
        base_cells = np.full(count, -1, np.int64)
        corner_weights = unwritten((count, 4), coordinate_dtype(self._dtype))
        buffers = {**buffers, "base_cells": base_cells, "corner_weights": corner_weights}
        self._launch(self._kernel("backward", 0, "LNS_9GradValueE1E"), 0, buffers)
        order = np.argsort(base_cells, kind="stable")
        result = unwritten(self.tensors[0].shape, self._dtype)
        self._launch_gather(buffers, base_cells[order], order, result)
        return to_torch(result, self._dtype)


def block_of(dtype: torch.dtype, D: int) -> tuple[int, int]:
    """Return the queries and threads per block, as in Layout."""
    lanes = D * dtype.itemsize // 16 if D else 8
    threads = 128 if lanes < 4 else 256
    return threads // lanes, threads


def call_struct(
    buffers: dict[str, np.ndarray], sizes: dict[str, int], level_shapes, dtype, first_image=0
):
    """Build the argument of the kernels, the struct Call, for the interpreter."""
    pointers = (
        *("value", "points", "weights", "reference_points", "output", "grad_output"),
        *("grad_value", "grad_points", "grad_weights", "grad_reference"),
        *("base_cells", "corner_weights"),
    )
    dims = [("i64", sizes[name]) for name in "NSMDQLPR"]
    levels, start = [], 0
    for height, width in level_shapes:
        levels.append(("struct", [("i32", height), ("i32", width), ("i64", start)]))
        start += height * width
    unused = ("struct", [("i32", 0), ("i32", 0), ("i64", 0)])
    table = [("i32", len(levels)), *levels, *[unused] * (8 - len(levels))]
    return (
        "struct",
        [
            *(("ptr", buffers.get(name, 0)) for name in pointers),
            ("struct", dims),
            ("struct", table),
            ("i32", first_image),
            ("i32", sizes["L"] * sizes["P"]),
            ("f32", 1 / sizes["P"]),
            ("f64" if dtype == torch.float64 else "f32", 0.5 / sizes["P"]),
        ],
    )
