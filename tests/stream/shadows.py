"""A shadow with faults: its server loses what was not flushed when it dies, and dies when a test says so."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator

from tests.stream.lossy import LossyDisk
from whimbrel.dataplane.lanes import SyncLane
from whimbrel.errors import Unavailable
from whimbrel.model.extent import Extent
from whimbrel.ports.block import BlockLane


class ShadowServer:
    """``die`` is kill -9 of the shadow's QEMU: of what was not flushed, any subset of sectors is left."""

    def __init__(self, content: bytes, *, block_bytes: int = 1) -> None:
        self.disk = LossyDisk(content)
        self.block_bytes = block_bytes
        self.life = 0
        self.lock = threading.Lock()
        """An operation is made in one life or in none: who dies in between has not answered it."""
        self.operations = 0
        self.before: Callable[[int], None] = lambda _count: None
        """Called before each operation with its number; may raise, or kill."""

    def die(self, seed: int) -> None:
        with self.lock:
            self.life += 1
            self.disk = LossyDisk(self.disk.crash(random.Random(seed)))

    def open(self) -> ShadowDevice:
        return ShadowDevice(self)


class ShadowDevice:
    """A connection to one life of the server."""

    def __init__(self, server: ShadowServer) -> None:
        self._server = server
        self._life = server.life
        self.read_only = False

    @property
    def size_bytes(self) -> int:
        return len(self._server.disk.now)

    @property
    def block_bytes(self) -> int:
        return self._server.block_bytes

    def lane(self) -> BlockLane:
        return SyncLane(self)

    def extents(self, start: int = 0, length: int | None = None) -> Iterator[Extent]:
        with self._disk() as disk:
            return disk.extents(start, length)

    def changed(self, start: int = 0, length: int | None = None) -> Iterator[Extent]:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to give back."""

    @contextlib.contextmanager
    def _disk(self) -> Iterator[LossyDisk]:
        server = self._server
        server.operations += 1
        server.before(server.operations)
        with server.lock:
            if self._life != server.life:
                raise Unavailable("the shadow died")
            yield server.disk

    def _check(self, offset: int, length: int) -> None:
        assert not offset % self.block_bytes
        assert not length % self.block_bytes

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._check(offset, len(buffer))
        with self._disk() as disk:
            disk.read_into(offset, buffer)

    def write_from(self, offset: int, data: memoryview) -> None:
        self._check(offset, len(data))
        with self._disk() as disk:
            disk.write_from(offset, data)

    def zero(self, offset: int, length: int, *, may_punch: bool) -> None:
        self._check(offset, length)
        with self._disk() as disk:
            disk.zero(offset, length, may_punch=may_punch)

    def flush(self) -> None:
        with self._disk() as disk:
            disk.flush()
