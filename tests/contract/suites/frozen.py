"""VolumePort: an earlier instant of a writer session is read while the session goes on."""

from __future__ import annotations

import random
import struct
import threading

import pytest

from tests.contract.blockio import extents_of, opened, read_device, read_point, write_device, write_point, zero_point
from tests.contract.harness import Harness
from tests.contract.suites.suite import GRAIN, MIB, SIZE, ContractSuite
from whimbrel.errors import Conflict, NotFound, WhimbrelError
from whimbrel.model.naming import frozen_key, writer_key
from whimbrel.model.point import WriterSession
from whimbrel.model.vm import VolumeRef

DRILL = "d411d411d4"
OTHER = "0123456789"


class FrozenWriterContract(ContractSuite):
    """``freeze_writer`` and ``thaw_writer``."""

    def _session(
        self, harness: Harness, migration: str, *, disks: tuple[str, ...] = ("vda",)
    ) -> tuple[dict[str, VolumeRef], WriterSession]:
        volumes = {disk: self.volume(harness, migration, disk) for disk in disks}
        return volumes, harness.cloud.volumes.open_writer(writer_key(migration), volumes, migration=migration)

    def test_the_frozen_state_stays_while_the_session_goes_on(self, harness: Harness, migration: str) -> None:
        numbers = random.Random(7)
        volumes, session = self._session(harness, migration)
        before = bytearray(SIZE)
        before[GRAIN : GRAIN + MIB] = numbers.randbytes(MIB)
        write_point(session.disk("vda"), GRAIN, bytes(before[GRAIN : GRAIN + MIB]))
        after = bytearray(before)
        with opened(session.disk("vda").endpoint) as copying:
            key = frozen_key(migration, DRILL)
            point = harness.cloud.volumes.freeze_writer(writer_key(migration), key, migration=migration)
            assert [disk.size_bytes for disk in point.disks] == [SIZE]
            for _ in range(20):
                start, length = numbers.randrange(0, SIZE - 70_000), numbers.randrange(1, 70_000)
                after[start : start + length] = numbers.randbytes(length)
                write_device(copying, start, bytes(after[start : start + length]))
                assert read_device(copying, start, length) == after[start : start + length]
            assert read_point(point.disk("vda")) == before
            zero_point(session.disk("vda"), 2 * GRAIN, 4 * GRAIN)
            after[2 * GRAIN : 6 * GRAIN] = bytes(4 * GRAIN)
            assert read_point(point.disk("vda")) == before
            harness.cloud.volumes.thaw_writer(writer_key(migration), key)
            write_device(copying, 0, b"the same connection")
            after[:19] = b"the same connection"
        assert read_point(session.disk("vda")) == after
        harness.cloud.volumes.close_writer(writer_key(migration))
        assert harness.read_volume(volumes["vda"]) == after

    def test_what_was_never_written_is_a_hole(self, harness: Harness, migration: str) -> None:
        _, session = self._session(harness, migration)
        write_point(session.disk("vda"), 0, b"\x55" * GRAIN)
        key = frozen_key(migration, DRILL)
        point = harness.cloud.volumes.freeze_writer(writer_key(migration), key, migration=migration)
        write_point(session.disk("vda"), MIB, b"\x66" * GRAIN)
        data = [extent for extent in extents_of(point.disk("vda")) if not extent.zero]
        assert sum(extent.length for extent in data) <= 2 * GRAIN

    def test_all_volumes_are_frozen_at_one_instant(self, harness: Harness, migration: str) -> None:
        """A writer counts in one volume, then in the other: at no instant is the second ahead, or far behind."""
        _, session = self._session(harness, migration, disks=("vda", "vdb"))
        stop, counted = threading.Event(), threading.Event()

        def count() -> None:
            with opened(session.disk("vda").endpoint) as first, opened(session.disk("vdb").endpoint) as second:
                number = 0
                while not stop.is_set():
                    number += 1
                    for device in (first, second):
                        write_device(device, GRAIN, struct.pack(">Q", number))
                    if number > 5:
                        counted.set()

        writing = threading.Thread(target=count)
        writing.start()
        try:
            assert counted.wait(30)
            for turn in range(5):
                key = frozen_key(migration, f"{turn:010d}")
                point = harness.cloud.volumes.freeze_writer(writer_key(migration), key, migration=migration)
                seen = [
                    struct.unpack(">Q", read_point(point.disk(disk))[GRAIN : GRAIN + 8])[0] for disk in ("vda", "vdb")
                ]
                assert seen[0] > 5
                assert seen[0] - seen[1] in {0, 1}, seen
                harness.cloud.volumes.thaw_writer(writer_key(migration), key)
        finally:
            stop.set()
            writing.join(30)
        assert not writing.is_alive()

    def test_the_same_call_is_the_same_point(self, harness: Harness, migration: str) -> None:
        _, session = self._session(harness, migration, disks=("vda", "vdb"))
        key = frozen_key(migration, DRILL)
        first = harness.cloud.volumes.freeze_writer(writer_key(migration), key, migration=migration)
        write_point(session.disk("vdb"), 0, b"later")
        harness.cloud.close()
        fresh = harness.fresh_cloud()
        again = fresh.volumes.freeze_writer(writer_key(migration), key, migration=migration)
        assert again == first
        assert read_point(again.disk("vdb")) == bytes(SIZE)
        volumes = {disk: self.volume(harness, migration, disk) for disk in ("vda", "vdb")}
        adopted = fresh.volumes.open_writer(writer_key(migration), volumes, migration=migration)
        assert adopted == session
        assert read_point(adopted.disk("vdb"))[:5] == b"later"

    def test_one_point_at_a_time(self, harness: Harness, migration: str) -> None:
        self._session(harness, migration)
        key = frozen_key(migration, DRILL)
        point = harness.cloud.volumes.freeze_writer(writer_key(migration), key, migration=migration)
        with pytest.raises(Conflict):
            harness.cloud.volumes.freeze_writer(
                writer_key(migration), frozen_key(migration, OTHER), migration=migration
            )
        harness.cloud.volumes.thaw_writer(writer_key(migration), frozen_key(migration, OTHER))
        assert read_point(point.disk("vda")) == bytes(SIZE)

    def test_what_cannot_be_frozen(self, harness: Harness, migration: str) -> None:
        key = frozen_key(migration, DRILL)
        with pytest.raises(NotFound):
            harness.cloud.volumes.freeze_writer(writer_key(migration), key, migration=migration)
        self._session(harness, migration)
        with pytest.raises(Conflict):
            harness.cloud.volumes.freeze_writer(writer_key(migration), key, migration=OTHER)

    def test_a_frozen_point_is_not_written(self, harness: Harness, migration: str) -> None:
        self._session(harness, migration)
        key = frozen_key(migration, DRILL)
        point = harness.cloud.volumes.freeze_writer(writer_key(migration), key, migration=migration)
        with pytest.raises(WhimbrelError), opened(point.disk("vda").endpoint) as device:
            write_device(device, 0, b"no")
        assert read_point(point.disk("vda")) == bytes(SIZE)

    def test_thawing_leaves_nothing_and_ends_reading(self, harness: Harness, migration: str) -> None:
        volumes, session = self._session(harness, migration)
        key = frozen_key(migration, DRILL)
        harness.cloud.volumes.thaw_writer(writer_key(migration), key)
        points = []
        for turn in range(2):
            write_point(session.disk("vda"), 0, b"turn %d" % turn)
            point = harness.cloud.volumes.freeze_writer(writer_key(migration), key, migration=migration)
            assert read_point(point.disk("vda"))[:6] == b"turn %d" % turn
            with opened(point.disk("vda").endpoint) as late:
                for cloud in (harness.cloud, harness.fresh_cloud()):
                    cloud.volumes.thaw_writer(writer_key(migration), key)
                with pytest.raises(WhimbrelError):
                    read_device(late, GRAIN, 2 * GRAIN)
            assert list(harness.cloud.volumes.owned(migration)) == [volumes["vda"].name]
            points.append(point)
        assert points[0].taken_at < points[1].taken_at
        # A reader of the first state never gets at the second by an old address.
        harness.cloud.volumes.freeze_writer(writer_key(migration), key, migration=migration)
        with pytest.raises(WhimbrelError), opened(points[0].disk("vda").endpoint) as old:
            read_device(old, 0, GRAIN)

    def test_closing_the_session_ends_it_too(self, harness: Harness, migration: str) -> None:
        volumes, session = self._session(harness, migration, disks=("vda", "vdb"))
        key = frozen_key(migration, DRILL)
        point = harness.cloud.volumes.freeze_writer(writer_key(migration), key, migration=migration)
        write_point(session.disk("vda"), 0, b"to the last byte")
        zero_point(session.disk("vdb"), 0, GRAIN)
        harness.cloud.volumes.close_writer(writer_key(migration))
        with pytest.raises(WhimbrelError), opened(point.disk("vda").endpoint) as late:
            read_device(late, 0, GRAIN)
        assert set(harness.cloud.volumes.owned(migration)) == {volume.name for volume in volumes.values()}
        assert harness.read_volume(volumes["vda"]) == b"to the last byte" + bytes(SIZE - 16)
        harness.cloud.volumes.thaw_writer(writer_key(migration), key)
        session = harness.cloud.volumes.open_writer(writer_key(migration), volumes, migration=migration)
        again = harness.cloud.volumes.freeze_writer(writer_key(migration), key, migration=migration)
        assert again.taken_at > point.taken_at
        assert read_point(again.disk("vda"))[:16] == b"to the last byte"
