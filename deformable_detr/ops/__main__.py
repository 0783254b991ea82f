"""Report of the back-ends available on this machine: python -m deformable_detr.ops."""

import sys

import torch

from deformable_detr.ops import available_backends, library


def report() -> str:
    """Return one line per device and back-end, then the instruction set and architectures."""
    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    lines = [
        f"{device:8} {backend:10} {reason or 'yes'}"
        for device in devices
        for backend, reason in available_backends(device).items()
    ]
    if library.LOAD_ERROR is None:
        lines += [
            f"CPU instruction set in use: {library.cpu_instruction_set()}",
            f"CUDA architectures compiled in: {', '.join(library.cuda_architectures()) or 'none'}",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(report() + "\n")
