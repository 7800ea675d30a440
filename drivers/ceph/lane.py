"""A lane over librbd's asynchronous calls: completions arrive in librbd's threads and are reaped in the caller's."""

from __future__ import annotations

import queue
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from drivers.ceph import binding
from drivers.ceph.errors import from_errno, translated
from whimbrel.errors import PermissionDenied, Unavailable
from whimbrel.ports.block import Completion, Operation

STALLED_S = 90.0
"""Longer than the cluster's own limit on one operation (``cluster.SETTINGS``)."""


class LaneImage(Protocol):
    """The device as its lanes see it."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def size_bytes(self) -> int:
        """Length."""
        ...

    @property
    def read_only(self) -> bool:
        """Whether writes are refused."""
        ...

    def using(self) -> AbstractContextManager[Any]:
        """The open image, kept open inside the ``with``. Raises Unavailable once the device is closed."""
        ...


class RbdLane:
    """Implements whimbrel.ports.block.BlockLane."""

    def __init__(self, device: LaneImage) -> None:
        self._device = device
        self._flying: dict[int, tuple[Completion, memoryview | None]] = {}
        self._done: queue.SimpleQueue[tuple[int, int, bytes | None] | None] = queue.SimpleQueue()
        self._cookie = 0
        self._closed = False

    @property
    def in_flight(self) -> int:
        """Requests submitted and not yet reaped."""
        return len(self._flying)

    def submit_read(self, offset: int, buffer: memoryview) -> int:
        """See BlockLane."""
        cookie = self._begin("read", offset, len(buffer), buffer)

        def done(completion: Any, data: bytes | None) -> None:
            self._done.put((cookie, completion.get_return_value(), data))

        return self._submit(cookie, lambda image: image.aio_read(offset, len(buffer), done))

    def submit_write(self, offset: int, data: memoryview) -> int:
        """See BlockLane."""
        self._check_write()
        cookie = self._begin("write", offset, len(data))
        content = bytes(data)
        return self._submit(cookie, lambda image: image.aio_write(content, offset, self._told(cookie)))

    def submit_zero(self, offset: int, length: int, *, may_punch: bool = True) -> int:
        """See BlockLane. Not by discard: librbd leaves data in discards finer than its granularity."""
        self._check_write()
        cookie = self._begin("zero", offset, length)
        flags = 0 if may_punch else binding.load().rbd.RBD_WRITE_ZEROES_FLAG_THICK_PROVISION
        return self._submit(cookie, lambda image: image.aio_write_zeroes(offset, length, self._told(cookie), flags))

    def reap(self) -> Completion:
        """See BlockLane; raises ValueError if nothing is in flight."""
        self._check_open()
        if not self._flying:
            raise ValueError("nothing is in flight")
        cookie, code, data = self._next()
        done, buffer = self._flying.pop(cookie)
        if code < 0:
            raise from_errno(code, f"{done.operation} of {done.length} bytes at {done.offset} of {self._device.name}")
        if buffer is not None:
            if data is None or len(data) != len(buffer):
                got = len(data or b"")
                raise Unavailable(f"{self._device.name} gave {got} of {len(buffer)} bytes at {done.offset}")
            buffer[:] = data
        return done

    def flush(self) -> None:
        """See BlockLane."""
        self._check_open()
        if self._device.read_only:
            return
        cookie = self._begin("flush", 0, 0)
        self._submit(cookie, lambda image: image.aio_flush(self._told(cookie)))
        while self.reap().cookie != cookie:
            pass

    def close(self) -> None:
        """See BlockLane; a reap that waits in another thread ends with Unavailable."""
        self._closed = True
        self._done.put(None)

    def _begin(self, operation: Operation, offset: int, length: int, buffer: memoryview | None = None) -> int:
        self._check_open()
        if offset < 0 or offset + length > self._device.size_bytes:
            size = self._device.size_bytes
            raise ValueError(f"{length} bytes at {offset} are outside {self._device.name} of {size} bytes")
        self._cookie += 1
        self._flying[self._cookie] = (Completion(self._cookie, operation, offset, length), buffer)
        return self._cookie

    def _submit(self, cookie: int, call: Callable[[Any], Any]) -> int:
        try:
            with self._device.using() as image, translated(f"asking {self._device.name}"):
                call(image)
        except BaseException:
            del self._flying[cookie]
            raise
        return cookie

    def _told(self, cookie: int) -> Callable[[Any], None]:
        return lambda completion: self._done.put((cookie, completion.get_return_value(), None))

    def _next(self) -> tuple[int, int, bytes | None]:
        try:
            told = self._done.get(timeout=STALLED_S)
        except queue.Empty:
            raise Unavailable(
                f"{self._device.name} has not answered for {STALLED_S:.0f} s",
                action="look at `ceph -s`: a full or degraded cluster holds requests back",
            ) from None
        if told is None:
            self._done.put(None)
            raise Unavailable("the lane was closed")
        return told

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the lane was closed")

    def _check_write(self) -> None:
        if self._device.read_only:
            raise PermissionDenied(f"{self._device.name} was opened read-only")
