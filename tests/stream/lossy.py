"""A disk whose host may crash: what was not synced is lost, sector by sector, as chance has it."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator

from whimbrel.model.extent import Extent

SECTOR = 512


class LossyDisk:
    """``now`` is what the page cache holds, ``stable`` what a crash leaves for sure. A target and a durable file."""

    def __init__(self, content: bytes) -> None:
        self.now = bytearray(content)
        self.stable = bytearray(content)
        self._unsynced: set[int] = set()
        self._lock = threading.Lock()
        self.before_write: Callable[[], None] = lambda: None
        """Called before each change."""
        self.before_flush: Callable[[], None] = lambda: None
        self.after_flush: Callable[[], None] = lambda: None
        """What happens in the moments around the sync: a crash (an exception), or somebody else's write."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        with self._lock:
            buffer[:] = self.now[offset : offset + len(buffer)]

    def write_from(self, offset: int, data: memoryview) -> None:
        self.before_write()
        with self._lock:
            assert offset + len(data) <= len(self.now)
            self.now[offset : offset + len(data)] = data
            self._unsynced.update(range(offset // SECTOR, -(-(offset + len(data)) // SECTOR)))

    def zero(self, offset: int, length: int, *, may_punch: bool) -> None:
        self.write_from(offset, memoryview(bytes(length)))

    def flush(self) -> None:
        self.before_flush()
        with self._lock:
            for sector in self._unsynced:
                self._copy(self.now, self.stable, sector)
            self._unsynced.clear()
        self.after_flush()

    def close(self) -> None:
        """Nothing to give back."""

    def extents(self, start: int = 0, length: int | None = None) -> Iterator[Extent]:
        yield Extent(start, len(self.now) - start if length is None else length)

    def crash(self, rng: random.Random) -> bytes:
        """What is on the disk after a crash: of the unsynced sectors any subset arrived."""
        with self._lock:
            left = bytearray(self.stable)
            share = rng.random()
            for sector in self._unsynced:
                if rng.random() < share:
                    self._copy(self.now, left, sector)
            return bytes(left)

    @staticmethod
    def _copy(source: bytearray, target: bytearray, sector: int) -> None:
        start = sector * SECTOR
        target[start : start + SECTOR] = source[start : start + SECTOR]
