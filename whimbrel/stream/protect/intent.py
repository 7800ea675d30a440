"""Which chunks may differ between the target and the shadow after a crash: a map of marks beside the chunk map.

::

    0       a header page (``mapfile.Header``: boot id, source, target), as the chunk map has
    4096    one byte per chunk: 0, or UNSYNCED, and FLYING besides

FLYING: a change is on its way that nobody acknowledged. It matters when the process dies (the page cache lives on).
UNSYNCED: a change was made that no sync of the target has covered. It matters when the host crashes, so this mark is
durable before the change is made at the target or in the shadow; it is taken away lazily, so that a chunk that is
written again and again costs one sync now and then. A byte is a mark by itself, so a torn update is harmless.
"""

from __future__ import annotations

import mmap
import os
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from whimbrel.errors import Conflict
from whimbrel.stream.chunkmap import Run, create_durably, joined
from whimbrel.stream.mapfile import HEADER_BYTES, Header, check_owner, unpack_header

UNSYNCED: Final = 1
FLYING: Final = 2
LINGER_S: Final = 5.0
"""A mark is taken away when its chunk has rested that long."""
_MARKED = re.compile(rb"[^\0]+")
_FLYING = re.compile(b"[\2\3]+")


class Intent:
    """Made by ``open_intent``. ``mark`` and ``landed`` are for one thread, the rest for any."""

    def __init__(self, found: Header, now: Header, table: mmap.mmap) -> None:
        self.host_crashed = found.boot_id != now.boot_id
        """Whether the host crashed since the marks were made."""
        self._header = now
        self._table = table
        self._lock = threading.Lock()
        self._batch = self._landed = 0
        began = time.monotonic()
        chunks = (chunk for run in self.marked() for chunk in range(*run))
        self._marks: dict[int, tuple[int, float]] = dict.fromkeys(chunks, (0, began))
        self._closed = False

    @property
    def marks(self) -> int:
        """Chunks that are marked."""
        return len(self._marks)

    def marked(self) -> list[Run]:
        """All marked chunks: what may differ after a crash of the host."""
        return [_run(match) for match in _MARKED.finditer(self._table, HEADER_BYTES)]

    def flying(self) -> list[Run]:
        """What may differ after the process died."""
        return [_run(match) for match in _FLYING.finditer(self._table, HEADER_BYTES)]

    def mark(self, runs: Iterable[Run]) -> None:
        """Before changes are made in these chunks. Returns when a crash cannot undo the marks."""
        runs = joined(runs)
        with self._lock:
            self._batch += 1
            entry = self._batch, time.monotonic()
            pages = set()
            for first, last in runs:
                for chunk in range(first, last):
                    if chunk not in self._marks:
                        pages.add((HEADER_BYTES + chunk) // mmap.PAGESIZE)
                    self._marks[chunk] = entry
                self._table[HEADER_BYTES + first : HEADER_BYTES + last] = bytes((UNSYNCED | FLYING,)) * (last - first)
        for first, last in joined((page, page + 1) for page in pages):
            start = first * mmap.PAGESIZE
            self._table.flush(start, min(last * mmap.PAGESIZE, len(self._table)) - start)

    def landed(self, runs: Iterable[Run]) -> None:
        """The changes of the last ``mark`` are at the target, and wherever they must be to be acknowledged."""
        with self._lock:
            for first, last in runs:
                self._table[HEADER_BYTES + first : HEADER_BYTES + last] = bytes((UNSYNCED,)) * (last - first)
            self._landed = self._batch

    def before_sync(self) -> int:
        """Call before the target is synced; the answer is for ``synced``."""
        return self._landed

    def synced(self, before: int) -> None:
        """The target was synced: what had landed before and rests since needs no mark."""
        long_ago = time.monotonic() - LINGER_S
        with self._lock:
            if self._closed:
                return
            for chunk in [c for c, (batch, at) in self._marks.items() if batch <= before and at < long_ago]:
                if not self._table[HEADER_BYTES + chunk] & FLYING:
                    del self._marks[chunk]
                    self._table[HEADER_BYTES + chunk] = 0

    def settled(self) -> None:
        """Both sides are durable and alike: no marks, and this boot's."""
        with self._lock:
            self._marks.clear()
            self._table[HEADER_BYTES:] = bytes(len(self._table) - HEADER_BYTES)
            # The marks first: a new boot id over old marks would take them for this boot's.
            self._table.flush()
            self._table[:HEADER_BYTES] = self._header.pack()
            self._table.flush()
            self.host_crashed = False

    def close(self) -> None:
        """Give the file back."""
        with self._lock:
            self._closed = True
            self._table.close()


def mapped(path: Path, length: int) -> mmap.mmap:
    """A file in memory, shared."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return mmap.mmap(fd, length)
    finally:
        os.close(fd)


def open_intent(
    path: Path, header: Header, *, untouched: bool, mapped: Callable[[Path, int], mmap.mmap] = mapped
) -> Intent:
    """Open or make the marks that belong to the chunk map with ``header``.

    ``untouched``: the guest has written nothing yet. Raises Conflict if it has, and the marks are not there: what it
    wrote without protection is not in the shadow. Raises OSError.
    """
    wanted = replace(header, host_crashes=0, clean=False)
    found: Header | None = None
    if path.exists():
        raw = path.read_bytes()
        found = unpack_header(raw[:HEADER_BYTES])
        if found is None or len(raw) != HEADER_BYTES + wanted.chunks:
            raise Conflict(
                f"the marks of protection in {path} are damaged",
                action="the shadow cannot be trusted any more: confirm without a rollback, or start the stream anew",
            )
        if found.target != wanted.target and untouched:
            found = None  # left by an earlier stream
        else:
            check_owner(str(path), found, wanted)
    elif not untouched:
        raise Conflict(
            f"the guest has written to the target without protection: there are no marks in {path}",
            action="go on with protect mode none; protection must begin with the stream",
        )
    if found is None:
        create_durably(path, wanted.pack() + bytes(wanted.chunks))
        found = wanted
    return Intent(found, wanted, mapped(path, HEADER_BYTES + wanted.chunks))


def _run(match: re.Match[bytes]) -> Run:
    return match.start() - HEADER_BYTES, match.end() - HEADER_BYTES
