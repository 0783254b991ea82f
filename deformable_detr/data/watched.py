"""WatchedSamples: names the image that a worker was loading when it failed, died or hung."""

import atexit
import os
import re
import signal
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from deformable_detr.data.collate import Batch
from deformable_detr.data.samplers import SampleKey
from deformable_detr.data.transformed import TransformedDataset
from deformable_detr.structures import Target

_PIDS = re.compile(r"\(pid(?:\(s\))? ([\d, ]+)\)")  # in PyTorch's errors about dead workers
_NONE = -1


class SampleError(RuntimeError):
    """Error of a sample that failed to load; the message names the image."""


class WatchedSamples(Dataset[tuple[Tensor, Target]]):
    """Dataset that records in shared memory which sample each worker is loading.

    Args:
        samples: dataset to load from.
        num_workers: number of workers of the loader.
    """

    def __init__(self, samples: TransformedDataset, num_workers: int) -> None:
        self._samples = samples
        # (process id, index of the sample) of each worker; the main process reads it
        self._at_work = torch.full((num_workers, 2), _NONE, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, Target]:
        self._note(key.index)
        try:
            return self._samples[key]
        except Exception as error:  # any error must name its image
            raise SampleError(f"{self._samples.describe(key.index)}: {error}") from error
        finally:
            self._note(_NONE)

    def _note(self, index: int) -> None:
        worker = get_worker_info()
        if worker is not None:
            self._at_work[worker.id, 0] = os.getpid()
            self._at_work[worker.id, 1] = index

    def explain(self, error: Exception) -> SampleError:
        """Return the error to raise instead of a loader's, with the image of the failed worker.

        A worker that dies is noticed by PyTorch, which raises a RuntimeError, or earlier, where a
        batch is fetched from it: an OSError or an EOFError of the connection.
        """
        text = str(error)
        if isinstance(error, SampleError):  # PyTorch prepends the worker's traceback
            return SampleError(text.splitlines()[-1].partition("SampleError: ")[2] or text)
        pids = {int(pid) for found in _PIDS.findall(text) for pid in found.split(",")}
        images = [
            self._samples.describe(index)
            for pid, index in self._at_work.tolist()
            if index != _NONE and (not pids or pid in pids)
        ]
        where = f"while loading {', '.join(images)}" if images else "between two images"
        # The cause, if any, names the signal: an exit, a kill, a segmentation fault.
        if isinstance(error, OSError | EOFError):
            reason = f"the worker exited unexpectedly ({text or type(error).__name__})"
        else:
            reason = (str(error.__cause__ or "") or text).splitlines()[0]
        return SampleError(
            f"a data-loader worker failed {where}: {reason}; an image too large for the memory, or "
            "one that crashes its decoder, are common causes; data.num_workers=0 shows more"
        )


class WatchedLoader(DataLoader[Batch]):
    """Data loader of `WatchedSamples` whose errors name the images."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # a generator
        with _interrupts_blocked():
            iterator = super().__iter__()
        _DEATHS.install()
        atexit.register(_end_at_exit, weakref.ref(iterator))
        try:
            while True:
                with _DEATHS.raised():
                    batch = next(iterator, None)
                if batch is None:
                    return
                yield batch
        except (RuntimeError, OSError, EOFError) as error:
            assert isinstance(self.dataset, WatchedSamples)
            explained = self.dataset.explain(error)
            _end_workers(iterator)
            raise explained from error


class _Deaths:
    """Deaths of workers, which PyTorch reports by an error in its handler of SIGCHLD.

    The handler runs wherever the main process is: in the model as a rule, and not in the loader,
    which names the image. So the error is kept until a batch is awaited.
    """

    def __init__(self) -> None:
        self._handler: Any = None  # of PyTorch
        self._is_awaited = False
        self._error: RuntimeError | None = None

    def install(self) -> None:
        """Stand before PyTorch's handler, if it is there; only the main thread can."""
        if not hasattr(signal, "SIGCHLD") or current_thread() is not main_thread():
            return
        handler = signal.getsignal(signal.SIGCHLD)
        if callable(handler) and handler != self._handle:
            self._handler = handler
            signal.signal(signal.SIGCHLD, self._handle)

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Raise the error of a worker that has died before, or dies in the block."""
        self._is_awaited = True
        try:
            error, self._error = self._error, None
            if error is not None:
                raise error
            yield
        finally:
            self._is_awaited = False

    def forget(self) -> None:
        """Drop the error of workers that have been ended."""
        self._error = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        try:
            self._handler(number, frame)
        except RuntimeError as error:
            if self._is_awaited:
                raise
            self._error = error


_DEATHS = _Deaths()


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block Ctrl-C until the end of the block; processes started in it keep it blocked.

    A worker would print a traceback if it came before the worker ignores it.
    """
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_at_exit(iterator: Callable[[], object]) -> None:
    """End the workers of an iterator that is alive when Python exits, as after an error.

    multiprocessing would send SIGTERM to them, which they ignore, and wait for them forever.
    """
    _end_workers(iterator())


def _end_workers(iterator: object) -> None:
    """Kill all workers, hung ones included, for which the end of the run would wait forever.

    Workers ignore the signal by which a loader asks them to end. A worker may be killed only once
    the loader no longer watches it, or PyTorch reports its death as another error.
    """
    if isinstance(iterator, _MultiProcessingDataLoaderIter):
        iterator._shutdown_workers()
        for worker in iterator._workers:
            worker.kill()
            worker.join()
        _DEATHS.forget()
