"""The governor of a whole host: several servers, each a process, divide one limit by priority.

The rules are ``dataplane.governor``'s (a bucket that may go into debt, a floor for classes below a hungry one); the
buckets lie in a small file that everybody opens, under flock. Times are CLOCK_MONOTONIC, which all processes of a boot
share. A process that dies in the middle leaves at worst a bucket that is a request too full or too empty.
"""

from __future__ import annotations

import fcntl
import math
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from whimbrel.dataplane.governor import BURST_S, FLOOR_SHARE, LINGER_S, Governor, Priority, Share
from whimbrel.errors import Unavailable

_MAGIC: Final = 1_463_308_593.0
_CLASSES: Final = len(Priority)
_STATE: Final = struct.Struct(f"<{4 + 2 * _CLASSES}d")
"""Magic, rate, time, tokens; tokens of the floors; until when each class is hungry."""
_DEBT_S: Final = 60.0


class HostGovernor(Governor):
    """Whoever opens the file sets the host's limit for all. Raises Unavailable if the file cannot be used."""

    def __init__(
        self, path: Path, host_limit_bytes_per_s: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(host_limit_bytes_per_s, clock=clock)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as failed:
            raise Unavailable(f"the host's governor {path} cannot be used: {failed}", cause=failed) from failed
        self.set_host_limit(host_limit_bytes_per_s)

    def set_host_limit(self, bytes_per_s: float | None) -> None:
        """See Governor; for all processes."""
        super().set_host_limit(bytes_per_s)
        with self._changed:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            try:
                state = self._load()
                state[1] = bytes_per_s or math.inf
                self._save(state)
            finally:
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give the file back; nobody may draw any more."""
        os.close(self._fd)

    def _reserve(self, share: Share, count: int) -> float:
        with self._changed:
            now = self._clock()
            share._own.refill(now)
            wait = share._own.wait_s()
            if wait > 0:
                return wait
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            try:
                state = self._load()
                wait = _draw(state, share.priority, count, now)
                self._save(state)
            finally:
                fcntl.flock(self._fd, fcntl.LOCK_UN)
            if not wait:
                share._own.take(count)
            return wait

    def _load(self) -> list[float]:
        """The state, brought up to now; a fresh one if it is none, or from before this boot."""
        now, raw = self._clock(), os.pread(self._fd, _STATE.size, 0)
        state = list(_STATE.unpack(raw)) if len(raw) == _STATE.size else []
        if not state or state[0] != _MAGIC or state[2] > now or any(math.isnan(value) for value in state):
            return [_MAGIC, math.inf, now, *[0.0] * (1 + _CLASSES), *[-math.inf] * _CLASSES]
        rate, elapsed = state[1], now - state[2]
        if math.isinf(rate):
            state[3 : 4 + _CLASSES] = [0.0] * (1 + _CLASSES)
        else:
            for at, share in enumerate([1.0, *[FLOOR_SHARE] * _CLASSES], start=3):
                full = state[at] + elapsed * rate * share
                state[at] = max(min(full, rate * share * BURST_S), -rate * share * _DEBT_S)
        state[2] = now
        return state

    def _save(self, state: list[float]) -> None:
        os.pwrite(self._fd, _STATE.pack(*state), 0)


def _draw(state: list[float], priority: Priority, count: int, now: float) -> float:
    """Take ``count`` bytes (0), or say how long to wait."""
    rate = state[1]
    if math.isinf(rate):
        return 0.0
    hungry = 4 + _CLASSES
    starved = any(state[hungry + other] > now for other in range(priority))
    at, share = (4 + priority, FLOOR_SHARE) if starved else (3, 1.0)
    if state[at] < 0:
        wait = -state[at] / (rate * share)
        state[hungry + priority] = now + wait + LINGER_S
        return wait
    if starved:
        state[at] -= count
    state[3] -= count
    return 0.0
