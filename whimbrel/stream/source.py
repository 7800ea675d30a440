"""The source, which may go away and come back: whoever needs it waits, and nobody is given an error for that.

With ``fail_after_s`` the waiting ends: once the source has been away that long, ``lost`` is called with the error after
every attempt that fails, so a request that comes later waits for one more attempt. It goes on being tried.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from whimbrel.errors import Conflict, Unavailable, WhimbrelError
from whimbrel.model.extent import Extent
from whimbrel.ports.block import BlockDevice, BlockLane

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0


class Stopped(Exception):
    """The server ends; give up waiting."""


class Source:
    """Thread-safe. The device is opened when it is first needed, and again after a failure."""

    def __init__(
        self,
        opener: Callable[[], BlockDevice],
        size_bytes: int,
        *,
        fail_after_s: float | None = None,
        lost: Callable[[WhimbrelError], None] = lambda _error: None,
    ) -> None:
        self._opener = opener
        self._size_bytes = size_bytes
        self._fail_after_s = fail_after_s
        self._lost = lost
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._device: BlockDevice | None = None
        self._stop = threading.Event()
        self._failures = 0
        self._away_since: float | None = None
        self._error: WhimbrelError | None = None

    @property
    def error(self) -> WhimbrelError | None:
        """Why the source cannot be read now; None if it can, as far as is known."""
        return self._error

    @property
    def away_s(self) -> float | None:
        """For how long it cannot be read."""
        since = self._away_since
        return None if since is None else time.monotonic() - since

    def on_lost(self, lost: Callable[[WhimbrelError], None]) -> None:
        """Who is told when ``fail_after_s`` is over."""
        self._lost = lost

    def use(self, opener: Callable[[], BlockDevice]) -> None:
        """The same disk is reached in another way from now on; the old connections are given up."""
        with self._lock:
            self._opener = opener
            self._failures = 0
            device, self._device = self._device, None
        if device is not None:
            device.close()

    def lane(self) -> tuple[BlockLane, BlockDevice]:
        """A connection, and the device it belongs to, for ``failed``. Waits while there is none. Raises Stopped."""
        while True:
            self._pause()
            device: BlockDevice | None = None
            try:
                device = self._open()
                return device.lane(), device
            except WhimbrelError as error:
                self.failed(device, error)

    def extents(self, start: int) -> Iterator[Extent]:
        """The allocation from ``start`` on. Waits for the source to open. Raises Stopped, and WhimbrelError later."""
        while True:
            self._pause()
            device: BlockDevice | None = None
            try:
                device = self._open()
                break
            except WhimbrelError as error:
                self.failed(device, error)
        try:
            yield from device.extents(start)
        except WhimbrelError as error:
            self.failed(device, error)
            raise

    def worked(self) -> None:
        """A request was answered."""
        if self._failures or self._away_since is not None:
            with self._lock:
                self._failures = 0
                self._away_since = None
                self._error = None

    def failed(self, device: BlockDevice | None, error: WhimbrelError) -> None:
        """A request failed: all connections are made anew, after a pause that grows. Raises Stopped."""
        if self._stop.is_set():
            raise Stopped
        with self._lock:
            if device is not None and device is not self._device:
                return  # somebody else has reported this device already
            self._device = None
            self._failures += 1
            self._error = error
            self._away_since = self._away_since or time.monotonic()
            too_long = self._fail_after_s is not None and time.monotonic() - self._away_since >= self._fail_after_s
        if device is not None:
            device.close()
        if too_long:
            self._lost(error)

    def stop(self) -> None:
        """Let everybody who waits give up, and close the connections."""
        self._stop.set()
        with self._lock:
            device, self._device = self._device, None
        if device is not None:
            device.close()

    def _pause(self) -> None:
        failures = self._failures
        if failures and self._stop.wait(min(FIRST_PAUSE_S * 2.0 ** min(failures - 1, 16), LONGEST_PAUSE_S)):
            raise Stopped
        if self._stop.is_set():
            raise Stopped

    def _open(self) -> BlockDevice:
        with self._opening:
            if self._device is not None:
                return self._device
            device = self._opener()
            if device.size_bytes != self._size_bytes:
                device.close()
                raise Conflict(
                    f"the source has {device.size_bytes} bytes, the target {self._size_bytes}",
                    action="bring the right source back: this is not the disk that the stream began with",
                )
            with self._lock:
                if self._stop.is_set():
                    device.close()
                    raise Unavailable("the stream ends")
                self._device = device
            return device
