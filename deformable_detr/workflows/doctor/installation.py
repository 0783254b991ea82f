"""Examine the installation: packages, operators, devices and memory, and a short speed test."""

import platform
import statistics
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor

from deformable_detr.benchmark.ops.workload import Shape, Workload, make_workload
from deformable_detr.environment import (
    cpu_name,
    memory_bytes,
    num_cores,
    package_versions,
    shared_memory_bytes,
)
from deformable_detr.messages import in_lines
from deformable_detr.ops import available_backends, library, ms_deform_attn
from deformable_detr.version import __version__

PACKAGES = (
    *("timm", "numpy", "scipy", "pillow", "pycocotools"),
    *("safetensors", "pydantic", "pyyaml"),
)
# An encoder layer for an image of 256 x 256.
SPEED_SHAPE = Shape("speed test", ((32, 32), (16, 16), (8, 8), (4, 4)))
SPEED_TEST_S = 2.0  # for all back-ends and devices together
TOLERANCE = 1e-4  # of the two back-ends, relative to the largest value; float32
LEAST_SHARED_MEMORY = 2**30
MANY_CORES = 4
_Backend = Literal["native", "reference"]
_REINSTALL = "pip install --no-build-isolation --force-reinstall --no-deps -e ."


@dataclass(frozen=True)
class Finding:
    """Something wrong: `is_broken` if a command would fail or be wrong, else it is only slow."""

    what: str
    remedy: str
    is_broken: bool


@dataclass(frozen=True)
class Speed:
    """Milliseconds of deformable attention, forward and backward, and how far results differ.

    Attributes:
        ms: median by back-end.
        difference: largest difference of the outputs, relative to the largest output; None if
            there is one back-end only.
    """

    device: str
    ms: dict[str, float]
    difference: float | None


@dataclass
class Installation:
    """State of the package and of this machine.

    Attributes:
        versions: by package; "" for a missing one.
        operators: by device and back-end the reason why it is not available, or "".
        extension: state of the compiled operators: "loaded", or the error.
        instruction_sets: sets that the CPU kernels could use here.
        instruction_set: the one in use; "" without compiled operators.
        architectures: CUDA targets of the compiled kernels.
        gpus: name and architecture by device.
        memory: bytes in total and available; None if unknown.
        shared_memory: free bytes of /dev/shm; None if there is none.
    """

    versions: dict[str, str]
    operators: dict[str, dict[str, str]]
    extension: str
    instruction_sets: tuple[str, ...]
    instruction_set: str
    architectures: tuple[str, ...]
    gpus: dict[str, str]
    cpu: str
    cores: int
    threads: int
    memory: tuple[int, int] | None
    shared_memory: int | None
    speed: list[Speed] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_broken(self) -> bool:
        """True if a finding makes commands fail or be wrong."""
        return any(finding.is_broken for finding in self.findings)

    def as_record(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "is_broken": self.is_broken}


def examine_installation() -> Installation:
    """Examine the packages, operators, devices and memory of this machine; takes about 3 s."""
    gpus = _gpus()
    is_loaded = library.LOAD_ERROR is None
    found = Installation(
        versions={
            "deformable-detr": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,  # with the CUDA version, which the metadata leave out
            "torchvision": torchvision.__version__,
            **package_versions(PACKAGES),
        },
        operators={device: available_backends(device) for device in ("cpu", *gpus)},
        extension="loaded" if is_loaded else in_lines(str(library.LOAD_ERROR)),
        instruction_sets=library.cpu_instruction_sets() if is_loaded else (),
        instruction_set=library.cpu_instruction_set() if is_loaded else "",
        architectures=library.cuda_architectures(),
        gpus=gpus,
        cpu=cpu_name(),
        cores=num_cores(),
        threads=torch.get_num_threads(),
        memory=memory_bytes(),
        shared_memory=shared_memory_bytes(),
    )
    tested = [device for device in ("cpu", "cuda:0") if device in found.operators]
    found.speed = [measure_speed(device, SPEED_TEST_S / len(tested)) for device in tested]
    found.findings = [*_package_findings(found), *_operator_findings(found), *_machine(found)]
    return found


