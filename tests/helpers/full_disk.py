"""Disk that is full, as a limit of this process."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def nearly_full_disk(size: int) -> Iterator[None]:
    """Let every write beyond `size` bytes of a file fail, with the error "File too large"."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
