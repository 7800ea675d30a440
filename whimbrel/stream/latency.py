"""How long misses wait: a histogram with buckets that grow by a quarter, so any percentile is right within 25 %."""

from __future__ import annotations

import math
import threading
from typing import Final

FLOOR_S: Final = 50e-6
GROWTH: Final = 1.25
BUCKETS: Final = 80


class Latency:
    """Durations of a kind of event. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = [0] * BUCKETS
        self._total = 0
        self._longest_s = 0.0

    def note(self, seconds: float) -> None:
        """Count one event."""
        steps = math.log(seconds / FLOOR_S, GROWTH) if seconds > FLOOR_S else 0.0
        bucket = min(math.ceil(steps), BUCKETS - 1)
        with self._lock:
            self._counts[bucket] += 1
            self._total += 1
            self._longest_s = max(self._longest_s, seconds)

    @property
    def count(self) -> int:
        """Events so far."""
        return self._total

    def quantile_s(self, share: float) -> float | None:
        """The duration that ``share`` of the events did not exceed (upper edge of its bucket); None without events."""
        with self._lock:
            if not self._total:
                return None
            left = math.ceil(share * self._total)
            for bucket, count in enumerate(self._counts):
                left -= count
                if left <= 0:
                    return min(FLOOR_S * GROWTH**bucket, self._longest_s)
        return self._longest_s

    def report(self) -> dict[str, float | int | None]:
        """For the status: count, and p50, p95, p99, max in milliseconds."""
        found = {f"p{round(share * 100)}_ms": _ms(self.quantile_s(share)) for share in (0.5, 0.95, 0.99)}
        return {"count": self._total, **found, "max_ms": _ms(self._longest_s if self._total else None)}


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
