"""How many bytes the background may have in flight: enough to fill the link, little enough not to delay a miss.

A miss waits for what is in flight ahead of it (measured: latency ~ bytes ahead / link rate), so the window is steered
to a queue of ``QUEUE_LOW_S`` to ``QUEUE_HIGH_S``. The queue is what a request takes beyond the quickest request seen
lately, as in TCP Vegas (Brakmo, O'Malley, Peterson 1994). A standing queue would hide in that minimum, so from time to
time the window is one request for a moment, as BBR does (Cardwell et al. 2016, ProbeRTT).
"""

from __future__ import annotations

import threading
from typing import Final

QUEUE_LOW_S: Final = 0.003
QUEUE_HIGH_S: Final = 0.006
SMALLEST_BYTES: Final = 64 << 10
LARGEST_BYTES: Final = 16 << 20
LARGEST_REQUEST_BYTES: Final = 256 << 10
REQUESTS: Final = 4
START_BYTES: Final = 256 << 10
BASE_LIFE_S: Final = 10.0
PROBES: Final = 3
RATE_GAP_S: Final = 2.0
"""A longer silence is a pause, not a slow link."""


class Window:
    """Fed with every background request that ended. Thread-safe."""

    def __init__(self, fixed_bytes: int | None = None) -> None:
        self._lock = threading.Lock()
        self._fixed = fixed_bytes
        self._bytes = float(START_BYTES)
        self._base_s: float | None = None
        self._base_since = 0.0
        self._smooth_s = 0.0
        self._since_change = 0
        self._probing = PROBES
        self.rate_bytes_per_s = 0.0
        """Of the background, smoothed."""
        self._rate_from: float | None = None
        self._rate_bytes = 0

    @property
    def size_bytes(self) -> int:
        """How much may be in flight now; one request may always be."""
        with self._lock:
            if self._fixed is not None:
                return self._fixed
            return SMALLEST_BYTES if self._probing else int(self._bytes)

    @property
    def request_bytes(self) -> int:
        """How much to ask for at once: a quarter of the window, so that the link never waits for the next request."""
        quarter = self.size_bytes // REQUESTS
        return min(max(quarter // SMALLEST_BYTES * SMALLEST_BYTES, SMALLEST_BYTES), LARGEST_REQUEST_BYTES)

    @property
    def fixed(self) -> bool:
        """Whether the size was given by hand."""
        return self._fixed is not None

    def fix(self, size_bytes: int | None) -> None:
        """Set the size by hand; None steers it again. Raises ValueError for less than one byte."""
        if size_bytes is not None and size_bytes < 1:
            raise ValueError("a window has at least one byte")
        with self._lock:
            self._fixed = size_bytes

    def done(self, length: int, took_s: float, now: float) -> None:
        """A background request of ``length`` bytes ended ``took_s`` after it was sent."""
        with self._lock:
            self._measure_rate(length, now)
            if self._base_s is None or took_s < self._base_s:
                self._base_s = took_s
            if self._probing:
                self._probing -= 1
                self._smooth_s = self._base_s
                self._since_change = 0
                return
            if now - self._base_since > BASE_LIFE_S:
                self._base_since, self._base_s, self._probing = now, None, PROBES
                return
            self._smooth_s += (took_s - self._smooth_s) / 4
            self._since_change += length
            if self._since_change >= self._bytes:
                self._since_change = 0
                self._steer(self._smooth_s - self._base_s)

    def _steer(self, queue_s: float) -> None:
        if queue_s < QUEUE_LOW_S:
            self._bytes = min(self._bytes * 1.25, LARGEST_BYTES)
        elif queue_s > QUEUE_HIGH_S:
            self._bytes = max(self._bytes * 0.8, SMALLEST_BYTES)

    def _measure_rate(self, length: int, now: float) -> None:
        if self._rate_from is None or now - self._rate_from > RATE_GAP_S:
            self._rate_bytes = 0
            self._rate_from = now
            return
        self._rate_bytes += length
        elapsed = now - self._rate_from
        if elapsed >= 0.25:
            rate = self._rate_bytes / elapsed
            weight = min(elapsed, 1.0)
            self.rate_bytes_per_s += (rate - self.rate_bytes_per_s) * (weight if self.rate_bytes_per_s else 1.0)
            self._rate_from, self._rate_bytes = now, 0
