"""How far the shadow may be behind what the guest was told is done.

``admit`` is called before a change is acknowledged, and waits until that keeps the bounds: the acknowledged bytes that
the shadow lacks stay within the bound, and so few that at the rate seen lately they will be there in half the time
that the oldest may take. A change for which there is no room at all is acknowledged when the shadow has it.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Final

from whimbrel.errors import WhimbrelError
from whimbrel.stream.protect.journal import Held
from whimbrel.stream.source import Stopped

LEAST_BYTES: Final = 4096
"""What a change counts as at least, so that many small ones are bounded as well."""
FIRST_BYTES: Final = 128 << 10
"""What may be lacking before any rate has been seen: a shadow may be slow from the start."""
SLOWEST_BYTES_PER_S: Final = 64 << 10
"""Until then it is taken to be this slow, where the bound in time leaves room for more than ``FIRST_BYTES``."""
MEMORY_S: Final = 2.0
"""So much of the time in which the shadow was busy makes the rate."""
MARGIN: Final = 0.5
TURN_S: Final = 0.25
LEAST_TURN_BYTES: Final = 128 << 10


class Lag:
    """Thread-safe. ``admit`` is for one thread, ``sending`` and ``applied`` for another."""

    def __init__(self, max_bytes: int, max_s: float, *, applied: int, held: Iterable[Held]) -> None:
        self.max_bytes = max_bytes
        self.max_s = max_s
        self._changed = threading.Condition()
        now, wall = time.monotonic(), time.time()
        # The clock of the wall may have been set; the age is for the status and the bound, nothing else.
        self._held = deque(Held(h.number, weight_of(h.size_bytes), now - max(wall - h.at, 0.0)) for h in held)
        self._bytes = sum(h.size_bytes for h in self._held)
        self._applied = applied
        self._rate_bytes = self._rate_s = 0.0
        self._sending_bytes, self._sending_since = 0, 0.0
        self._stopping = False
        self._error: WhimbrelError | None = None
        self.waited_s = 0.0

    def admit(self, number: int, size_bytes: int) -> None:
        """Wait until this change may be acknowledged. Raises Stopped, and the error of ``fail``."""
        weight = weight_of(size_bytes)
        with self._changed:
            began = time.monotonic()
            while True:
                if self._stopping:
                    raise Stopped
                if number <= self._applied:
                    break
                if self._error is not None:
                    raise self._error
                if self._bytes + weight <= self.room_bytes and self._age() <= self.max_s * MARGIN:
                    self._held.append(Held(number, weight, time.monotonic()))
                    self._bytes += weight
                    break
                self._changed.wait()
            self.waited_s += time.monotonic() - began

    def sending(self, weight_bytes: int) -> None:
        """The shadow is given changes of this weight from now on."""
        with self._changed:
            self._sending_bytes, self._sending_since = weight_bytes, time.monotonic()

    def applied(self, number: int, *, measured: bool = True) -> None:
        """The shadow has everything up to this change, durably. Not ``measured``: it was away meanwhile."""
        with self._changed:
            if measured:
                took_s = max(time.monotonic() - self._sending_since, 1e-6)
                fading = math.exp(-took_s / MEMORY_S)
                self._rate_bytes = self._rate_bytes * fading + self._sending_bytes
                self._rate_s = self._rate_s * fading + took_s
            self._sending_bytes = 0
            self._applied = number
            while self._held and self._held[0].number <= number:
                self._bytes -= self._held.popleft().size_bytes
            self._changed.notify_all()

    def fail(self, error: WhimbrelError) -> None:
        """The shadow will not get any further."""
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def stop(self) -> None:
        """Let who waits give up."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def reached(self, number: int, timeout_s: float) -> bool:
        """Wait until the shadow has everything up to this change; False if that takes longer."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._applied >= number or self._stopping or self._error is not None, max(timeout_s, 0.0)
            )
            return self._applied >= number

    @property
    def behind(self) -> tuple[int, float]:
        """Acknowledged bytes that the shadow lacks, and the age of the oldest of them in seconds."""
        with self._changed:
            return self._bytes, self._age()

    @property
    def rate_bytes_per_s(self) -> float | None:
        """How fast the shadow takes changes; None before that was seen."""
        if not self._rate_s:
            return None
        rate = self._rate_bytes / self._rate_s
        if self._sending_bytes:
            # What is on its way now may take longer than all before.
            rate = min(rate, self._sending_bytes / max(time.monotonic() - self._sending_since, 1e-6))
        return rate

    @property
    def room_bytes(self) -> int:
        """So many bytes may be lacking now."""
        rate = self.rate_bytes_per_s
        if rate is None:
            return min(self.max_bytes, max(FIRST_BYTES, int(SLOWEST_BYTES_PER_S * self.max_s * MARGIN)))
        return min(self.max_bytes, int(rate * self.max_s * MARGIN))

    @property
    def turn_bytes(self) -> int:
        """How much to give the shadow at once, so that a turn is short and what waits for it goes on soon."""
        rate = self.rate_bytes_per_s
        return LEAST_TURN_BYTES if rate is None else max(int(rate * TURN_S), LEAST_TURN_BYTES)

    @property
    def error(self) -> WhimbrelError | None:
        """Why the shadow gets no further."""
        return self._error

    def _age(self) -> float:
        return time.monotonic() - self._held[0].at if self._held else 0.0


def weight_of(size_bytes: int) -> int:
    """What a change with a payload of so many bytes counts as."""
    return max(size_bytes, LEAST_BYTES)
