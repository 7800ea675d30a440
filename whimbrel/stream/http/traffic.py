"""Sending: answers to guests go out first, bulk in slices between them, within its own limit, and not while paused."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Final

from whimbrel.dataplane.governor import Governor, Priority

SLICE_BYTES: Final = 64 << 10
LONGEST_HOLD_S: Final = 0.05
"""A guest that does not take its answer holds bulk back for so long, per slice."""


class Traffic:
    """Shared by all connections of a server. Thread-safe."""

    def __init__(self, *, paused: bool = False) -> None:
        self._changed = threading.Condition()
        self._demand_open = 0
        self._paused = paused
        self._share = Governor().share(Priority.HYDRATION)

    def pause(self, paused: bool) -> None:
        """Hold bulk back, or let it go on."""
        with self._changed:
            self._paused = paused
            self._changed.notify_all()

    def set_bandwidth(self, bytes_per_s: float | None) -> None:
        """Limit what bulk is sent, all connections together; None: no limit. Raises ValueError unless positive."""
        self._share.set_limit(bytes_per_s)

    @contextlib.contextmanager
    def demand(self) -> Iterator[None]:
        """Around the sending of an answer to a guest."""
        with self._changed:
            self._demand_open += 1
        try:
            yield
        finally:
            with self._changed:
                self._demand_open -= 1
                self._changed.notify_all()

    @property
    def paused(self) -> bool:
        """Whether bulk is held back."""
        return self._paused

    def wait_resumed(self, patience_s: float) -> None:
        """Wait while bulk is paused, no longer than ``patience_s``."""
        with self._changed:
            self._changed.wait_for(lambda: not self._paused, patience_s)

    def wait_turn(self, count: int, stopping: Callable[[], bool]) -> None:
        """Wait until ``count`` bytes of bulk may be sent, or ``stopping``."""
        self._share.take(count, stopping)
        with self._changed:
            self._changed.wait_for(lambda: not self._demand_open or stopping(), LONGEST_HOLD_S)
