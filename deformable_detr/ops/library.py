"""Compiled library `_C`: loading it, devices that it supports, and calls of its operators."""

import contextlib
import importlib
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

try:
    _C = importlib.import_module("deformable_detr.ops._C")
    LOAD_ERROR: ImportError | None = None
except ImportError as error:
    LOAD_ERROR = error


def obstacle(device: torch.device) -> str:
    """Return the reason why this device is not supported, and the remedy; "" if it is."""
    if LOAD_ERROR is not None:
        return f"the native ops are not built; reinstall with a C++ compiler ({LOAD_ERROR})"
    match device.type:
        case "cpu" | "meta":
            return ""
        case "cuda" if not cuda_architectures():
            return "the native ops are built without CUDA; reinstall with an nvcc that fits torch"
        case "cuda" if torch.version.cuda is None:
            return "the native ops need NVIDIA's CUDA, and this torch is built without it"
        case "cuda":
            capability = torch.cuda.get_device_capability(device)
            return _architecture_obstacle(capability, torch.cuda.get_device_name(device))
        case _:
            return f"the native ops do not support {device.type} devices"


def cuda_architectures() -> tuple[str, ...]:
    """Return the targets of the compiled CUDA kernels: machine code "sm_90", PTX "compute_120"."""
    return () if LOAD_ERROR is not None else tuple(_C.CUDA_ARCHITECTURES.split())


def cpu_instruction_set() -> str:
    """Return the set that the CPU kernels use on this machine: "generic", "AVX2" or "AVX-512"."""
    name: str = torch.ops.deformable_detr.cpu_capability(-1)
    return name


def cpu_instruction_sets() -> tuple[str, ...]:
    """Return all sets that the CPU kernels could use on this machine; not for use in threads."""
    in_use = cpu_instruction_set()
    names: list[str] = []
    with contextlib.suppress(RuntimeError):  # this processor has no more
        while True:
            names.append(torch.ops.deformable_detr.cpu_capability(len(names)))
    torch.ops.deformable_detr.cpu_capability(names.index(in_use))
    return tuple(names)


def _architecture_obstacle(capability: tuple[int, int], device_name: str) -> str:
    """Return the reason why no compiled target runs on a device; "" if one does.

    Machine code runs on later devices of its generation, PTX on every later device.
    """
    major, minor = capability
    for architecture in cuda_architectures():
        kind, number = architecture.split("_")
        is_specific = not number.isdecimal()  # "90a" runs on 9.0 only
        code = divmod(int(number.rstrip("af")), 10)
        is_later = capability == code if is_specific else capability >= code
        if is_later and (kind == "compute" or code[0] == major):
            return ""
    return (
        f"the native ops are built for {', '.join(cuda_architectures())}, not for {device_name} "
        f"(sm_{major}{minor}); reinstall with TORCH_CUDA_ARCH_LIST={major}.{minor}"
    )


def call(operator: Callable[..., Tensor], *arguments: object) -> Tensor:
    """Call a compiled operator, and raise with a remedy where it has no derivative.

    By itself, PyTorch would silently give operators with a registered backward a forward-mode
    derivative of zero, and its error under the gradient transforms of `torch.func` only mentions
    internal classes.

    Raises:
        NotImplementedError: in forward mode, or under a gradient transform of `torch.func`.
    """
    for tensor in arguments:
        if isinstance(tensor, Tensor) and forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(
                f"{operator} has no forward-mode derivative (jvp, jacfwd); use reverse mode "
                "(backward, torch.autograd.grad)"
            )
    try:
        return operator(*arguments)
    except RuntimeError as error:
        if "setup_context staticmethod" not in str(error):
            raise
        raise NotImplementedError(
            f"{operator} does not support the gradient transforms of torch.func (grad, vjp, "
            "jacrev); use backward or torch.autograd.grad or, where the operator has it, "
            "backend='reference'"
        ) from error
