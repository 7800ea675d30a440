"""One bandwidth governor per host: all copies of a process share its token bucket, by priority.

Bytes are counted once, when they are asked from the source. A request is let through while the bucket is not in debt
and may take it into debt, so requests of any size pass and the rate holds on average. While a class had to wait
within the last ``LINGER_S``, it is hungry: classes below it get the floor (5 % of the host's rate) and no more. A
class that never has to wait takes nothing from the others. Without a host limit there is nothing to divide, and
priorities have no effect; a copy's own limit holds always.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from enum import IntEnum

FLOOR_SHARE = 0.05
LINGER_S = 0.1
BURST_S = 0.1
_LONGEST_WAIT_S = 0.1


class Priority(IntEnum):
    """Classes of traffic; a lower number goes first."""

    MISS = 0
    FINAL_DELTA = 1
    DELTA = 2
    BASELINE = 3
    HYDRATION = 4


class _Bucket:
    """Tokens in bytes; may be in debt. ``rate`` None lets all pass."""

    def __init__(self, rate: float | None, now: float) -> None:
        self.rate = rate
        self.tokens = 0.0
        self._then = now

    def set_rate(self, rate: float | None, now: float) -> None:
        self.refill(now)
        self.rate = rate
        self.tokens = min(self.tokens, (rate or 0.0) * BURST_S)

    def refill(self, now: float) -> None:
        if self.rate is not None:
            self.tokens = min(self.tokens + (now - self._then) * self.rate, self.rate * BURST_S)
        self._then = now

    def wait_s(self) -> float:
        """Seconds until a request may pass; 0 if it may now."""
        if self.rate is None or self.tokens >= 0:
            return 0.0
        return -self.tokens / self.rate

    def take(self, count: int) -> None:
        if self.rate is not None:
            self.tokens -= count


class Governor:
    """Divides the host's bandwidth among the copies of this process. Thread-safe; limits may change while in use."""

    def __init__(
        self, host_limit_bytes_per_s: float | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        now = clock()
        self._host = _Bucket(_checked(host_limit_bytes_per_s), now)
        self._floors = {priority: _Bucket(_floor(host_limit_bytes_per_s), now) for priority in Priority}
        self._hungry_until = dict.fromkeys(Priority, float("-inf"))

    @property
    def host_limit_bytes_per_s(self) -> float | None:
        """The host's limit now; None: unlimited."""
        return self._host.rate

    def set_host_limit(self, bytes_per_s: float | None) -> None:
        """Change the host's limit (None: none); who waits sees it at once. Raises ValueError unless positive."""
        with self._changed:
            now = self._clock()
            self._host.set_rate(_checked(bytes_per_s), now)
            for floor in self._floors.values():
                floor.set_rate(_floor(bytes_per_s), now)
            self._changed.notify_all()

    def share(self, priority: Priority, limit_bytes_per_s: float | None = None) -> Share:
        """What one copy draws its bytes from."""
        return Share(self, priority, limit_bytes_per_s)

    def _reserve(self, share: Share, count: int) -> float:
        with self._changed:
            now = self._clock()
            for bucket in (self._host, share._own, *self._floors.values()):
                bucket.refill(now)
            own = share._own.wait_s()
            if own > 0:
                return own
            starved = any(self._hungry_until[other] > now for other in Priority if other < share.priority)
            gate = self._floors[share.priority] if starved else self._host
            wait = gate.wait_s()
            if wait > 0:
                self._hungry_until[share.priority] = now + wait + LINGER_S
                return wait
            if starved:
                gate.take(count)
            self._host.take(count)
            share._own.take(count)
            return 0.0

    def _pause(self, wait_s: float) -> None:
        with self._changed:
            self._changed.wait(min(wait_s, _LONGEST_WAIT_S))


class Share:
    """One copy's door to the governor."""

    def __init__(self, governor: Governor, priority: Priority, limit_bytes_per_s: float | None) -> None:
        self._governor = governor
        self.priority = priority
        self._own = _Bucket(_checked(limit_bytes_per_s), governor._clock())

    def set_limit(self, bytes_per_s: float | None) -> None:
        """Change this copy's own limit (None: none); raises ValueError unless positive."""
        governor = self._governor
        with governor._changed:
            self._own.set_rate(_checked(bytes_per_s), governor._clock())
            governor._changed.notify_all()

    def reserve(self, count: int) -> float:
        """Take ``count`` bytes if they may pass now (returns 0), else take nothing and say how many seconds to wait."""
        return self._governor._reserve(self, count)

    def take(self, count: int, should_stop: Callable[[], bool]) -> bool:
        """Wait until ``count`` bytes may pass; False if ``should_stop`` became true first (asked every 0.1 s)."""
        while (wait := self.reserve(count)) > 0:
            if should_stop():
                return False
            self._governor._pause(wait)
        return True


def _checked(rate: float | None) -> float | None:
    if rate is not None and rate <= 0:
        raise ValueError("a bandwidth limit is a positive number of bytes per second, or None for no limit")
    return rate


def _floor(rate: float | None) -> float | None:
    return None if rate is None else rate * FLOOR_SHARE
