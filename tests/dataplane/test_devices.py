"""File and memory devices behave as the port says; openers dispatch by kind."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.dataplane.disks import UNIT
from whimbrel.dataplane import FileDevice, MemoryDevice, MemoryDisk, open_device, register_opener
from whimbrel.dataplane.holes import zero_range
from whimbrel.dataplane.memorydevice import create_disk, find_disk, publish_disk, remove_disk
from whimbrel.errors import Conflict, NotFound, PermissionDenied, Unavailable, Unsupported
from whimbrel.model.endpoint import FileEndpoint, Frozen, MemoryEndpoint
from whimbrel.model.extent import Extent
from whimbrel.ports.block import BlockDevice, BlockLane


@pytest.fixture(params=["file", "memory"])
def device(request: pytest.FixtureRequest, tmp_path: Path) -> BlockDevice:
    size = 20 * UNIT + 100
    if request.param == "memory":
        return MemoryDevice(MemoryDisk(size), writable=True)
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(size)
    return FileDevice(path, writable=True)


def read(lane: BlockLane, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    cookie = lane.submit_read(offset, memoryview(buffer))
    assert lane.in_flight == 1
    done = lane.reap()
    assert (done.cookie, done.operation, done.offset, done.length) == (cookie, "read", offset, length)
    return bytes(buffer)


def test_what_is_written_is_read(device: BlockDevice) -> None:
    lane, other = device.lane(), device.lane()
    data = random.Random(1).randbytes(3 * UNIT)
    lane.submit_write(UNIT - 7, memoryview(data))
    assert lane.reap().operation == "write"
    lane.flush()
    assert read(other, UNIT - 7, len(data)) == data
    lane.submit_zero(UNIT, UNIT)
    assert lane.reap().operation == "zero"
    lane.submit_zero(2 * UNIT, 50, may_punch=False)
    lane.reap()
    expected = bytes(UNIT - 7) + data[:7] + bytes(UNIT + 50) + data[UNIT + 57 :]
    assert read(other, 0, len(expected)) == expected
    device.close()


def test_extents_cover_the_device_and_tell_data_from_zeros(device: BlockDevice) -> None:
    lane = device.lane()
    lane.submit_write(5 * UNIT, memoryview(b"x" * UNIT))
    lane.reap()
    extents = list(device.extents())
    assert extents[0] == Extent(0, 5 * UNIT, zero=True)
    assert extents[1] == Extent(5 * UNIT, UNIT)
    assert extents[-1].end == device.size_bytes
    assert list(device.extents(UNIT, 2 * UNIT)) == [Extent(UNIT, 2 * UNIT, zero=True)]
    assert list(device.extents(5 * UNIT + 4096, 4096)) == [Extent(5 * UNIT + 4096, 4096)]
    lane.submit_zero(5 * UNIT, UNIT)
    lane.reap()
    assert list(device.extents()) == [Extent(0, device.size_bytes, zero=True)]
    device.close()


def test_requests_outside_fail_in_reap(device: BlockDevice) -> None:
    lane = device.lane()
    lane.submit_write(device.size_bytes, memoryview(b"x"))
    with pytest.raises(Unavailable, match="outside"):
        lane.reap()
    lane.submit_read(device.size_bytes - 1, memoryview(bytearray(2)))
    with pytest.raises(Unavailable):
        lane.reap()
    with pytest.raises(ValueError, match="nothing"):
        lane.reap()
    device.close()


def test_closed_lane_refuses(device: BlockDevice) -> None:
    lane = device.lane()
    device.close()
    device.close()
    for act in (lane.reap, lane.flush, lambda: lane.submit_zero(0, 1)):
        with pytest.raises(Unavailable, match="closed"):
            act()


def test_read_only_file_refuses_writes_and_tracks_nothing(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"data")
    device = open_device(FileEndpoint(path=str(tmp_path / "disk")))
    assert device.read_only
    lane = device.lane()
    lane.submit_write(0, memoryview(b"x"))
    with pytest.raises(PermissionDenied, match="read-only"):
        lane.reap()
    lane.flush()
    with pytest.raises(Unsupported, match="track"):
        device.changed()
    device.close()


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        FileDevice(tmp_path / "none")
    with pytest.raises(Conflict, match="directory"):
        FileDevice(tmp_path, writable=True)


def test_file_that_shrank_is_unavailable(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(100))
    device = FileDevice(path)
    os.truncate(path, 10)
    lane = device.lane()
    lane.submit_read(0, memoryview(bytearray(100)))
    with pytest.raises(Unavailable, match="ends at 10"):
        lane.reap()
    device.close()


def test_zeroing_writes_zeros_where_the_file_system_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from whimbrel.dataplane import holes

    monkeypatch.setattr(holes, "_fallocate", lambda *args: False)
    path = tmp_path / "disk"
    path.write_bytes(b"x" * (3 << 20))
    with path.open("r+b") as file:
        zero_range(file.fileno(), 100, (2 << 20) + 5, may_punch=True)
    assert path.read_bytes() == b"x" * 100 + bytes((2 << 20) + 5) + b"x" * ((1 << 20) - 105)


def test_memory_registry() -> None:
    disk = create_disk("registry-test", 4 * UNIT)
    with pytest.raises(Conflict, match="already"):
        create_disk("registry-test", UNIT)
    assert publish_disk("registry-test", disk) is find_disk("registry-test")
    device = open_device(MemoryEndpoint(key="registry-test", writable=True))
    assert isinstance(device, MemoryDevice)
    remove_disk("registry-test")
    remove_disk("registry-test")
    with pytest.raises(NotFound, match="registry-test"):
        open_device(MemoryEndpoint(key="registry-test"))


def test_memory_tracks_changes_of_guest_and_lanes() -> None:
    disk = MemoryDisk(10 * UNIT)
    device = MemoryDevice(disk, writable=True)
    disk.write(UNIT + 5, b"guest")
    lane = device.lane()
    lane.submit_write(3 * UNIT, memoryview(b"lane"))
    lane.reap()
    disk.discard(4 * UNIT, UNIT)
    assert list(device.changed()) == [
        Extent(UNIT, UNIT),
        Extent(3 * UNIT, UNIT),
        Extent(4 * UNIT, UNIT, zero=True),
    ]
    assert disk.take_changed() == {1, 3, 4}
    assert list(device.changed()) == []
    with pytest.raises(Unsupported, match="track"):
        MemoryDevice(MemoryDisk(UNIT, tracked=False)).changed()


def test_memory_snapshot_is_a_point_in_time() -> None:
    disk = MemoryDisk(4 * UNIT)
    disk.write(0, b"before")
    point = disk.snapshot()
    disk.write(0, b"after!")
    assert point.read(0, 6) == b"before"
    assert point.changed == {0}


@pytest.mark.parametrize("operation", ["read", "write", "zero", "flush"])
def test_memory_fails_the_nth_request(operation: Literal["read", "write", "zero", "flush"]) -> None:
    disk = MemoryDisk(4 * UNIT)
    lane = MemoryDevice(disk, writable=True).lane()
    disk.fail_at(2, Unavailable("injected"), {operation})

    def once() -> None:
        if operation == "flush":
            lane.flush()
            return
        if operation == "read":
            lane.submit_read(0, memoryview(bytearray(1)))
        elif operation == "write":
            lane.submit_write(0, memoryview(b"1"))
        else:
            lane.submit_zero(0, 1)
        lane.reap()

    once()
    with pytest.raises(Unavailable, match="injected"):
        once()
    once()


def test_two_faults_happen_one_after_the_other() -> None:
    disk = MemoryDisk(UNIT)
    disk.fail_at(1, Unavailable("first"))
    disk.fail_at(1, Unavailable("second"))
    for words in ("first", "second"):
        with pytest.raises(Unavailable, match=words):
            disk.account("read")
    disk.account("read")


def test_memory_block_size_is_enforced() -> None:
    lane = MemoryDevice(MemoryDisk(4096 + 100, block_bytes=512)).lane()
    lane.submit_read(0, memoryview(bytearray(100)))
    with pytest.raises(Unavailable, match="512"):
        lane.reap()
    lane.submit_read(4096, memoryview(bytearray(100)))
    assert lane.reap().length == 100


@given(acts=st.lists(st.tuples(st.integers(0, 5 * UNIT - 1), st.integers(0, 2 * UNIT), st.booleans()), max_size=10))
def test_memory_is_a_byte_array(acts: list[tuple[int, int, bool]]) -> None:
    disk, model, rng = MemoryDisk(5 * UNIT), bytearray(5 * UNIT), random.Random(3)
    for offset, wanted, zero in acts:
        length = min(wanted, 5 * UNIT - offset)
        data = bytes(length) if zero else rng.randbytes(length)
        model[offset : offset + length] = data
        if zero:
            disk.discard(offset, length)
        else:
            disk.write(offset, data)
    assert disk.read(0, 5 * UNIT) == model
    assert disk.allocated() == [unit for unit in range(5) if any(model[unit * UNIT : unit * UNIT + UNIT])]


def test_later_drivers_register_their_kind(tmp_path: Path) -> None:
    class OddEndpoint(Frozen):
        kind: Literal["odd"] = "odd"

    with pytest.raises(Unsupported, match="odd"):
        open_device(OddEndpoint())
    made = MemoryDevice(MemoryDisk(UNIT))
    register_opener("odd", lambda endpoint: made)
    assert open_device(OddEndpoint()) is made
