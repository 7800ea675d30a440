"""Disks that can lose what was not flushed, and the assertions that every test of the copier ends with."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

from whimbrel.dataplane import Manifest, MemoryDevice, MemoryDisk
from whimbrel.dataplane.digests import UNIT_BYTES, UNKNOWN, DiskDigest, unit_digests
from whimbrel.errors import Unavailable
from whimbrel.ports.block import Operation

UNIT = UNIT_BYTES


class VolatileDisk(MemoryDisk):
    """A target whose host may crash: what no flush covered then is, block by block, kept or lost."""

    def __init__(self, size_bytes: int, *, block_bytes: int = 1) -> None:
        super().__init__(size_bytes, tracked=False, block_bytes=block_bytes)
        self._durable: dict[int, bytes] = {}
        self.seen = 0
        self.hook_at = -1
        self.hook_on: frozenset[Operation] = frozenset(("write", "zero", "flush"))
        self.hook: Callable[[], None] | None = None

    def account(self, operation: Operation) -> None:
        self.seen += operation in self.hook_on
        time.sleep(0.0005)  # gives checkpoints a chance to happen between requests
        if operation in self.hook_on and self.seen == self.hook_at and self.hook is not None:
            self.hook()
            raise Unavailable("the process was killed")
        super().account(operation)
        if operation == "flush":
            with self.lock:
                self._durable = dict(self._blocks)

    def crash(self, rng: random.Random) -> None:
        with self.lock:
            for number in {*self._blocks, *self._durable}:
                if rng.random() < 0.5:
                    kept = self._durable.get(number)
                    if kept is None:
                        self._blocks.pop(number, None)
                    else:
                        self._blocks[number] = kept
            self._durable = dict(self._blocks)


def real_digests(disk: MemoryDisk, size_bytes: int) -> bytes:
    """The digests of a disk's first bytes, computed from them."""
    return unit_digests(memoryview(disk.read(0, size_bytes)))


def assert_truthful(manifest: Manifest, target: MemoryDisk) -> None:
    """Every digest the manifest knows is that of the target's bytes."""
    real = real_digests(target, manifest.size_bytes)
    for unit in range(manifest.unit_count):
        known = manifest.get(unit)
        assert known is None or known == real[unit * 16 : unit * 16 + 16], f"unit {unit}"


def assert_equal_and_known(source: MemoryDisk, target: MemoryDisk, manifest: Manifest) -> None:
    assert target.read(0, source.size_bytes) == source.read(0, source.size_bytes)
    digests = real_digests(source, source.size_bytes)
    known = b"".join(manifest.get(unit) or UNKNOWN for unit in range(manifest.unit_count))
    assert known == digests
    whole = DiskDigest(source.size_bytes)
    whole.add(digests)
    assert manifest.digest() == whole.hexdigest()


def kill(manifest: Manifest) -> None:
    """Leave the manifest as SIGKILL would: no method of it runs, the kernel closes the file."""
    fd, manifest._fd = manifest._fd, -1
    if fd >= 0:
        os.close(fd)


def reader(disk: MemoryDisk) -> MemoryDevice:
    return MemoryDevice(disk)


def writer(disk: MemoryDisk) -> MemoryDevice:
    return MemoryDevice(disk, writable=True)
