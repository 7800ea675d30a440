"""VolumePort, line by line."""

from __future__ import annotations

import random

import pytest

from tests.contract.blockio import extents_of, opened, read_device, read_point, write_device, write_point, zero_point
from tests.contract.harness import Harness, Lack, needs
from tests.contract.suites.suite import GRAIN, MIB, SIZE, ContractSuite
from whimbrel.errors import Conflict, NotFound, QuotaExceeded, WhimbrelError
from whimbrel.model.naming import writer_key
from whimbrel.model.vm import DiskFormat, Power, VolumeRef

OTHER = "0123456789"


class VolumeContract(ContractSuite):
    """Making, finding, removing, writing."""

    # --- pools and volumes

    def test_pools_tell_their_room(self, harness: Harness) -> None:
        pool = {each.name: each for each in harness.cloud.volumes.pools()}[harness.pool]
        assert pool.active
        if pool.free_bytes is not None and pool.capacity_bytes is not None:  # else only an administrator may ask
            assert 0 < pool.free_bytes <= pool.capacity_bytes

    def test_a_fresh_volume_is_zero(self, harness: Harness, migration: str) -> None:
        volume = self.volume(harness, migration)
        assert (volume.size_bytes, volume.format, volume.pool) == (SIZE, self.disk_format, harness.pool)
        session = harness.cloud.volumes.open_writer(writer_key(migration), {"vda": volume}, migration=migration)
        assert read_point(session.disk("vda")) == bytes(SIZE)
        if Lack.ALLOCATION not in harness.lacks:
            assert all(extent.zero for extent in extents_of(session.disk("vda")))

    def test_ensure_volume_twice_is_one_volume(self, harness: Harness, migration: str) -> None:
        first = self.volume(harness, migration)
        assert self.volume(harness, migration) == first
        assert harness.fresh_cloud().volumes.ensure_volume(self.volume_spec(harness, migration)) == first
        assert list(harness.cloud.volumes.owned(migration)) == [first.name]

    def test_finding_a_volume_again_keeps_its_bytes(self, harness: Harness, migration: str) -> None:
        volume = self.volume(harness, migration)
        self._write(harness, migration, volume, 12345, b"content")
        self.volume(harness, migration)
        assert harness.read_volume(volume)[12345:12352] == b"content"

    def test_a_volume_of_another_size_is_a_conflict(self, harness: Harness, migration: str) -> None:
        first = self.volume(harness, migration)
        with pytest.raises(Conflict):
            self.volume(harness, migration, size_bytes=2 * SIZE)
        assert self.volume(harness, migration) == first

    def test_a_volume_of_another_format_is_a_conflict(self, harness: Harness, migration: str) -> None:
        needs(harness, Lack.TWO_FORMATS)
        self.volume(harness, migration)
        other: DiskFormat = "raw" if self.disk_format == "qcow2" else "qcow2"
        spec = self.volume_spec(harness, migration).model_copy(update={"format": other})
        with pytest.raises(Conflict):
            harness.cloud.volumes.ensure_volume(spec)

    def test_an_unknown_pool_is_not_found(self, harness: Harness, migration: str) -> None:
        spec = self.volume_spec(harness, migration).model_copy(update={"pool": "no-such-pool"})
        with pytest.raises(NotFound):
            harness.cloud.volumes.ensure_volume(spec)

    def test_no_room_is_quota_exceeded(self, harness: Harness, migration: str) -> None:
        needs(harness, Lack.QUOTA)
        capacity = {each.name: each for each in harness.cloud.volumes.pools()}[harness.pool].capacity_bytes
        assert capacity is not None
        with pytest.raises(QuotaExceeded):
            self.volume(harness, migration, size_bytes=capacity + MIB)
        assert list(harness.cloud.volumes.owned(migration)) == []

    # --- removing

    def test_ensure_absent_twice_and_of_nothing(self, harness: Harness, migration: str) -> None:
        volumes = harness.cloud.volumes
        volumes.ensure_absent("never-was", harness.pool, migration=migration)
        volume = self.volume(harness, migration)
        for cloud in (harness.cloud, harness.cloud, harness.fresh_cloud()):
            cloud.volumes.ensure_absent(volume.name, volume.pool, migration=migration)
        assert list(volumes.owned(migration)) == []

    def test_ensure_absent_spares_another_migrations_volume(self, harness: Harness, migration: str) -> None:
        volume = self.volume(harness, migration)
        with pytest.raises(Conflict):
            harness.cloud.volumes.ensure_absent(volume.name, volume.pool, migration=OTHER)
        assert list(harness.cloud.volumes.owned(migration)) == [volume.name]

    def test_a_volume_that_is_being_written_stays(self, harness: Harness, migration: str) -> None:
        volume = self.volume(harness, migration)
        harness.cloud.volumes.open_writer(writer_key(migration), {"vda": volume}, migration=migration)
        with pytest.raises(Conflict):
            harness.cloud.volumes.ensure_absent(volume.name, volume.pool, migration=migration)
        harness.cloud.volumes.close_writer(writer_key(migration))
        harness.cloud.volumes.ensure_absent(volume.name, volume.pool, migration=migration)
        assert list(harness.cloud.volumes.owned(migration)) == []

    @pytest.mark.parametrize("on", [False, True], ids=["off", "on"])
    def test_a_volume_that_a_vm_has_stays(self, harness: Harness, migration: str, on: bool) -> None:
        target = self.target(harness, migration, self.moved_vm(harness))
        made = harness.cloud.compute.ensure_vm(target)
        if on:
            harness.cloud.compute.start(made.ref)
        volume = target.disks[0].volume
        with pytest.raises(Conflict):
            harness.cloud.volumes.ensure_absent(volume.name, volume.pool, migration=migration)
        assert list(harness.cloud.volumes.owned(migration)) == [volume.name]
        harness.cloud.compute.ensure_absent(made.ref, migration=migration)
        harness.cloud.volumes.ensure_absent(volume.name, volume.pool, migration=migration)
        assert list(harness.cloud.volumes.owned(migration)) == []

    def test_owned_is_exactly_ours(self, harness: Harness, migration: str) -> None:
        assert list(harness.cloud.volumes.owned(migration)) == []
        names = {self.volume(harness, migration, disk).name for disk in ("vda", "vdb")}
        self.volume(harness, OTHER)
        harness.make_vm([(SIZE, self.disk_format)])
        assert set(harness.fresh_cloud().volumes.owned(migration)) == names

    # --- writer sessions on volumes

    def test_writes_are_read_back_and_remain(self, harness: Harness, migration: str) -> None:
        content = random.Random(1).randbytes(300_000)
        volume = self.volume(harness, migration)
        session = harness.cloud.volumes.open_writer(writer_key(migration), {"vda": volume}, migration=migration)
        write_point(session.disk("vda"), 100_000, content)
        expected = bytes(100_000) + content + bytes(SIZE - 400_000)
        assert read_point(session.disk("vda")) == expected
        harness.cloud.volumes.close_writer(writer_key(migration))
        assert harness.read_volume(volume) == expected

    def test_zeroing_is_read_back_and_remains(self, harness: Harness, migration: str) -> None:
        volume = self.volume(harness, migration)
        session = harness.cloud.volumes.open_writer(writer_key(migration), {"vda": volume}, migration=migration)
        write_point(session.disk("vda"), 0, b"\xff" * (4 * GRAIN))
        zero_point(session.disk("vda"), GRAIN, 2 * GRAIN)
        expected = b"\xff" * GRAIN + bytes(2 * GRAIN) + b"\xff" * GRAIN + bytes(SIZE - 4 * GRAIN)
        assert read_point(session.disk("vda")) == expected
        harness.cloud.volumes.close_writer(writer_key(migration))
        assert harness.read_volume(volume) == expected

    def test_each_disk_key_is_its_own_volume(self, harness: Harness, migration: str) -> None:
        volumes = {disk: self.volume(harness, migration, disk) for disk in ("vda", "vdb")}
        session = harness.cloud.volumes.open_writer(writer_key(migration), volumes, migration=migration)
        assert {(disk.key, disk.size_bytes, disk.tracked) for disk in session.disks} == {
            ("vda", SIZE, False),
            ("vdb", SIZE, False),
        }
        for disk in session.disks:
            write_point(disk, 0, disk.key.encode())
        harness.cloud.volumes.close_writer(writer_key(migration))
        assert {disk: harness.read_volume(volume)[:3] for disk, volume in volumes.items()} == {
            "vda": b"vda",
            "vdb": b"vdb",
        }

    def test_the_same_key_is_the_same_session(self, harness: Harness, migration: str) -> None:
        volumes = {"vda": self.volume(harness, migration)}
        first = harness.cloud.volumes.open_writer(writer_key(migration), volumes, migration=migration)
        assert harness.cloud.volumes.open_writer(writer_key(migration), volumes, migration=migration) == first

    def test_a_dead_workers_session_is_adopted(self, harness: Harness, migration: str) -> None:
        volumes = {"vda": self.volume(harness, migration)}
        first = harness.cloud.volumes.open_writer(writer_key(migration), volumes, migration=migration)
        write_point(first.disk("vda"), 0, b"before")
        harness.cloud.close()
        fresh = harness.fresh_cloud()
        adopted = fresh.volumes.open_writer(writer_key(migration), volumes, migration=migration)
        write_point(adopted.disk("vda"), GRAIN, b"after")
        assert read_point(adopted.disk("vda"))[: GRAIN + 5] == b"before" + bytes(GRAIN - 6) + b"after"
        fresh.volumes.close_writer(writer_key(migration))
        assert harness.read_volume(volumes["vda"])[: GRAIN + 5] == b"before" + bytes(GRAIN - 6) + b"after"

    def test_a_volume_has_one_writer(self, harness: Harness, migration: str) -> None:
        volumes = {"vda": self.volume(harness, migration)}
        first = harness.cloud.volumes.open_writer(writer_key(migration), volumes, migration=migration)
        with pytest.raises(Conflict):
            harness.cloud.volumes.open_writer(writer_key(OTHER), volumes, migration=OTHER)
        write_point(first.disk("vda"), 0, b"still here")
        assert read_point(first.disk("vda"))[:10] == b"still here"

    def test_a_volume_that_is_not_there_is_not_found(self, harness: Harness, migration: str) -> None:
        volume = self.volume(harness, migration)
        harness.cloud.volumes.ensure_absent(volume.name, volume.pool, migration=migration)
        with pytest.raises(NotFound):
            harness.cloud.volumes.open_writer(writer_key(migration), {"vda": volume}, migration=migration)

    def test_close_twice_and_of_nothing(self, harness: Harness, migration: str) -> None:
        volumes = harness.cloud.volumes
        volumes.close_writer("whimbrel-never-was-writer")
        volumes.open_writer(writer_key(migration), {"vda": self.volume(harness, migration)}, migration=migration)
        for cloud in (harness.cloud, harness.cloud, harness.fresh_cloud()):
            cloud.volumes.close_writer(writer_key(migration))

    def test_a_closed_session_can_be_opened_again(self, harness: Harness, migration: str) -> None:
        volumes = {"vda": self.volume(harness, migration)}
        for turn in range(2):
            session = harness.cloud.volumes.open_writer(writer_key(migration), volumes, migration=migration)
            write_point(session.disk("vda"), turn * GRAIN, b"turn")
            harness.cloud.volumes.close_writer(writer_key(migration))
        assert harness.read_volume(volumes["vda"]).count(b"turn") == 2

    def test_a_late_writer_is_shut_out(self, harness: Harness, migration: str) -> None:
        """A copy that outlives its session must fail, and must not reach the volume."""
        volume = self.volume(harness, migration)
        session = harness.cloud.volumes.open_writer(writer_key(migration), {"vda": volume}, migration=migration)
        with opened(session.disk("vda").endpoint) as late:
            write_device(late, 0, b"in time")
            harness.cloud.volumes.close_writer(writer_key(migration))
            with pytest.raises(WhimbrelError):
                write_device(late, 0, b"too late")
        with pytest.raises(WhimbrelError), opened(session.disk("vda").endpoint) as later:
            read_device(later, 0, GRAIN)
        assert harness.read_volume(volume)[:8] == b"in time\0"

    def test_a_volume_of_a_running_vm_is_not_written(self, harness: Harness, migration: str) -> None:
        target = self.target(harness, migration, self.moved_vm(harness))
        made = harness.cloud.compute.ensure_vm(target)
        harness.cloud.compute.start(made.ref)
        with pytest.raises(Conflict):
            harness.cloud.volumes.open_writer(
                writer_key(migration), {"vda": target.disks[0].volume}, migration=migration
            )

    def test_a_vm_does_not_start_on_a_volume_being_written(self, harness: Harness, migration: str) -> None:
        target = self.target(harness, migration, self.moved_vm(harness))
        made = harness.cloud.compute.ensure_vm(target)
        key = writer_key(migration)
        harness.cloud.volumes.open_writer(key, {"vda": target.disks[0].volume}, migration=migration)
        with pytest.raises(Conflict):
            harness.cloud.compute.start(made.ref)
        assert harness.cloud.compute.power(made.ref) is Power.OFF
        harness.cloud.volumes.close_writer(key)
        harness.cloud.compute.start(made.ref)
        assert harness.cloud.compute.power(made.ref) is Power.RUNNING

    # --- writer sessions on a VM's disks

    def test_disks_of_a_vm_that_is_off_are_written(self, harness: Harness, migration: str) -> None:
        needs(harness, Lack.WRITE_BACK)
        ref = harness.make_vm([(SIZE, self.disk_format)] * 2)
        vm = harness.cloud.compute.inspect(ref)
        key = writer_key(migration)
        session = harness.cloud.volumes.open_disk_writer(key, vm, ["vdb"], migration=migration)
        assert harness.fresh_cloud().volumes.open_disk_writer(key, vm, ["vdb"], migration=migration) == session
        write_point(session.disk("vdb"), GRAIN + 1, b"brought back")
        harness.cloud.volumes.close_writer(key)
        assert harness.read_disk(ref, "vdb")[GRAIN + 1 : GRAIN + 13] == b"brought back"
        assert harness.read_disk(ref, "vda") == bytes(SIZE)
        assert harness.cloud.compute.inspect(ref).definition_digest == vm.definition_digest

    def test_disks_of_a_running_vm_are_not_written(self, harness: Harness, migration: str) -> None:
        ref = harness.make_vm([(SIZE, self.disk_format)], running=True)
        vm = harness.cloud.compute.inspect(ref)
        with pytest.raises(Conflict):
            harness.cloud.volumes.open_disk_writer(writer_key(migration), vm, ["vda"], migration=migration)

    def test_a_vm_does_not_start_while_its_disk_is_written(self, harness: Harness, migration: str) -> None:
        needs(harness, Lack.WRITE_BACK)
        ref = harness.make_vm([(SIZE, self.disk_format)])
        vm = harness.cloud.compute.inspect(ref)
        harness.cloud.volumes.open_disk_writer(writer_key(migration), vm, ["vda"], migration=migration)
        with pytest.raises(Conflict):
            harness.cloud.compute.start(ref)
        assert harness.cloud.compute.power(ref) is Power.OFF
        harness.cloud.volumes.close_writer(writer_key(migration))
        harness.cloud.compute.start(ref)
        assert harness.cloud.compute.power(ref) is Power.RUNNING

    def test_an_unknown_disk_is_not_found(self, harness: Harness, migration: str) -> None:
        vm = harness.cloud.compute.inspect(harness.make_vm([(SIZE, self.disk_format)]))
        with pytest.raises(NotFound):
            harness.cloud.volumes.open_disk_writer(writer_key(migration), vm, ["vdz"], migration=migration)

    def _write(self, harness: Harness, migration: str, volume: VolumeRef, offset: int, data: bytes) -> None:
        session = harness.cloud.volumes.open_writer(writer_key(migration), {"vda": volume}, migration=migration)
        write_point(session.disk("vda"), offset, data)
        harness.cloud.volumes.close_writer(writer_key(migration))
