"""How far a copy is: plain figures, safe to count from several threads."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

WINDOW_S = 10.0


@dataclass(frozen=True, slots=True)
class CopyProgress:
    """Figures of one call of ``copy``; bytes unless named otherwise.

    ``total`` is the disk for a baseline and the sum of the changes for a list of them; ``done`` is what of it needs
    no more work, including what an earlier attempt did. ``rate`` counts bytes read, over the last 10 s.
    """

    total_bytes: int
    done_bytes: int
    read_bytes: int
    sent_bytes: int
    zeroed_bytes: int
    skipped_bytes: int
    rate_bytes_per_s: float
    eta_s: float | None
    cursor_bytes: int


class Meter:
    """Counts the bytes of one copy and turns them into CopyProgress."""

    def __init__(self, total_bytes: int, done_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total_bytes = total_bytes
        self.done_bytes = done_bytes
        self.read_bytes = 0
        self.sent_bytes = 0
        self.zeroed_bytes = 0
        self.skipped_bytes = 0
        self._clock = clock
        self._lock = threading.Lock()
        self._samples: deque[tuple[float, int, int]] = deque([(clock(), done_bytes, 0)])

    def add(self, *, done: int = 0, read: int = 0, sent: int = 0, zeroed: int = 0, skipped: int = 0) -> None:
        """Count bytes."""
        with self._lock:
            self.done_bytes += done
            self.read_bytes += read
            self.sent_bytes += sent
            self.zeroed_bytes += zeroed
            self.skipped_bytes += skipped

    def progress(self, cursor_bytes: int) -> CopyProgress:
        """The figures now; ``eta_s`` is None while nothing moves."""
        with self._lock:
            now = self._clock()
            self._samples.append((now, self.done_bytes, self.read_bytes))
            while len(self._samples) > 2 and self._samples[1][0] <= now - WINDOW_S:
                self._samples.popleft()
            then, done, read = self._samples[0]
            span = max(now - then, 1e-9)
            pace = (self.done_bytes - done) / span
            left = max(self.total_bytes - self.done_bytes, 0)
            eta = 0.0 if left == 0 else left / pace if pace > 0 else None
            return CopyProgress(
                total_bytes=self.total_bytes,
                done_bytes=min(self.done_bytes, self.total_bytes),
                read_bytes=self.read_bytes,
                sent_bytes=self.sent_bytes,
                zeroed_bytes=self.zeroed_bytes,
                skipped_bytes=self.skipped_bytes,
                rate_bytes_per_s=(self.read_bytes - read) / span,
                eta_s=eta,
                cursor_bytes=cursor_bytes,
            )
