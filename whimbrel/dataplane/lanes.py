"""A lane over a backend that works synchronously: the work is done in ``submit_*``, ``reap`` returns it."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from whimbrel.errors import Unavailable, WhimbrelError
from whimbrel.ports.block import Completion, Operation


class SyncBackend(Protocol):
    """What a synchronous device offers to its lanes; every method may raise a WhimbrelError."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset``."""
        ...

    def write_from(self, offset: int, data: memoryview) -> None:
        """Write all of ``data`` at ``offset``."""
        ...

    def zero(self, offset: int, length: int, *, may_punch: bool) -> None:
        """Make a range read as zeros."""
        ...

    def flush(self) -> None:
        """Make everything written durable."""
        ...


class SyncLane:
    """Implements whimbrel.ports.block.BlockLane."""

    def __init__(self, backend: SyncBackend) -> None:
        self._backend = backend
        self._done: deque[Completion | WhimbrelError] = deque()
        self._cookie = 0
        self._closed = False

    @property
    def in_flight(self) -> int:
        """Requests submitted and not yet reaped."""
        return len(self._done)

    def submit_read(self, offset: int, buffer: memoryview) -> int:
        """See BlockLane."""
        cookie = self._begin()
        try:
            self._backend.read_into(offset, buffer)
            return self._end(cookie, "read", offset, len(buffer))
        except WhimbrelError as error:
            return self._failed(cookie, error)

    def submit_write(self, offset: int, data: memoryview) -> int:
        """See BlockLane."""
        cookie = self._begin()
        try:
            self._backend.write_from(offset, data)
            return self._end(cookie, "write", offset, len(data))
        except WhimbrelError as error:
            return self._failed(cookie, error)

    def submit_zero(self, offset: int, length: int, *, may_punch: bool = True) -> int:
        """See BlockLane."""
        cookie = self._begin()
        try:
            self._backend.zero(offset, length, may_punch=may_punch)
            return self._end(cookie, "zero", offset, length)
        except WhimbrelError as error:
            return self._failed(cookie, error)

    def reap(self) -> Completion:
        """See BlockLane; raises ValueError if nothing is in flight."""
        if self._closed:
            raise Unavailable("the lane was closed")
        if not self._done:
            raise ValueError("nothing is in flight")
        done = self._done.popleft()
        if isinstance(done, WhimbrelError):
            raise done
        return done

    def flush(self) -> None:
        """See BlockLane."""
        if self._closed:
            raise Unavailable("the lane was closed")
        self._backend.flush()

    def close(self) -> None:
        """See BlockLane."""
        self._closed = True

    def _begin(self) -> int:
        if self._closed:
            raise Unavailable("the lane was closed")
        self._cookie += 1
        return self._cookie

    def _end(self, cookie: int, operation: Operation, offset: int, length: int) -> int:
        self._done.append(Completion(cookie, operation, offset, length))
        return cookie

    def _failed(self, cookie: int, error: WhimbrelError) -> int:
        self._done.append(error)
        return cookie
