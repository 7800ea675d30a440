"""Disks of the in-memory cloud made reachable for the data plane, and taken away again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from whimbrel.dataplane.memorydevice import MemoryDisk, find_disk, publish_disk, remove_disk
from whimbrel.errors import NotFound, QuotaExceeded, Unavailable, WhimbrelError
from whimbrel.model.endpoint import Endpoint, MemoryEndpoint
from whimbrel.ports.block import Operation


@dataclass
class Budget:
    """Bytes that may still be written through writer sessions before ``error`` is raised; None is no limit.

    The error comes ``times`` times, then the limit is lifted; with ``times`` None it comes until the limit is changed.
    """

    left_bytes: int | None = None
    error: Callable[[], WhimbrelError] = lambda: QuotaExceeded("no space left in the pool")
    times: int | None = None

    def spend(self, length: int) -> None:
        """Account for a write. Raises ``error`` when it does not fit; nothing is written then."""
        if self.left_bytes is None:
            return
        if length <= self.left_bytes:
            self.left_bytes -= length
            return
        if self.times is not None:
            self.times -= 1
            if self.times <= 0:
                self.left_bytes = None
        raise self.error()


class ServedDisk(MemoryDisk):
    """A disk as an export shows it: the bytes of ``inner``, until the export ends."""

    def __init__(self, inner: MemoryDisk, budget: Budget | None = None) -> None:
        super().__init__(inner.size_bytes, tracked=False, block_bytes=inner.block_bytes)
        self.changed = inner.changed
        self.lock = inner.lock
        self.ended = False
        self._inner = inner
        self._budget = budget or Budget()

    def read_to(self, offset: int, buffer: memoryview) -> None:
        """Read from the disk."""
        self._inner.read_to(offset, buffer)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write to the disk as far as the budget goes."""
        with self.lock:
            self._refuse_if_ended()
            self._budget.spend(len(data))
            self._inner.write(offset, data)

    def discard(self, offset: int, length: int) -> None:
        """Zero a range of the disk; takes no room."""
        with self.lock:
            self._refuse_if_ended()
            self._inner.discard(offset, length)

    def allocated(self) -> list[int]:
        """Blocks that are not zeros. Raises Unavailable after the end."""
        self._refuse_if_ended()
        return self._inner.allocated()

    def account(self, operation: Operation) -> None:
        """Count a request. Raises Unavailable after the end, as a dead server would."""
        self._refuse_if_ended()
        super().account(operation)

    def _refuse_if_ended(self) -> None:
        if self.ended:
            raise Unavailable("the point or writer session behind this memory endpoint has ended")


def export_disk(key: str, disk: MemoryDisk, *, writable: bool, budget: Budget | None = None) -> MemoryEndpoint:
    """Make ``disk`` reachable by ``key`` until ``withdraw``. Raises Conflict for a key in use."""
    publish_disk(key, ServedDisk(disk, budget))
    return MemoryEndpoint(key=key, writable=writable)


def withdraw(endpoint: Endpoint) -> None:
    """End an export: devices that are open on it fail from now on. One that is not there is fine."""
    if not isinstance(endpoint, MemoryEndpoint):
        return
    try:
        served = find_disk(endpoint.key)
    except NotFound:
        return
    remove_disk(endpoint.key)
    if isinstance(served, ServedDisk):
        with served.lock:
            served.ended = True
