"""Builds the loader that both training and evaluation read from."""

import signal
from functools import partial

from deformable_detr.data.collate import collate
from deformable_detr.data.samplers import EvaluationSampler, StepSampler
from deformable_detr.data.transformed import TransformedDataset
from deformable_detr.data.watched import WatchedLoader, WatchedSamples


def build_loader(
    dataset: TransformedDataset,
    sampler: StepSampler | EvaluationSampler,
    *,
    num_workers: int,
    pin_memory: bool,
    max_padded_pixels: int | None = None,
    timeout_s: float = 0,
) -> WatchedLoader:
    """Batches in the sampler's order, the same for any number of workers.

    Workers stay alive between epochs: the epoch travels in the sampler's keys.

    Args:
        dataset: the samples.
        sampler: which of them come in which batch of this process.
        num_workers: processes that read and transform; 0 does it in this one.
        pin_memory: copy batches into page-locked memory, for a CUDA device.
        max_padded_pixels: of a batch, see `collate`.
        timeout_s: how long a worker may take for a batch; 0 for any time.

    Returns:
        The loader; where a worker raises, dies or takes too long, it raises `SampleError`.
    """
    return WatchedLoader(
        WatchedSamples(dataset, num_workers),  # type: ignore[arg-type]  # collate makes batches
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=partial(collate, max_padded_pixels=max_padded_pixels),
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        worker_init_fn=_ignore_signals,
        timeout=timeout_s if num_workers > 0 else 0,
    )


def _ignore_signals(worker: int) -> None:
    """Let a worker live on when its whole process group is asked to stop, as launchers do.

    The training process then finishes its step, and ends its workers itself.
    """
    for number in {signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM)}:  # none on Windows
        signal.signal(number, signal.SIG_IGN)
