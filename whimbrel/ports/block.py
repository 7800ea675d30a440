"""Block devices as the data plane sees them: a device hands out lanes; a lane carries many requests at once.

A lane belongs to one thread at a time. Requests are submitted with a buffer that the caller owns and must not touch
until the matching completion is reaped; completions may come in any order. A device whose backend is synchronous
does the work in ``submit_*`` and lets ``reap`` return it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from whimbrel.model.extent import Extent

Operation = Literal["read", "write", "zero", "flush"]


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished request; failures are raised by ``reap``, never returned."""

    cookie: int
    operation: Operation
    offset: int
    length: int


class BlockLane(Protocol):
    """One connection to a device. Every method may raise Unavailable (broken, stalled) or a not retryable error."""

    @property
    def in_flight(self) -> int:
        """Requests submitted and not yet reaped."""
        ...

    def submit_read(self, offset: int, buffer: memoryview) -> int:
        """Ask for ``len(buffer)`` bytes from ``offset`` into ``buffer``; returns the request's cookie."""
        ...

    def submit_write(self, offset: int, data: memoryview) -> int:
        """Ask to write ``data`` at ``offset``; returns the request's cookie."""
        ...

    def submit_zero(self, offset: int, length: int, *, may_punch: bool = True) -> int:
        """Ask to make a range read as zeros, by a hole where ``may_punch`` and the device can; returns the cookie."""
        ...

    def reap(self) -> Completion:
        """Wait for the next completion; the error of a failed request is raised here."""
        ...

    def flush(self) -> None:
        """With nothing in flight: wait until all that any lane of this device wrote is on stable storage."""
        ...

    def close(self) -> None:
        """Give the connection up; never raises. May be called from another thread to interrupt a blocked one."""
        ...


class BlockDevice(Protocol):
    """A disk that can be read, and written unless ``read_only``. Safe to use from several threads."""

    @property
    def size_bytes(self) -> int:
        """Length of the device."""
        ...

    @property
    def read_only(self) -> bool:
        """Whether writes are refused."""
        ...

    @property
    def block_bytes(self) -> int:
        """Smallest unit of a request: offsets and lengths are multiples of it (1 if any)."""
        ...

    def lane(self) -> BlockLane:
        """Open one more connection. Raises Unavailable, AuthFailed, NotFound."""
        ...

    def extents(self, start: int = 0, length: int | None = None) -> Iterator[Extent]:
        """Allocation, asked lazily: consecutive extents covering the range without gap; ``zero`` marks known zeros."""
        ...

    def changed(self, start: int = 0, length: int | None = None) -> Iterator[Extent]:
        """The extents marked as changed by the device's tracking, in order, no overlap; ``zero`` where known zeros now.

        A device opened without change tracking raises Unsupported. Raises BaseLost if tracking cannot answer.
        """
        ...

    def close(self) -> None:
        """Close all lanes; never raises."""
        ...