def _gpus() -> dict[str, str]:
    """Return name and architecture of each GPU by device."""
    gpus = {}
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        gpus[f"cuda:{index}"] = f"{torch.cuda.get_device_name(index)}, sm_{major}{minor}"
    if torch.backends.mps.is_available():
        gpus["mps"] = "Apple GPU"
    return gpus


def measure_speed(device: str, limit_s: float) -> Speed:
    """Time deformable attention on a device, about half of `limit_s` for each back-end."""
    workload = make_workload(SPEED_SHAPE, device)
    outputs: dict[str, Tensor] = {}
    ms: dict[str, float] = {}
    backends: tuple[_Backend, ...] = ("native", "reference")
    for backend in backends:
        if available_backends(device)[backend]:
            continue
        outputs[backend], _ = _step(workload, backend)  # the first call allocates
        times: list[float] = []
        end = time.monotonic() + limit_s / 2
        while not times or time.monotonic() + statistics.median(times) < end:
            times.append(_step(workload, backend)[1])
        ms[backend] = 1000 * statistics.median(times)
    difference = None
    if len(outputs) > 1:
        apart = (outputs["native"] - outputs["reference"]).abs().max()
        difference = float(apart / outputs["reference"].abs().max())
    return Speed(device, ms, difference)


def _step(workload: Workload, backend: _Backend) -> tuple[Tensor, float]:
    """Run forward and backward once; return the output, and the seconds."""
    inputs = [
        tensor.detach().requires_grad_()
        for tensor in (workload.value, workload.sampling_locations, workload.attention_weights)
    ]
    _wait(workload.value.device)
    start = time.monotonic()
    value, locations, weights = inputs
    output = ms_deform_attn(value, workload.shape.level_shapes, locations, weights, backend=backend)
    output.sum().backward()
    _wait(workload.value.device)
    return output.detach(), time.monotonic() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _package_findings(found: Installation) -> list[Finding]:
    findings = [
        Finding(f"package {name} is missing", f"pip install {name}", True)
        for name, version in found.versions.items()
        if not version
    ]
    try:
        torchvision.ops.nms(torch.zeros(1, 4), torch.ones(1), 0.5)
    except RuntimeError:
        findings.append(
            Finding(
                f"torchvision {found.versions['torchvision']} does not fit torch "
                f"{found.versions['torch']}",
                "install the pair: pip install --upgrade torch torchvision",
                True,
            )
        )
    return findings


def _operator_findings(found: Installation) -> list[Finding]:
    findings = []
    error = library.LOAD_ERROR
    if isinstance(error, ModuleNotFoundError):
        findings.append(
            Finding(
                "the native operators are not built; attention runs in plain PyTorch, slower",
                f"with a C++ compiler: {_REINSTALL}",
                False,
            )
        )
    elif error is not None:
        findings.append(
            Finding(f"the native operators do not load: {in_lines(str(error))}", _REINSTALL, True)
        )
    else:
        findings += [
            Finding(f"{device}: {reason}", remedy or "install a PyTorch with CUDA", False)
            for device, backends in found.operators.items()
            if device.startswith("cuda") and backends["native"]
            for reason, _, remedy in [backends["native"].partition("; ")]
        ]
    findings += [
        Finding(
            f"the native operators differ from plain PyTorch on {speed.device} by "
            f"{speed.difference:.1g} of the largest value",
            f"{_REINSTALL}; meanwhile set model.attention.backend=reference",
            True,
        )
        for speed in found.speed
        if speed.difference is not None and not speed.difference <= TOLERANCE
    ]
    return findings


def _machine(found: Installation) -> list[Finding]:
    findings = []
    if found.threads == 1 and found.cores >= MANY_CORES:
        findings.append(
            Finding(
                f"PyTorch uses 1 thread on {found.cores} cores",
                "unset OMP_NUM_THREADS; torchrun sets it to 1",
                False,
            )
        )
    if found.shared_memory is not None and found.shared_memory < LEAST_SHARED_MEMORY:
        findings.append(
            Finding(
                f"/dev/shm has {found.shared_memory / 2**20:.0f} MiB free, too little for "
                "data-loader workers",
                "start the container with --shm-size=8g, or set data.num_workers=0",
                False,
            )
        )
    return findings
