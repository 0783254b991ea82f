"""PackedTexts: many texts in one piece of memory."""

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

_CODING = "utf-8", "surrogatepass"  # JSON may hold half a surrogate pair


class PackedTexts(Sequence[str]):
    """Sequence of texts that is stored as one block of bytes.

    Processes share it. A list of `str` is copied by each process that reads it, page by page,
    since Python counts references in the objects themselves.

    Args:
        texts: the texts, in order.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = [text.encode(*_CODING) for text in texts]
        self._content = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...

    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        places = range(len(self))[index]  # raises the IndexError
        if isinstance(places, range):
            return tuple(self._at(place) for place in places)
        return self._at(places)

    def __iter__(self) -> Iterator[str]:
        return map(self._at, range(len(self)))

    def _at(self, place: int) -> str:
        start, end = self._ends[place : place + 2]
        return self._content[start:end].decode(*_CODING)
