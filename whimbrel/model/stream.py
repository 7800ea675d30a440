"""Figures of a disk that is served while it arrives."""

from __future__ import annotations

from whimbrel.model.endpoint import Frozen


class StreamFigures(Frozen):
    """What a stream has done so far, all disks together."""

    disks: int = 0
    total_bytes: int = 0
    missing_bytes: int = 0
    hits: int = 0
    """Requests of the guest that found all their data at the target."""
    misses: int = 0
    """Requests that had to wait for the source."""
    demand_bytes: int = 0
    background_bytes: int = 0
    demand_bytes_per_s: float = 0.0
    background_bytes_per_s: float = 0.0
    miss_p50_ms: float | None = None
    miss_p95_ms: float | None = None
    miss_p99_ms: float | None = None
    """Of the worst disk; the same holds for the other two."""
    written_bytes: int = 0
    """Chunks that the guest wrote, times their size."""
    lag_bytes: int = 0
    """Acknowledged writes that are not yet at the source (``protect: journal``)."""
    lag_s: float = 0.0
    server_starts: int = 0
    """How often a server was found dead and started again."""
    host_crashes: int = 0

    @property
    def hit_rate(self) -> float | None:
        """Share of the requests that found their data; None without requests."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else None
