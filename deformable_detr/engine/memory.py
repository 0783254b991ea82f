"""Memory: peak usage, out-of-memory errors that describe the batch, warm-up, freed memory."""

import ctypes
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from deformable_detr import distributed
from deformable_detr.data.collate import Batch
from deformable_detr.engine.precision import autocast
from deformable_detr.engine.run.folder import RunFolder
from deformable_detr.engine.state import TrainState
from deformable_detr.engine.step import with_mimicking
from deformable_detr.losses.criterion import SetCriterion
from deformable_detr.models.backbones.input_channels import input_channels
from deformable_detr.structures import ImageBatch, Size, Target

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

_STATUS = Path("/proc/self/status")
_BATCHES_PER_TRIM = 4  # more often costs time, more rarely memory
_BYTES_PER_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, getrusage(2)


def peak_memory(device: torch.device) -> dict[str, float]:
    """Return the peak memory, maximum over all processes; every process must call.

    Units are 10^6 bytes. On a GPU: memory of tensors (`peak_allocated_mb`) and memory reserved
    by PyTorch (`peak_reserved_mb`) since the last call. Elsewhere: resident memory of the process
    (`peak_resident_mb`) since it started, without data-loading workers; nothing on Windows.
    """
    if device.type == "cuda":
        peaks = {
            "peak_allocated_mb": torch.cuda.max_memory_allocated(device) / 1e6,
            "peak_reserved_mb": torch.cuda.max_memory_reserved(device) / 1e6,
        }
        torch.cuda.reset_peak_memory_stats(device)
    elif resource is not None:
        peaks = {"peak_resident_mb": _peak_resident_bytes() / 1e6}
    else:
        peaks = {}
    everywhere = distributed.all_gather_objects(peaks)
    return {name: max(one[name] for one in everywhere) for name in peaks}


def resident_bytes(field: str) -> int:
    """Return a memory counter of this process on Linux, by its name in proc(5).

    An example is "VmHWM", the peak of the resident memory.

    Raises:
        OSError: not available on this platform.
    """
    found = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{_STATUS} must hold {field}, found none")
    return int(found[1]) * 1024


def _peak_resident_bytes() -> int:
    try:
        return resident_bytes("VmHWM")
    except OSError:  # not Linux, where ru_maxrss would also count the parent program
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _BYTES_PER_UNIT


def record_peak_memory(state: TrainState, folder: RunFolder) -> str:
    """Record the peaks of an epoch as metrics; return a log line. Every process must call."""
    peaks = peak_memory(state.device)
    folder.record("memory", {"step": state.step, "epoch": state.epoch, **peaks})
    shown = ", ".join(
        f"{name.removeprefix('peak_').removesuffix('_mb')} {megabytes:,.0f} MB"
        for name, megabytes in peaks.items()
    )
    return f"step {state.step}: peak memory {shown or 'unknown'}"


# In PyTorch's out-of-memory errors on CPU and MPS, which are plain RuntimeErrors.
_WORDS = ("can't allocate memory", "not enough memory", "out of memory")


@contextmanager
def naming_memory(batch: Batch, step: int) -> Iterator[None]:
    """Describe the micro-batch in an out-of-memory error of the block, and name remedies.

    As after any error, the other processes, which wait for this one, end with it.

    Raises:
        torch.OutOfMemoryError: memory has run out.
    """
    try:
        yield
    except RuntimeError as error:
        is_short = isinstance(error, torch.OutOfMemoryError)
        if not is_short and not any(words in str(error) for words in _WORDS):
            raise
        raise torch.OutOfMemoryError(_describe(batch, step, error)) from error


def _describe(batch: Batch, step: int, error: RuntimeError) -> str:
    height, width = batch.images.images.shape[2:]
    sizes = [_size(mask) for mask in batch.images.padding_mask.cpu()]
    images = ", ".join(
        f"image {target.image_id} ({size[0]} x {size[1]}, {len(target)} boxes)"
        for size, target in zip(sizes, batch.targets, strict=True)
    )
    return (
        f"memory ran out in step {step} for a micro-batch of {len(batch.targets)} images padded to "
        f"{height} x {width}: {images}; choose a smaller train.micro_batch (gradients accumulate "
        "to train.total_batch), train.gradient_checkpointing=true, data.max_padded_pixels, or "
        f"smaller sizes in data.augmentation ({str(error).splitlines()[0]})"
    )


def _size(padding_mask: torch.Tensor) -> tuple[int, int]:
    """Return (height, width) of an image without its padding."""
    return int((~padding_mask[:, 0]).sum()), int((~padding_mask[0]).sum())


def warm_up(state: TrainState, criterion: SetCriterion, *, num_images: int, size: Size) -> None:
    """Run one forward and backward pass that changes no weight, gradient or random state.

    The allocator then holds the largest blocks that it will be asked for, and need not find room
    for them later between smaller ones.

    Args:
        state: unchanged afterwards.
        criterion: loss function.
        num_images: images in the largest micro-batch.
        size: (height, width) of the largest micro-batch.

    Raises:
        RuntimeError: there is not enough memory.
    """
    device, model = state.device, state.model
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    was_training = model.training
    model.train()
    cuda_devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=cuda_devices):
            batch = _random_batch(num_images, input_channels(model), size).to(device)
            with autocast(state.precision, device):
                output = model(batch.images, batch.targets)
            result = criterion(output, batch.targets, 1.0)
            with autocast(state.precision, device):
                losses = with_mimicking(model, criterion, batch, output, result, 1.0)
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            torch.autograd.grad(losses["total"], trained)
    except torch.OutOfMemoryError as error:
        height, width = size
        raise RuntimeError(
            f"the largest micro-batch of this run, {num_images} images of {height} x {width} "
            "pixels, must fit into memory, and does not; lower train.micro_batch or the sizes of "
            "data.augmentation, or set data.max_padded_pixels, train.gradient_checkpointing=true "
            "or train.precision=bfloat16"
        ) from error
    finally:
        model.train(was_training)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])


def _random_batch(num_images: int, channels: int, size: Size) -> Batch:
    """Return images of random noise without padding, with one object per image."""
    images = ImageBatch(
        torch.rand(num_images, channels, *size), torch.zeros(num_images, *size, dtype=torch.bool)
    )
    target = Target(torch.tensor([[0.5, 0.5, 0.9, 0.9]]), torch.zeros(1, dtype=torch.int64))
    return Batch(images, (target,) * num_images)


class FreedMemory:
    """Return of freed memory to the system, while a model runs on images of many sizes on a CPU.

    glibc keeps the memory of activations for later ones. If each batch has another size, they do
    not fit, and memory grows with the number of sizes. Batches of one size are not slowed down.

    Args:
        device: device of the model; nothing is done for another one than the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_used = device.type == "cpu"
        self._last: Size | None = None
        self._changes = 0

    def after_batch(self, size: Size) -> None:
        """Return freed memory after some batches that differ in size from the ones before them.

        Args:
            size: (height, width) of the batch.
        """
        self._changes += self._is_used and size != self._last
        self._last = size
        if self._changes > _BATCHES_PER_TRIM:
            self._changes = 0
            return_freed_memory()


def return_freed_memory() -> None:
    """Return memory that the process has freed to the system, where glibc keeps it."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc only
        if trim is not None:
            trim(0)
