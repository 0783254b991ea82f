"""Processes of torchrun: they exit when it dies, and one of them talks to people."""

import logging
import os
import threading
import time

EXIT_ORPHANED = 71  # sysexits.h: EX_OSERR
POLL_S = 1.0


def end_with_launcher() -> None:
    """From now on end this process soon after the launcher has ended; alone, do nothing.

    A launcher that is killed cannot end its processes, which would train on or wait for each other
    for ever. They end within some seconds whatever they are doing, and save nothing, as a next
    start may be writing to the run folder already.
    """
    if is_launched():  # else the parent may be a shell that ends rightly
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def is_launched() -> bool:
    """Whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_main() -> bool:
    """Whether this process, alone or the first of several, is the one that prints."""
    return int(os.environ.get("RANK", "0")) == 0


def warn_only_beside_main() -> None:
    """Log warnings only, unless this is the process that prints."""
    if not is_main():
        logging.getLogger("deformable_detr").setLevel(logging.WARNING)


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(POLL_S)
    os.write(2, b"the launcher has ended: so does this process, without saving\n")
    os._exit(EXIT_ORPHANED)
