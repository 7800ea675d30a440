"""Proposes what the boot set holds: its order from the front, and the rest of a file that the guest has begun."""

from __future__ import annotations

from collections import deque
from typing import Final

from whimbrel.stream.hydration import Access
from whimbrel.stream.prefetch.predictor import Proposal, Wanted

PATIENCE: Final = 2048
PATIENCE_FILE: Final = 256
PENDING: Final = 64
AHEAD: Final = 64
"""Chunks of a file from where the guest is."""


class BootSet:
    """Grows while it is used: ``add`` is called by one thread, everything else by another."""

    name = "boot-set"

    def __init__(self) -> None:
        self._order: list[int] = []
        self._members: set[int] = set()
        self._front = 0
        self.files: dict[int, list[int]] = {}
        """The file that a chunk belongs to: all its chunks."""

    def add(self, chunks: list[int]) -> None:
        """A file, or whatever belongs together."""
        fresh = [chunk for chunk in chunks if chunk not in self._members]
        self._members.update(fresh)
        self._order += fresh
        for chunk in fresh:
            self.files[chunk] = chunks

    @property
    def chunks(self) -> int:
        """How many there are."""
        return len(self._order)

    def accessed(self, first: int, last: int, access: Access) -> None:
        """See Predictor. Nothing to learn."""

    def propose(self, longest: int, wanted: Wanted) -> Proposal | None:
        """See Predictor."""
        while self._front < len(self._order):
            first = last = self._order[self._front]
            if not wanted(first):
                self._front += 1
                continue
            while last - first < longest and last in self._members and wanted(last):
                last += 1
            return Proposal((first, last), PATIENCE)
        return None


class BegunFiles:
    """Proposes the rest of a file of the boot set once the guest has begun it, the latest first."""

    name = "begun-files"

    def __init__(self, found: BootSet) -> None:
        self._found = found
        self._pending: deque[tuple[list[int], int, int]] = deque(maxlen=PENDING)
        """Chunks of a file, from where and up to where."""

    def accessed(self, first: int, last: int, access: Access) -> None:
        """See Predictor."""
        if access != "read":
            return
        chunks = self._found.files.get(first)
        if chunks is not None:
            at = chunks.index(first) + 1
            self._pending.append((chunks, at, min(at + AHEAD, len(chunks))))

    def propose(self, longest: int, wanted: Wanted) -> Proposal | None:
        """See Predictor."""
        while self._pending:
            chunks, at, end = self._pending.pop()
            while at < end and not wanted(chunks[at]):
                at += 1
            if at == end:
                continue
            first = last = chunks[at]
            while at < end and last - first < longest and chunks[at] == last and wanted(last):
                at, last = at + 1, last + 1
            if at < end:
                self._pending.append((chunks, at, end))
            return Proposal((first, last), PATIENCE_FILE)
        return None
