"""Whole reads and writes on endpoints, as plainly as the block port allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from whimbrel.dataplane.devices import open_device
from whimbrel.model.endpoint import Endpoint
from whimbrel.model.extent import Extent
from whimbrel.model.point import DiskPoint
from whimbrel.ports.block import BlockDevice

CHUNK = 1 << 20


@contextmanager
def opened(endpoint: Endpoint) -> Iterator[BlockDevice]:
    """The device behind an endpoint."""
    device = open_device(endpoint)
    try:
        yield device
    finally:
        device.close()


def read_device(device: BlockDevice, start: int = 0, length: int | None = None) -> bytes:
    """Bytes of a range, all by default."""
    length = device.size_bytes - start if length is None else length
    content = bytearray(length)
    view = memoryview(content)
    lane = device.lane()
    for offset in range(0, length, CHUNK):
        lane.submit_read(start + offset, view[offset : offset + CHUNK])
        lane.reap()
    lane.close()
    return bytes(content)


def write_device(device: BlockDevice, offset: int, data: bytes) -> None:
    """Write and flush."""
    lane = device.lane()
    lane.submit_write(offset, memoryview(data))
    lane.reap()
    lane.flush()
    lane.close()


def read_point(disk: DiskPoint) -> bytes:
    """All bytes of a disk of a point or writer session."""
    with opened(disk.endpoint) as device:
        assert device.size_bytes == disk.size_bytes
        return read_device(device)


def write_point(disk: DiskPoint, offset: int, data: bytes) -> None:
    """Write through a writer session, flushed."""
    with opened(disk.endpoint) as device:
        write_device(device, offset, data)


def zero_point(disk: DiskPoint, offset: int, length: int) -> None:
    """Zero a range through a writer session, flushed."""
    with opened(disk.endpoint) as device:
        lane = device.lane()
        lane.submit_zero(offset, length)
        lane.reap()
        lane.flush()
        lane.close()


def changed_of(disk: DiskPoint) -> list[Extent]:
    """What tracking says has changed."""
    with opened(disk.endpoint) as device:
        return list(device.changed())


def extents_of(disk: DiskPoint) -> list[Extent]:
    """The allocation of a disk."""
    with opened(disk.endpoint) as device:
        return list(device.extents())


def covers(extents: Sequence[Extent], offset: int, length: int) -> bool:
    """Whether every byte of the range lies in one of the extents."""
    at = offset
    for extent in extents:
        if extent.start <= at < extent.end:
            at = extent.end
    return at >= offset + length


def apply_changes(base: bytes, disk: DiskPoint) -> bytes:
    """``base`` with the changed extents of the point written over it: what a delta round makes of a target."""
    content = bytearray(base)
    with opened(disk.endpoint) as device:
        for extent in device.changed():
            data = bytes(extent.length) if extent.zero else read_device(device, extent.start, extent.length)
            content[extent.start : extent.end] = data
    return bytes(content)
