"""How fast a cloud is asked: calls at once, calls per second, and the pauses that it has asked for.

One for each cloud and worker, under all threads and all services: a wave of migrations is many threads, and an API's
limit counts them together. The SDK's own semaphores are one for each service, wait without an end, and know nothing of
the pauses that other threads were told.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import requests
from keystoneauth1.session import TCPKeepAliveAdapter

from drivers.openstack.errors import asks_for_pause, pause_s
from whimbrel.errors import Throttled

MAX_CONCURRENT_CALLS = 16
SHORT_PAUSE_S = 1.0
"""A pause up to this is slept through; for a longer one the thread is given back, and Temporal asks again after it."""
PATIENCE_S = 20.0
"""How long a call waits for its turn, well below the timeout of the activity that it is part of."""


class Pace:
    """The limits, shared by all threads. ``clock`` and ``sleep`` are for tests."""

    def __init__(
        self,
        *,
        at_once: int = MAX_CONCURRENT_CALLS,
        per_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.at_once = at_once
        self._slots = threading.BoundedSemaphore(at_once)
        self._spacing_s = 1.0 / per_s if per_s else 0.0
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._next_at = 0.0
        self._resting: dict[str, float] = {}

    @contextmanager
    def turn(self, service: str) -> Iterator[None]:
        """One call to ``service`` (host and port). Raises Throttled: it rests, or the turn has not come in time."""
        self._check_rest(service)
        if not self._slots.acquire(timeout=PATIENCE_S):
            raise Throttled(
                f"{self.at_once} calls are under way to this cloud and none has ended for {PATIENCE_S:.0f} s",
                retry_after_s=5.0,
                action="nothing: it is tried again; raise max_concurrent_calls in whimbrel.yaml if the cloud bears it",
            )
        try:
            self._space()
            self._check_rest(service)  # another thread may have been told so meanwhile
            yield
        finally:
            self._slots.release()

    def rest(self, service: str, pause: float) -> None:
        """Ask ``service`` nothing for so many seconds; a longer pause that holds already is kept."""
        with self._lock:
            until = self._clock() + pause
            self._resting[service] = max(until, self._resting.get(service, 0.0))

    def _check_rest(self, service: str) -> None:
        with self._lock:
            left = self._resting.get(service, 0.0) - self._clock()
        if left > SHORT_PAUSE_S:
            raise Throttled(f"{service} has asked for a pause, {left:.0f} s of it are left", retry_after_s=left)
        if left > 0:
            self._sleep(left)

    def _space(self) -> None:
        if not self._spacing_s:
            return
        with self._lock:
            now = self._clock()
            begin = max(now, self._next_at)
            if begin - now > PATIENCE_S:
                raise Throttled(
                    f"more calls wait for this cloud than calls_per_s lets through in {PATIENCE_S:.0f} s",
                    retry_after_s=begin - now,
                    action="nothing: it is tried again; raise calls_per_s in whimbrel.yaml if the cloud bears it",
                )
            self._next_at = begin + self._spacing_s
        if begin > now:
            self._sleep(begin - now)


class PacedAdapter(TCPKeepAliveAdapter):
    """The transport of every HTTP request, those for tokens and versions too: below anything that nests."""

    def __init__(self, pace: Pace) -> None:
        super().__init__(pool_maxsize=pace.at_once)
        self._pace = pace

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Send in turn; an answer that asks for a pause holds for all threads."""
        service = urlsplit(request.url or "").netloc
        with self._pace.turn(service):
            answer = super().send(request, *args, **kwargs)
        if asks_for_pause(answer.status_code, answer.headers):
            self._pace.rest(service, pause_s(answer.headers))
        return answer
