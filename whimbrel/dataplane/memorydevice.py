"""Disks that live in this process, for the in-memory cloud and for tests: sparse, tracked, able to fail on demand."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator

from whimbrel.dataplane.lanes import SyncLane
from whimbrel.errors import Conflict, NotFound, PermissionDenied, Unavailable, Unsupported, WhimbrelError
from whimbrel.model.extent import Extent, merge
from whimbrel.ports.block import BlockLane, Operation

BLOCK = 65536
_ZERO_BLOCK = bytes(BLOCK)
_ANY: frozenset[Operation] = frozenset(("read", "write", "zero", "flush"))
_disks: dict[str, MemoryDisk] = {}
_disks_lock = threading.Lock()


class MemoryDisk:
    """The content of one disk: blocks of 64 KiB, a missing one is zeros. Thread-safe.

    ``changed`` holds the numbers of the blocks written since tracking began (None: no tracking), by whatever writes:
    the guest's ``write`` or a lane.
    """

    def __init__(self, size_bytes: int, *, tracked: bool = True, block_bytes: int = 1) -> None:
        self.size_bytes = size_bytes
        self.block_bytes = block_bytes
        self.changed: set[int] | None = set() if tracked else None
        self.requests = 0
        self.lock = threading.RLock()
        self._blocks: dict[int, bytes] = {}
        self._faults: list[tuple[int, frozenset[Operation], WhimbrelError]] = []

    def read(self, offset: int, length: int) -> bytes:
        """The bytes of a range."""
        buffer = bytearray(length)
        self.read_to(offset, memoryview(buffer))
        return bytes(buffer)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write as the guest does."""
        view = memoryview(data)
        self._check_range(offset, len(view))
        with self.lock:
            while view:
                number, at = divmod(offset, BLOCK)
                part = view[: BLOCK - at]
                old = self._blocks.get(number, _ZERO_BLOCK)
                new = old[:at] + bytes(part) + old[at + len(part) :] if len(part) < BLOCK else bytes(part)
                self._store(number, new)
                offset += len(part)
                view = view[len(part) :]

    def discard(self, offset: int, length: int) -> None:
        """Make a range zeros; whole blocks of it become unallocated."""
        self._check_range(offset, length)
        with self.lock:
            while length > 0:
                number, at = divmod(offset, BLOCK)
                part = min(BLOCK - at, length)
                old = self._blocks.get(number)
                if old is not None:
                    self._store(number, old[:at] + bytes(part) + old[at + part :])
                elif self.changed is not None:
                    self.changed.add(number)
                offset += part
                length -= part

    def read_to(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset``."""
        self._check_range(offset, len(buffer))
        with self.lock:
            done = 0
            while done < len(buffer):
                number, at = divmod(offset + done, BLOCK)
                part = min(BLOCK - at, len(buffer) - done)
                buffer[done : done + part] = self._blocks.get(number, _ZERO_BLOCK)[at : at + part]
                done += part

    def snapshot(self) -> MemoryDisk:
        """A point in time: a copy that shares the blocks, with the change set of this moment and no faults."""
        with self.lock:
            copy = MemoryDisk(self.size_bytes, tracked=self.changed is not None, block_bytes=self.block_bytes)
            copy._blocks = dict(self._blocks)
            copy.changed = None if self.changed is None else set(self.changed)
            return copy

    def take_changed(self) -> set[int]:
        """Block numbers written since the last call, and begin a new set; raises Unsupported without tracking."""
        with self.lock:
            if self.changed is None:
                raise Unsupported("this memory disk does not track changes")
            taken, self.changed = self.changed, set()
            return taken

    def allocated(self) -> list[int]:
        """Numbers of the blocks that are not zeros, in order."""
        with self.lock:
            return sorted(self._blocks)

    def fail_at(self, nth: int, error: WhimbrelError, operations: Collection[Operation] = _ANY) -> None:
        """Let the ``nth`` request from now on (1: the next) of these operations, over all lanes, fail."""
        with self.lock:
            self._faults.append((nth, frozenset(operations), error))

    def heal(self) -> None:
        """Take back all faults that did not happen yet."""
        with self.lock:
            self._faults.clear()

    def account(self, operation: Operation) -> None:
        """Count a request, and raise the fault that is due."""
        with self.lock:
            self.requests += 1
            left, due = [], None
            for nth, operations, error in self._faults:
                if operation not in operations:
                    left.append((nth, operations, error))
                elif nth > 1 or due is not None:
                    left.append((max(nth - 1, 1), operations, error))
                else:
                    due = error
            self._faults = left
        if due is not None:
            raise due

    def _store(self, number: int, block: bytes) -> None:
        if block == _ZERO_BLOCK:
            self._blocks.pop(number, None)
        else:
            self._blocks[number] = block
        if self.changed is not None:
            self.changed.add(number)

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or offset + length > self.size_bytes:
            raise Unavailable(f"{length} bytes at {offset} are outside a memory disk of {self.size_bytes} bytes")


def create_disk(key: str, size_bytes: int, *, tracked: bool = True) -> MemoryDisk:
    """Register a new disk; raises Conflict if the key is taken."""
    return publish_disk(key, MemoryDisk(size_bytes, tracked=tracked))


def publish_disk(key: str, disk: MemoryDisk) -> MemoryDisk:
    """Register a disk (for instance a snapshot) under a key; raises Conflict if another disk has it."""
    with _disks_lock:
        if _disks.get(key, disk) is not disk:
            raise Conflict(f"there is a memory disk {key} already")
        _disks[key] = disk
        return disk


def find_disk(key: str) -> MemoryDisk:
    """The registered disk; raises NotFound."""
    with _disks_lock:
        if key not in _disks:
            raise NotFound(f"there is no memory disk {key} in this process")
        return _disks[key]


def remove_disk(key: str) -> None:
    """Forget a disk; removing one that is not there is no error."""
    with _disks_lock:
        _disks.pop(key, None)


class MemoryDevice:
    """Implements whimbrel.ports.block.BlockDevice over a MemoryDisk."""

    def __init__(self, disk: MemoryDisk, *, writable: bool = False) -> None:
        self.disk = disk
        self._read_only = not writable
        self._lanes: list[SyncLane] = []

    @property
    def size_bytes(self) -> int:
        """Length of the disk."""
        return self.disk.size_bytes

    @property
    def read_only(self) -> bool:
        """Whether writes are refused."""
        return self._read_only

    @property
    def block_bytes(self) -> int:
        """Requests must be multiples of this, except where the disk ends."""
        return self.disk.block_bytes

    def lane(self) -> BlockLane:
        """See BlockDevice."""
        lane = SyncLane(self)
        self._lanes.append(lane)
        return lane

    def extents(self, start: int = 0, length: int | None = None) -> Iterator[Extent]:
        """See BlockDevice; zero where the 64 KiB blocks are zeros."""
        end = self._end(start, length)
        return merge(self._clip(self._allocation(), start, end))

    def changed(self, start: int = 0, length: int | None = None) -> Iterator[Extent]:
        """See BlockDevice."""
        with self.disk.lock:
            if self.disk.changed is None:
                raise Unsupported("this memory disk does not track changes", action="use the block-hash scan")
            numbers = sorted(self.disk.changed)
            data = set(self.disk.allocated())
        runs = (Extent(number * BLOCK, BLOCK, zero=number not in data) for number in numbers)
        return merge(self._clip(runs, start, self._end(start, length)))

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """One read request."""
        self._check(offset, len(buffer))
        self.disk.account("read")
        self.disk.read_to(offset, buffer)

    def write_from(self, offset: int, data: memoryview) -> None:
        """One write request."""
        self._check(offset, len(data), write=True)
        self.disk.account("write")
        self.disk.write(offset, data)

    def zero(self, offset: int, length: int, *, may_punch: bool) -> None:
        """One request to zero."""
        self._check(offset, length, write=True)
        self.disk.account("zero")
        self.disk.discard(offset, length)

    def flush(self) -> None:
        """One flush; memory is as durable as it gets."""
        self.disk.account("flush")

    def close(self) -> None:
        """Close all lanes; the disk stays."""
        for lane in self._lanes:
            lane.close()

    def _allocation(self) -> Iterator[Extent]:
        at = 0
        for number in self.disk.allocated():
            yield Extent(at, number * BLOCK - at, zero=True)
            yield Extent(number * BLOCK, BLOCK)
            at = (number + 1) * BLOCK
        if at < self.size_bytes:
            yield Extent(at, self.size_bytes - at, zero=True)

    def _end(self, start: int, length: int | None) -> int:
        return self.size_bytes if length is None else min(start + length, self.size_bytes)

    @staticmethod
    def _clip(extents: Iterator[Extent], start: int, end: int) -> Iterator[Extent]:
        for extent in extents:
            first, stop = max(extent.start, start), min(extent.end, end)
            if stop > first:
                yield Extent(first, stop - first, extent.zero)

    def _check(self, offset: int, length: int, *, write: bool = False) -> None:
        if write and self._read_only:
            raise PermissionDenied("this memory disk was opened read-only")
        unit = self.block_bytes
        if offset % unit or (length % unit and offset + length != self.size_bytes):
            raise Unavailable(f"a request of {length} bytes at {offset} does not fit blocks of {unit} bytes")
