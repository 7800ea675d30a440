"""How long misses wait: a histogram with buckets that grow by a quarter, so any percentile is right within 25 %."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Final

FLOOR_S: Final = 50e-6
GROWTH: Final = 1.25
BUCKETS: Final = 80
RECENT_S: Final = 10.0
"""What ``recent`` looks back: between one and two of these."""


class Latency:
    """Durations of a kind of event. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._counts = [0] * BUCKETS
        self._total = 0
        self._longest_s = 0.0
        self._window = [0] * BUCKETS
        self._before = [0] * BUCKETS
        self._turned = clock()

    def note(self, seconds: float) -> None:
        """Count one event."""
        steps = math.log(seconds / FLOOR_S, GROWTH) if seconds > FLOOR_S else 0.0
        bucket = min(math.ceil(steps), BUCKETS - 1)
        with self._lock:
            self._turn()
            self._counts[bucket] += 1
            self._window[bucket] += 1
            self._total += 1
            self._longest_s = max(self._longest_s, seconds)

    def _turn(self) -> None:
        now = self._clock()
        if now - self._turned >= RECENT_S:
            stale = now - self._turned >= 2 * RECENT_S
            self._before = [0] * BUCKETS if stale else self._window
            self._window = [0] * BUCKETS
            self._turned = now

    @property
    def count(self) -> int:
        """Events so far."""
        return self._total

    def quantile_s(self, share: float) -> float | None:
        """The duration that ``share`` of the events did not exceed (upper edge of its bucket); None without events."""
        with self._lock:
            return self._quantile(self._counts, share)

    def recent_s(self, share: float) -> float | None:
        """The same of the events of the last ``RECENT_S`` to twice that; None without any."""
        with self._lock:
            self._turn()
            both = [old + new for old, new in zip(self._before, self._window, strict=True)]
            return self._quantile(both, share)

    def _quantile(self, counts: list[int], share: float) -> float | None:
        total = sum(counts)
        if not total:
            return None
        left = math.ceil(share * total)
        for bucket, count in enumerate(counts):
            left -= count
            if left <= 0:
                return min(FLOOR_S * GROWTH**bucket, self._longest_s)
        return self._longest_s

    def report(self) -> dict[str, float | int | None]:
        """For the status: count, and p50, p95, p99, max in milliseconds; ``recent_p99_ms`` of the last seconds."""
        found = {f"p{round(share * 100)}_ms": _ms(self.quantile_s(share)) for share in (0.5, 0.95, 0.99)}
        recent = {"recent_p99_ms": _ms(self.recent_s(0.99))}
        return {"count": self._total, **found, "max_ms": _ms(self._longest_s if self._total else None), **recent}


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
