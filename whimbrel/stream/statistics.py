"""What the server counts for its status."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from whimbrel.stream.latency import Latency


@dataclass(slots=True)
class Statistics:
    """Counters since the process began. ``add`` is thread-safe; reading needs no lock."""

    hits: int = 0
    """Requests that needed data, all of it local."""
    misses: int = 0
    """Requests that had to wait for the source."""
    read_hits: int = 0
    """Read requests that found all their chunks local: fetched, written, or known to be holes."""
    read_misses: int = 0
    demand_bytes: int = 0
    background_bytes: int = 0
    hole_bytes: int = 0
    dropped_bytes: int = 0
    """Fetched for nothing: a write was faster."""
    read_bytes: int = 0
    written_bytes: int = 0
    flushes: int = 0
    miss_latency: Latency = field(default_factory=Latency)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _since: float = field(default_factory=time.monotonic)

    def add(self, **counts: int) -> None:
        """Add to the counters named."""
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)

    def asked(self, *, reading: bool, missed: bool) -> None:
        """Count a request that needs data."""
        with self._lock:
            if missed:
                self.misses += 1
                self.read_misses += reading
            else:
                self.hits += 1
                self.read_hits += reading

    @property
    def read_hit_rate(self) -> float | None:
        """Share of the read requests that waited for nothing; None without any."""
        asked = self.read_hits + self.read_misses
        return self.read_hits / asked if asked else None

    @property
    def hit_rate(self) -> float | None:
        """Share of the requests that found all their data local; None without requests."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else None

    def reads(self) -> dict[str, object]:
        """How many read requests waited for the source, and the share of those that did not."""
        rate = self.read_hit_rate
        return {
            "hits": self.read_hits,
            "misses": self.read_misses,
            "hit_rate": None if rate is None else round(rate, 4),
        }

    def report(self) -> dict[str, object]:
        """For the status; bytes, and bytes per second since the process began."""
        elapsed = max(time.monotonic() - self._since, 1e-3)
        rate = self.hit_rate
        return {
            "hits": self.hits,
            "misses": self.misses,
            "hit_rate": None if rate is None else round(rate, 4),
            "reads": self.reads(),
            "demand_bytes": self.demand_bytes,
            "background_bytes": self.background_bytes,
            "hole_bytes": self.hole_bytes,
            "dropped_bytes": self.dropped_bytes,
            "read_bytes": self.read_bytes,
            "written_bytes": self.written_bytes,
            "flushes": self.flushes,
            "demand_bytes_per_s": round(self.demand_bytes / elapsed),
            "background_bytes_per_s": round(self.background_bytes / elapsed),
            "miss_latency": self.miss_latency.report(),
        }
