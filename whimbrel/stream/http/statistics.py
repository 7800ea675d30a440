"""What the HTTP front end counts for the status."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from whimbrel.stream.latency import Latency

RATE_S: Final = 5.0


class Rate:
    """Bytes per second over the last ``RATE_S`` to twice that. Not thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = self._before_since = clock()
        self._count = self._before = 0

    def add(self, count: int) -> None:
        """So many bytes went out now."""
        self._turn()
        self._count += count

    def per_s(self) -> float:
        """The rate now."""
        now = self._turn()
        return (self._count + self._before) / max(now - self._before_since, 1e-3)

    def _turn(self) -> float:
        now = self._clock()
        if now - self._since >= 2 * RATE_S:
            self._before, self._before_since = 0, now - RATE_S
            self._count, self._since = 0, now
        elif now - self._since >= RATE_S:
            self._before, self._before_since = self._count, self._since
            self._count, self._since = 0, now
        return now


class Kind:
    """Counters of guests' requests, or of bulk."""

    def __init__(self) -> None:
        self.requests = 0
        self.misses = 0
        self.sent_bytes = 0
        self.rate = Rate()


class HttpStatistics:
    """Since the process began. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kinds = {False: Kind(), True: Kind()}
        self.whole_object_latency = Latency()
        """Of guests' misses that ask for a whole object: 4 MiB take their time on any link."""
        self.refused = 0
        self.error: str | None = None
        """Why an answer is held back beside an absent source; the cache's file cannot be read."""

    def asked(self, *, bulk: bool, missed: bool) -> None:
        """A request for bytes of the disk."""
        with self._lock:
            kind = self._kinds[bulk]
            kind.requests += 1
            kind.misses += missed

    def sent(self, count: int, *, bulk: bool) -> None:
        """So many bytes of the disk went out."""
        with self._lock:
            kind = self._kinds[bulk]
            kind.sent_bytes += count
            kind.rate.add(count)

    def refuse(self) -> None:
        """A bad request was answered as such."""
        with self._lock:
            self.refused += 1

    def report(self) -> dict[str, object]:
        """For the status."""
        with self._lock:
            kinds = {
                name: {
                    "requests": kind.requests,
                    "misses": kind.misses,
                    "sent_bytes": kind.sent_bytes,
                    "rate_bytes_per_s": round(kind.rate.per_s()),
                }
                for name, kind in (("demand", self._kinds[False]), ("bulk", self._kinds[True]))
            }
        whole = {"whole_object_latency": self.whole_object_latency.report()}
        return {**kinds, **whole, "refused": self.refused, "error": self.error}
