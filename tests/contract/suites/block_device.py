"""BlockDevice and BlockLane, line by line."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.contract.blockio import read_device, write_device
from whimbrel.errors import Unsupported, WhimbrelError
from whimbrel.model.extent import Extent
from whimbrel.ports.block import BlockDevice, BlockLane, Completion

GRAIN = 64 * 1024
SIZE = 2 << 20
Make = Callable[..., BlockDevice]


def drain(lane: BlockLane) -> list[Completion]:
    """Reap all that is in flight."""
    done = []
    while lane.in_flight:
        done.append(lane.reap())
    return done


def read_once(lane: BlockLane) -> Completion:
    """One grain, read from the start."""
    lane.submit_read(0, memoryview(bytearray(GRAIN)))
    return lane.reap()


def zero_once(device: BlockDevice) -> None:
    """One grain, zeroed at the start."""
    lane = device.lane()
    lane.submit_zero(0, GRAIN)
    lane.reap()


class BlockDeviceContract:
    """A device's test derives from this and overrides ``make``."""

    @pytest.fixture
    def make(self) -> Iterator[Make]:
        """Return ``make(content=None, writable=True)``: the disk, given ``content`` first unless None, opened anew.

        Devices that are still open when the test ends are closed by the fixture.
        """
        raise NotImplementedError("a device's test must override the make fixture")

    def test_size_and_mode(self, make: Make) -> None:
        device = make(bytes(SIZE))
        assert (device.size_bytes, device.read_only) == (SIZE, False)
        assert GRAIN % device.block_bytes == 0
        device.close()
        assert make(writable=False).read_only

    def test_reads_what_is_there(self, make: Make) -> None:
        content = random.Random(1).randbytes(SIZE)
        assert read_device(make(content, writable=False)) == content

    def test_completions_name_their_requests(self, make: Make) -> None:
        lane = make(bytes(SIZE)).lane()
        buffer = bytearray(GRAIN)
        asked = {
            lane.submit_read(3 * GRAIN, memoryview(buffer)): ("read", 3 * GRAIN, GRAIN),
            lane.submit_write(5 * GRAIN, memoryview(b"w" * GRAIN)): ("write", 5 * GRAIN, GRAIN),
            lane.submit_zero(7 * GRAIN, 2 * GRAIN): ("zero", 7 * GRAIN, 2 * GRAIN),
        }
        assert len(asked) == lane.in_flight == 3
        told = {done.cookie: (done.operation, done.offset, done.length) for done in drain(lane)}
        assert told == asked
        assert lane.in_flight == 0

    def test_many_requests_at_once(self, make: Make) -> None:
        content = random.Random(2).randbytes(SIZE)
        lane = make(content).lane()
        buffers = {offset: bytearray(GRAIN) for offset in range(0, SIZE, GRAIN)}
        cookies = [lane.submit_read(offset, memoryview(buffer)) for offset, buffer in buffers.items()]
        assert sorted(done.cookie for done in drain(lane)) == sorted(cookies)
        assert b"".join(buffers.values()) == content

    def test_random_writes_and_zeros_equal_a_model(self, make: Make) -> None:
        chance = random.Random(3)
        model = bytearray(chance.randbytes(SIZE))
        device = make(bytes(model))
        lane = device.lane()
        unit = device.block_bytes
        for _ in range(60):
            length = chance.choice([unit, 7 * unit, GRAIN - unit, GRAIN, 3 * GRAIN])
            offset = chance.randrange((SIZE - length) // unit) * unit
            if chance.random() < 0.5:
                data = bytes(length) if chance.random() < 0.2 else chance.randbytes(length)
                lane.submit_write(offset, memoryview(data))
            else:
                data = bytes(length)
                lane.submit_zero(offset, length, may_punch=chance.random() < 0.5)
            drain(lane)
            model[offset : offset + length] = data
        lane.flush()
        assert read_device(device) == model
        device.close()
        assert read_device(make(writable=False)) == model

    def test_lanes_show_each_others_flushed_writes(self, make: Make) -> None:
        device = make(bytes(SIZE))
        writer, reader = device.lane(), device.lane()
        writer.submit_write(GRAIN, memoryview(b"seen by the other lane".ljust(512)))
        drain(writer)
        writer.flush()
        buffer = bytearray(512)
        reader.submit_read(GRAIN, memoryview(buffer))
        drain(reader)
        assert buffer.rstrip() == b"seen by the other lane"

    def test_lanes_work_in_threads_of_their_own(self, make: Make) -> None:
        device = make(bytes(SIZE))
        errors: list[BaseException] = []

        def work(number: int) -> None:
            try:
                lane = device.lane()
                for offset in range(number * GRAIN, SIZE, 4 * GRAIN):
                    lane.submit_write(offset, memoryview(bytes([number + 1]) * GRAIN))
                drain(lane)
                lane.flush()
                lane.close()
            except BaseException as error:  # told by the assert below
                errors.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert read_device(device) == b"".join(bytes([number % 4 + 1]) * GRAIN for number in range(SIZE // GRAIN))

    @pytest.mark.parametrize("may_punch", [True, False])
    def test_zeroed_ranges_read_as_zeros(self, make: Make, may_punch: bool) -> None:
        device = make(b"\xff" * SIZE)
        lane = device.lane()
        lane.submit_zero(GRAIN, 5 * GRAIN, may_punch=may_punch)
        drain(lane)
        lane.flush()
        assert read_device(device) == b"\xff" * GRAIN + bytes(5 * GRAIN) + b"\xff" * (SIZE - 6 * GRAIN)

    @pytest.mark.parametrize(("start", "length"), [(0, None), (GRAIN, 9 * GRAIN), (SIZE - GRAIN, None), (0, GRAIN)])
    def test_extents_cover_the_range_without_gap(self, make: Make, start: int, length: int | None) -> None:
        content = bytearray(SIZE)
        for offset in (0, 4 * GRAIN, 5 * GRAIN, SIZE - GRAIN):
            content[offset : offset + GRAIN] = b"d" * GRAIN
        extents = list(make(bytes(content)).extents(start, length))
        end = SIZE if length is None else start + length
        assert [start, *(extent.end for extent in extents)] == [*(extent.start for extent in extents), end]
        assert all(not any(content[extent.start : extent.end]) for extent in extents if extent.zero)

    def test_a_disk_never_written_is_known_zeros(self, make: Make) -> None:
        assert list(make(bytes(SIZE)).extents()) == [Extent(0, SIZE, zero=True)]

    def test_changes_without_tracking_are_unsupported(self, make: Make) -> None:
        with pytest.raises(Unsupported):
            list(make(bytes(SIZE)).changed())

    def test_a_read_only_device_is_not_written(self, make: Make) -> None:
        content = random.Random(4).randbytes(SIZE)
        make(content).close()
        device = make(writable=False)
        with pytest.raises(WhimbrelError) as raised:
            write_device(device, 0, b"x" * GRAIN)
        assert not raised.value.retryable
        with pytest.raises(WhimbrelError):
            zero_once(device)
        assert read_device(make(writable=False)) == content

    @pytest.mark.parametrize("offset", [SIZE, SIZE - GRAIN])
    def test_requests_past_the_end_fail(self, make: Make, offset: int) -> None:
        content = random.Random(5).randbytes(SIZE)
        device = make(content)
        with pytest.raises((WhimbrelError, ValueError)):
            write_device(device, offset, b"x" * 2 * GRAIN)
        device.close()
        again = make(writable=False)
        assert again.size_bytes == SIZE
        assert read_device(again, 0, SIZE - GRAIN) == content[: SIZE - GRAIN]

    def test_closing_twice_is_fine_and_ends_all(self, make: Make) -> None:
        device = make(bytes(SIZE))
        lane, other = device.lane(), device.lane()
        lane.close()
        lane.close()
        with pytest.raises(WhimbrelError):
            read_once(lane)
        assert read_once(other).length == GRAIN
        device.close()
        device.close()
        with pytest.raises(WhimbrelError):
            read_once(other)
