"""Program for one rank of a run of two, in which rank 1 stalls or is killed."""

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from helpers.tiny_training import NOTHING_ANNOTATED, TinyLoader, tiny_loop, tiny_sampler, tiny_state

from deformable_detr import distributed
from deformable_detr.data.collate import Batch
from deformable_detr.engine.evaluate import Validation
from deformable_detr.engine.train import fit

STILL_AT = 3  # index of the batch


class Harmed:
    """Loader whose process sleeps or is killed at batch `STILL_AT`."""

    def __init__(self, loader: TinyLoader, harm: str) -> None:
        self._loader = loader
        self._harm = harm

    def __iter__(self) -> Iterator[Batch]:
        for number, batch in enumerate(self._loader):
            time.sleep(0.5)  # the watchdog publishes a sign every 0.3 s
            if number == STILL_AT:
                match self._harm:
                    case "sleeps":
                        time.sleep(600)
                    case "is killed":
                        os.kill(os.getpid(), signal.SIGKILL)
            yield batch


def train(folder: Path, harm: str, timeout_s: float) -> None:
    """Train as one of the ranks."""
    sampler = tiny_sampler(num_samples=40, total_batch=4)
    loader = TinyLoader(sampler)
    batches = Harmed(loader, harm) if distributed.rank() == 1 else loader
    validation = Validation([], NOTHING_ANNOTATED)
    fit(
        tiny_state(),
        tiny_loop(folder, validation, loader=batches, sampler=sampler, timeout_s=timeout_s),
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    harm, folder, seconds = sys.argv[1:]
    distributed.start(torch.device("cpu"), timeout_s=float(seconds))
    try:
        train(Path(folder), harm, float(seconds))
    finally:
        distributed.stop()
