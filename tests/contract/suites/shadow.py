"""What ``ShadowPort`` promises."""

from __future__ import annotations

import pytest

from tests.contract.blockio import (
    changed_of,
    covers,
    opened,
    read_device,
    read_point,
    write_device,
    write_point,
    zero_point,
)
from tests.contract.harness import Harness, Lack, needs
from tests.contract.suites.suite import GRAIN, SIZE, ContractSuite
from whimbrel.errors import Conflict, NotFound, WhimbrelError
from whimbrel.model.naming import point_key, writer_key
from whimbrel.model.point import WriterSession
from whimbrel.model.vm import Power, VmSpec

AT = 3 * GRAIN + 1000
BEFORE = b"before the shadow"
AFTER = b"in the shadow"


class ShadowContract(ContractSuite):
    def stopped(self, harness: Harness, disks: int = 1) -> VmSpec:
        """A VM that has run and is off, with bytes on each disk."""
        ref = harness.make_vm([(SIZE, self.disk_format)] * disks, running=True)
        vm = harness.cloud.compute.inspect(ref)
        for disk in vm.disks:
            harness.guest_write(ref, disk.key, AT, BEFORE + disk.key.encode())
        harness.cloud.compute.force_off(ref)
        return harness.cloud.compute.inspect(ref)

    def key(self, migration: str) -> str:
        return f"whimbrel-{migration}-shadow"

    def shadow(self, harness: Harness, vm: VmSpec, migration: str) -> WriterSession:
        disks = [disk.key for disk in vm.disks]
        return harness.cloud.shadows.open(self.key(migration), vm, disks, migration=migration)

    def merge(self, harness: Harness, vm: VmSpec, migration: str) -> int:
        disks = [disk.key for disk in vm.disks]
        return harness.cloud.shadows.merge(self.key(migration), vm, disks, migration=migration)

    def test_capabilities_say_so(self, harness: Harness) -> None:
        assert harness.cloud.capabilities().shadows

    def test_writes_are_seen_in_the_shadow_and_not_on_the_disk(self, harness: Harness, migration: str) -> None:
        vm = self.stopped(harness, disks=2)
        before = {disk.key: harness.read_disk(vm.ref, disk.key) for disk in vm.disks}
        session = self.shadow(harness, vm, migration)
        assert [(disk.key, disk.size_bytes) for disk in session.disks] == [("vda", SIZE), ("vdb", SIZE)]
        assert read_point(session.disk("vda")) == before["vda"]
        write_point(session.disk("vda"), AT + 3, AFTER)
        zero_point(session.disk("vdb"), 0, 8 * GRAIN)
        expected = before["vda"][: AT + 3] + AFTER + before["vda"][AT + 3 + len(AFTER) :]
        assert read_point(session.disk("vda")) == expected
        assert read_point(session.disk("vdb")) == bytes(SIZE)
        assert {disk.key: harness.read_disk(vm.ref, disk.key) for disk in vm.disks} == before
        assert len(harness.fresh_cloud().shadows.owned(vm, migration)) == 2

    def test_merge_brings_all_to_the_disks(self, harness: Harness, migration: str) -> None:
        vm = self.stopped(harness, disks=2)
        session = self.shadow(harness, vm, migration)
        write_point(session.disk("vda"), AT + 3, AFTER)
        zero_point(session.disk("vdb"), 0, 8 * GRAIN)
        expected = read_point(session.disk("vda"))
        assert self.merge(harness, vm, migration) > 0
        assert harness.read_disk(vm.ref, "vda") == expected
        assert harness.read_disk(vm.ref, "vdb") == bytes(SIZE)
        assert list(harness.cloud.shadows.owned(vm, migration)) == []
        assert harness.cloud.compute.inspect(vm.ref).definition_digest == vm.definition_digest
        assert self.merge(harness, vm, migration) == 0
        harness.cloud.compute.start(vm.ref)
        assert harness.cloud.compute.power(vm.ref) is Power.RUNNING

    def test_merge_and_drop_of_nothing(self, harness: Harness, migration: str) -> None:
        vm = self.stopped(harness)
        assert self.merge(harness, vm, migration) == 0
        harness.cloud.shadows.drop(self.key(migration), vm, ["vda"], migration=migration)
        assert list(harness.cloud.shadows.owned(vm, migration)) == []

    def test_drop_leaves_the_disk_as_it_was(self, harness: Harness, migration: str) -> None:
        vm = self.stopped(harness)
        before = harness.read_disk(vm.ref, "vda")
        write_point(self.shadow(harness, vm, migration).disk("vda"), 0, AFTER)
        for cloud in (harness.cloud, harness.fresh_cloud()):
            cloud.shadows.drop(self.key(migration), vm, ["vda"], migration=migration)
        assert list(harness.cloud.shadows.owned(vm, migration)) == []
        assert harness.read_disk(vm.ref, "vda") == before
        assert read_point(self.shadow(harness, vm, migration).disk("vda")) == before

    def test_the_same_key_is_the_same_session(self, harness: Harness, migration: str) -> None:
        vm = self.stopped(harness)
        first = self.shadow(harness, vm, migration)
        harness.cloud.close()
        again = harness.fresh_cloud().shadows.open(self.key(migration), vm, ["vda"], migration=migration)
        assert again == first

    def test_a_session_that_ended_comes_back_with_all_writes(self, harness: Harness, migration: str) -> None:
        vm = self.stopped(harness)
        write_point(self.shadow(harness, vm, migration).disk("vda"), AT, AFTER)
        harness.cloud.volumes.close_writer(self.key(migration))
        session = self.shadow(harness, vm, migration)
        assert read_point(session.disk("vda"))[AT : AT + len(AFTER)] == AFTER
        harness.cloud.volumes.close_writer(self.key(migration))
        assert self.merge(harness, vm, migration) > 0
        assert harness.read_disk(vm.ref, "vda")[AT : AT + len(AFTER)] == AFTER

    def test_nobody_else_gets_the_disks(self, harness: Harness, migration: str) -> None:
        vm = self.stopped(harness)
        session = self.shadow(harness, vm, migration)
        with pytest.raises(Conflict):
            harness.cloud.compute.start(vm.ref)
        assert harness.cloud.compute.power(vm.ref) is Power.OFF
        with pytest.raises(Conflict):
            harness.cloud.volumes.open_disk_writer(writer_key(migration), vm, ["vda"], migration=migration)
        write_point(session.disk("vda"), 0, AFTER)
        assert read_point(session.disk("vda"))[: len(AFTER)] == AFTER

    def test_a_vm_that_runs_has_no_shadow(self, harness: Harness, migration: str) -> None:
        vm = self.stopped(harness)
        harness.cloud.compute.start(vm.ref)
        with pytest.raises(Conflict):
            self.shadow(harness, vm, migration)

    def test_a_disk_that_is_being_written_has_no_shadow(self, harness: Harness, migration: str) -> None:
        vm = self.stopped(harness)
        harness.cloud.volumes.open_disk_writer(writer_key(migration), vm, ["vda"], migration=migration)
        with pytest.raises(Conflict):
            self.shadow(harness, vm, migration)

    def test_an_unknown_disk_is_not_found(self, harness: Harness, migration: str) -> None:
        vm = self.stopped(harness)
        with pytest.raises(NotFound):
            harness.cloud.shadows.open(self.key(migration), vm, ["vdz"], migration=migration)

    @pytest.mark.parametrize("point_first", [True, False], ids=["point-first", "shadow-first"])
    def test_a_cold_point_reads_the_disk_meanwhile(self, harness: Harness, migration: str, point_first: bool) -> None:
        vm = self.stopped(harness)
        before = harness.read_disk(vm.ref, "vda")
        key = point_key(migration, 1)
        if not point_first:
            self.shadow(harness, vm, migration)
        point = harness.cloud.points.open(vm.ref, ["vda"], key=key, migration=migration)
        session = self.shadow(harness, vm, migration)
        write_point(session.disk("vda"), AT, AFTER)
        assert read_point(point.disk("vda")) == before
        assert list(harness.cloud.points.owned(vm.ref, migration)) == [key]
        with pytest.raises(Conflict):
            self.merge(harness, vm, migration)
        assert read_point(point.disk("vda")) == before
        assert len(harness.cloud.shadows.owned(vm, migration)) == 1
        harness.cloud.points.close(vm.ref, key, migration=migration)
        assert self.merge(harness, vm, migration) > 0
        assert harness.read_disk(vm.ref, "vda")[AT : AT + len(AFTER)] == AFTER

    def test_a_late_writer_is_shut_out(self, harness: Harness, migration: str) -> None:
        vm = self.stopped(harness)
        session = self.shadow(harness, vm, migration)
        with opened(session.disk("vda").endpoint) as late:
            write_device(late, 0, b"in time")
            self.merge(harness, vm, migration)
            with pytest.raises(WhimbrelError):
                write_device(late, 0, b"too late")
        with pytest.raises(WhimbrelError), opened(session.disk("vda").endpoint) as later:
            read_device(later, 0, GRAIN)
        assert harness.read_disk(vm.ref, "vda")[:8] == b"in time\0"


class TrackedShadowContract(ShadowContract):
    """For disks with change tracking."""

    def test_what_was_merged_counts_as_changed(self, harness: Harness, migration: str) -> None:
        needs(harness, Lack.LIVE_POINTS)
        ref = harness.make_vm([(SIZE, self.disk_format)], running=True)
        base = harness.cloud.points.open(ref, ["vda"], key=point_key(migration, 1), migration=migration)
        harness.cloud.points.close(ref, base.key, migration=migration)
        harness.guest_write(ref, "vda", 0, BEFORE)
        harness.cloud.compute.force_off(ref)
        vm = harness.cloud.compute.inspect(ref)
        write_point(self.shadow(harness, vm, migration).disk("vda"), 20 * GRAIN, AFTER)
        self.merge(harness, vm, migration)
        later = harness.cloud.points.open(
            ref, ["vda"], key=point_key(migration, 2), since=base.token, migration=migration
        )
        changed = changed_of(later.disk("vda"))
        assert covers(changed, 0, len(BEFORE))
        assert covers(changed, 20 * GRAIN, len(AFTER))
        assert sum(extent.length for extent in changed) <= 4 * GRAIN, "the rest of the disk has not changed"
