"""Processes of torchrun: exit when the launcher dies, and log from rank 0 only."""

import logging
import os
import threading
import time

EXIT_ORPHANED = 71  # sysexits.h: EX_OSERR
POLL_S = 1.0


def end_with_launcher() -> None:
    """Exit this process soon after its launcher has ended; do nothing without a launcher.

    A launcher that is killed cannot end its processes, which would keep training or wait for each
    other forever. They exit within seconds, whatever they are doing, and save nothing, since a
    restarted run may already be writing to the run folder.
    """
    if is_launched():  # else the parent may be a shell, which may end before the run
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def is_launched() -> bool:
    """Return whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_main() -> bool:
    """Return whether this process is rank 0, the only one that prints."""
    return int(os.environ.get("RANK", "0")) == 0


def warn_only_beside_main() -> None:
    """Log only warnings and errors on ranks other than 0."""
    if not is_main():
        logging.getLogger("deformable_detr").setLevel(logging.WARNING)


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(POLL_S)
    os.write(2, b"the launcher has ended; this process exits without saving\n")
    os._exit(EXIT_ORPHANED)
