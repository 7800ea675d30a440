"""The shadow: an overlay at the source that may go away and come back; whoever needs it waits.

What is applied is sent with many requests in flight, but never two that overlap, for a server may carry them out in any
order; then one flush makes it durable. A connection that is lost with writes not flushed is no loss: all since the
last flush are sent again, in order. So that a late request of an old connection cannot land on top of a newer write, a
server that is merely silent keeps its connection for ``SILENCE_S``; TCP itself bridges a network that is away. Nor are
more requests in flight than a server begins at once.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from whimbrel.dataplane.devices import open_device
from whimbrel.errors import Conflict, Unavailable, WhimbrelError
from whimbrel.model.endpoint import FileEndpoint, MemoryEndpoint, NbdEndpoint
from whimbrel.nbd import NbdLane, open_nbd
from whimbrel.ports.block import BlockDevice, BlockLane
from whimbrel.stream.protect.change import Change
from whimbrel.stream.source import FIRST_PAUSE_S, LONGEST_PAUSE_S, Stopped

IN_FLIGHT: Final = 16
"""What QEMU begins at once for one client; more would wait unread in its socket."""
SETTLE_S: Final = 0.2
"""So long a new connection waits after one was lost in the middle of writes."""
SILENCE_S: Final = 600.0

Opener = Callable[[], BlockDevice]
ShadowEndpoint = NbdEndpoint | FileEndpoint | MemoryEndpoint


class Shadow:
    """One thread at a time calls ``apply``, ``read`` and ``flush``; the rest is for any."""

    def __init__(self, opener: Opener, size_bytes: int) -> None:
        self._opener = opener
        self._size_bytes = size_bytes
        self._device: BlockDevice | None = None
        self._lane: BlockLane | None = None
        self._failures = 0
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._given_up = False
        self._away_since: float | None = None
        self._error: WhimbrelError | None = None
        self.flushes = 0
        self.reconnects = -1

    @property
    def error(self) -> WhimbrelError | None:
        """Why the shadow cannot be written now; None if it can, as far as is known."""
        return self._error

    @property
    def away_s(self) -> float | None:
        """For how long it cannot be written."""
        since = self._away_since
        return None if since is None else time.monotonic() - since

    def use(self, opener: Opener) -> None:
        """The same shadow is reached in another way from now on; the old connection is given up."""
        self._opener = opener
        self._interrupt()

    def give_up(self) -> None:
        """Nobody needs it any more: what is waited for ends, and nothing is sent from now on."""
        self._given_up = True
        self._interrupt()

    def stop(self) -> None:
        """Let who waits give up (Stopped), and close."""
        self._stop.set()
        self._interrupt()

    def apply(self, changes: Sequence[Change]) -> None:
        """Make the changes and wait until they are durable, however long it takes. Raises Stopped."""

        def attempt(lane: BlockLane) -> None:
            self._send(lane, changes)
            lane.flush()
            self.flushes += 1

        self._until_done(attempt)

    def flush(self) -> None:
        """Wait until all is durable. Raises Stopped."""
        self._until_done(lambda lane: lane.flush())

    def read(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer``. Raises Stopped."""
        self._until_done(lambda lane: _read(lane, self._block(), offset, buffer))

    def _until_done(self, attempt: Callable[[BlockLane], None]) -> None:
        while not self._given_up:
            try:
                attempt(self._connected())
            except WhimbrelError as error:
                self._failed(error)
            else:
                break
        self._failures = 0
        self._away_since = self._error = None

    def _connected(self) -> BlockLane:
        if self._stop.is_set():
            raise Stopped
        if self._lane is not None:
            return self._lane
        if self._failures:
            self._wake.wait(min(FIRST_PAUSE_S * 2.0 ** min(self._failures - 1, 16), LONGEST_PAUSE_S))
            self._wake.clear()
            if self._stop.is_set():
                raise Stopped
            if self._given_up:
                raise Unavailable("nobody needs the shadow any more")
        device = self._opener()
        try:
            if device.size_bytes != self._size_bytes:
                raise Conflict(
                    f"the shadow has {device.size_bytes} bytes, the disk {self._size_bytes}",
                    action="bring the overlay back that was made for this stream",
                )
            lane = device.lane()
        except BaseException:
            device.close()
            raise
        self._device, self._lane = device, lane
        self.reconnects += 1
        if isinstance(lane, NbdLane):
            lane.patience(SILENCE_S)
        if self._stop.is_set() or self._given_up:
            self._interrupt()
        return lane

    def _failed(self, error: WhimbrelError) -> None:
        device, self._device, self._lane = self._device, None, None
        if device is not None:
            device.close()
            self._stop.wait(SETTLE_S)
        self._failures += 1
        self._error = error
        self._away_since = self._away_since or time.monotonic()
        if self._stop.is_set():
            raise Stopped

    def _interrupt(self) -> None:
        self._wake.set()
        lane = self._lane
        if lane is not None:
            with contextlib.suppress(WhimbrelError, OSError):
                lane.close()

    def _block(self) -> int:
        return 1 if self._device is None else self._device.block_bytes

    def _send(self, lane: BlockLane, changes: Sequence[Change]) -> None:
        """All changes, in flight at once where they do not overlap; returns when all have been answered."""
        block = self._block()
        flying: dict[int, tuple[int, int]] = {}
        for change in changes:
            if not change.length:
                continue
            start, end = change.offset // block * block, -(-change.end // block) * block
            while flying and (
                len(flying) >= IN_FLIGHT or any(start < other[1] and other[0] < end for other in flying.values())
            ):
                flying.pop(lane.reap().cookie)
            if (start, end) != (change.offset, change.end):
                while flying:
                    flying.pop(lane.reap().cookie)
                cookie = self._widened(lane, change, start, end)
            elif change.data is None:
                cookie = lane.submit_zero(start, end - start, may_punch=change.may_punch)
            else:
                cookie = lane.submit_write(start, change.data)
            flying[cookie] = start, end
        while flying:
            flying.pop(lane.reap().cookie)

    @staticmethod
    def _widened(lane: BlockLane, change: Change, start: int, end: int) -> int:
        """A change that is not whole blocks of the shadow: the rest of the blocks is read first."""
        whole = memoryview(bytearray(end - start))
        lane.submit_read(start, whole)
        lane.reap()
        within = slice(change.offset - start, change.end - start)
        whole[within] = bytes(change.length) if change.data is None else change.data
        return lane.submit_write(start, whole)


def _read(lane: BlockLane, block: int, offset: int, buffer: memoryview) -> None:
    start, end = offset // block * block, -(-(offset + len(buffer)) // block) * block
    whole = memoryview(bytearray(end - start))
    lane.submit_read(start, whole)
    lane.reap()
    buffer[:] = whole[offset - start : offset - start + len(buffer)]


def opener_of(endpoint: ShadowEndpoint, timeout_s: float) -> Opener:
    """What opens a shadow."""

    def opened() -> BlockDevice:
        if isinstance(endpoint, NbdEndpoint):
            return open_nbd(endpoint, timeout_s=timeout_s)
        device = open_device(endpoint)
        if device.read_only:
            device.close()
            raise Unavailable("the shadow is read-only")
        return device

    return opened
