"""The disk as those see it who read a file system while it is still at the source.

They are written as if all bytes were there. What is not makes them raise ``Absent``; they are run again once it has
come. So many of them can be under way at once, and what all of them lack is fetched together: over a long link the
round trips count, not the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

BATCH_CHUNKS: Final = 64
LONGEST_READ_BYTES: Final = 4 << 20

Fetch = Callable[[list[int]], dict[int, bytes]]
"""Brings chunks, all of them."""


class Absent(Exception):
    """These chunks are needed first."""

    def __init__(self, chunks: set[int]) -> None:
        super().__init__(f"{len(chunks)} chunks")
        self.chunks = chunks


class Unreadable(Exception):
    """What is on the disk makes no sense here, is not there, or is of a kind that is not known."""


class Spent(Exception):
    """So much has been read that it is not worth more."""


class View:
    """Bytes of a disk, by chunks that are fetched once and kept. For one thread."""

    def __init__(self, fetch: Fetch, size_bytes: int, chunk_bytes: int, budget_bytes: int) -> None:
        self._fetch = fetch
        self._left = budget_bytes
        self._chunks: dict[int, bytes] = {}
        self.size_bytes = size_bytes
        self.chunk_bytes = chunk_bytes

    def read(self, offset: int, length: int) -> bytes:
        """Raises Absent, Unreadable if the disk has no such range."""
        if offset < 0 or not 0 < length <= LONGEST_READ_BYTES or offset + length > self.size_bytes:
            raise Unreadable(f"{length} bytes at {offset}")
        first, last = offset // self.chunk_bytes, (offset + length - 1) // self.chunk_bytes
        if first == last and (found := self._chunks.get(first)) is not None:
            start = offset - first * self.chunk_bytes
            return found[start : start + length]
        absent = {chunk for chunk in range(first, last + 1) if chunk not in self._chunks}
        if absent:
            raise Absent(absent)
        start = offset - first * self.chunk_bytes
        return b"".join(self._chunks[chunk] for chunk in range(first, last + 1))[start : start + length]

    def bring(self, chunks: Iterable[int]) -> None:
        """Fetch what is absent. Raises Spent."""
        wanted = sorted(chunk for chunk in chunks if chunk not in self._chunks)
        for at in range(0, len(wanted), BATCH_CHUNKS):
            batch = wanted[at : at + BATCH_CHUNKS]
            self._left -= len(batch) * self.chunk_bytes
            if self._left < 0:
                raise Spent
            self._chunks.update(self._fetch(batch))

    @property
    def seen(self) -> list[int]:
        """Chunks that were read."""
        return list(self._chunks)
