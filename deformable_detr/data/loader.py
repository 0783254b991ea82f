"""Data loader for training and evaluation."""

import signal
import sys
from collections.abc import Sequence, Set
from functools import partial
from types import TracebackType

from torch import Tensor
from torch.utils.data import get_worker_info

from deformable_detr import distributed
from deformable_detr.data.coco import CocoDataset
from deformable_detr.data.collate import Batch, collate
from deformable_detr.data.samplers import EvaluationSampler, StepSampler
from deformable_detr.data.transformed import TransformedDataset
from deformable_detr.data.transforms import Resize
from deformable_detr.data.watched import SampleError, WatchedLoader, WatchedSamples
from deformable_detr.structures import Target


def build_loader(
    dataset: TransformedDataset,
    sampler: StepSampler | EvaluationSampler,
    *,
    num_workers: int,
    pin_memory: bool,
    max_padded_pixels: int | None = None,
    timeout_s: float = 0,
) -> WatchedLoader:
    """Build a loader that yields the same batches for any number of workers.

    Workers stay alive between epochs: the epoch is part of the sampler's keys.

    Args:
        dataset: samples to load.
        sampler: batches of sample keys of this process.
        num_workers: number of processes that load and transform; 0 loads in this process.
        pin_memory: copy batches into page-locked memory, for a CUDA device.
        max_padded_pixels: maximum number of pixels per batch; see `collate`.
        timeout_s: time limit per batch of a worker in seconds; 0 for no limit.

    Returns:
        Loader in the sampler's order; it raises `SampleError` if a worker raises, dies or exceeds
        the time limit.
    """
    return WatchedLoader(
        WatchedSamples(dataset, num_workers),  # type: ignore[arg-type]  # collate makes batches
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=partial(_collate_shared, max_padded_pixels=max_padded_pixels),
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        worker_init_fn=_ignore_signals,
        timeout=timeout_s if num_workers > 0 else 0,
    )


def build_evaluation_loader(
    dataset: CocoDataset,
    transform: Resize,
    *,
    batch_size: int,
    num_workers: int,
    pin_memory: bool,
    timeout_s: float = 0,
    done: Set[int] = frozenset(),
) -> WatchedLoader:
    """Build a loader of this process's share of the images to evaluate, in unpadded batches.

    Args:
        dataset: the images.
        transform: resizing of images before the model.
        batch_size: maximum number of images per batch; all have the same size after `transform`.
        num_workers: see `build_loader`; at most one for each batch is started.
        pin_memory: see `build_loader`.
        timeout_s: see `build_loader`.
        done: indices of images that are left out, where they are all of a batch.
    """
    sampler = EvaluationSampler(
        [transform.size_of((height, width)) for height, width in dataset.sizes.tolist()],
        batch_size=batch_size,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        done=done,
    )
    return build_loader(
        TransformedDataset(dataset, transform, seed=0),  # `transform` draws nothing
        sampler,
        num_workers=min(num_workers, len(sampler)),
        pin_memory=pin_memory,
        timeout_s=timeout_s,
    )


def _collate_shared(
    samples: Sequence[tuple[Tensor, Target]], *, max_padded_pixels: int | None
) -> Batch:
    """Collate; in a worker, move the batch to shared memory.

    Otherwise a thread of the worker's queue does so when it sends the batch; if it fails, it drops
    the batch, and the main process waits for it forever.
    """
    batch = collate(samples, max_padded_pixels=max_padded_pixels)
    if get_worker_info() is None:
        return batch
    tensors = [batch.images.images, batch.images.padding_mask]
    tensors += [tensor for target in batch.targets for tensor in (target.boxes, target.labels)]
    try:
        for tensor in tensors:
            if tensor.numel():
                tensor.share_memory_()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise SampleError(
            f"a batch has no room in shared memory ({reason}); give /dev/shm more room (docker: "
            "--shm-size=8g), raise limits of files and their sizes, or set data.num_workers=0"
        ) from error
    return batch


def _print_unless_disconnected(
    kind: type[BaseException], error: BaseException, place: TracebackType | None
) -> None:
    """Print an error of a thread of a worker that shares tensors; for `sys.excepthook`."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, place)


def _ignore_signals(worker: int) -> None:
    """Ignore stop signals, which launchers send to the whole process group.

    The process that started them finishes its step and then ends its workers itself. If it ends
    while it reads a batch, the connection is reset, which is no error of the worker.
    """
    sys.excepthook = _print_unless_disconnected
    stop = {signal.SIGINT, signal.SIGTERM}
    for number in stop | {getattr(signal, "SIGUSR1", signal.SIGTERM)}:  # none on Windows
        signal.signal(number, signal.SIG_IGN)
