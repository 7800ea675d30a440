"""HandoverPort, line by line, between two clouds on one storage."""

from __future__ import annotations

import secrets
import uuid

import pytest

from tests.contract.sharing_harness import SharingHarness
from whimbrel.errors import Conflict, NotFound, WhimbrelError
from whimbrel.model import naming
from whimbrel.model.handover import Hold, StoredDisk
from whimbrel.model.vm import DiskFormat, Power, TargetVm, VmSpec
from whimbrel.ports.handover import HandoverPort

SIZE = 4 << 20
OTHER = "0123456789"


class HandoverContract:
    """A subclass gives ``sharing``; ``disk_format`` is the format of the disks."""

    disk_format: DiskFormat = "qcow2"

    @pytest.fixture
    def migration(self) -> str:
        return naming.migration_id("handover", secrets.token_hex(8))

    @pytest.fixture
    def source(self, sharing: SharingHarness) -> HandoverPort:
        assert sharing.source.handover is not None
        return sharing.source.handover

    @pytest.fixture
    def target(self, sharing: SharingHarness) -> HandoverPort:
        assert sharing.target.handover is not None
        return sharing.target.handover

    def vm(self, sharing: SharingHarness, disks: int = 2, *, running: bool = False) -> VmSpec:
        ref = sharing.make_vm([(SIZE, self.disk_format)] * disks, running=running)
        return sharing.source.compute.inspect(ref)

    def pools(self, sharing: SharingHarness) -> dict[str, str]:
        return {sharing.pool: sharing.pool}

    def rebuilt(self, sharing: SharingHarness, migration: str, vm: VmSpec, disks: list[StoredDisk]) -> VmSpec:
        assert sharing.target.handover is not None
        adopted = tuple(sharing.target.handover.adopt(disks, self.pools(sharing), migration=migration))
        nics = tuple(nic.model_copy(update={"network": sharing.network}) for nic in vm.nics)
        wanted = TargetVm(migration=migration, name=vm.name, source=vm, disks=adopted, nics=nics)
        return sharing.target.compute.ensure_vm(wanted)

    # --- one storage

    def test_capabilities_say_so(self, sharing: SharingHarness) -> None:
        assert sharing.source.capabilities().handover
        assert sharing.target.capabilities().handover

    def test_a_note_is_read_by_the_other_side(
        self, sharing: SharingHarness, source: HandoverPort, target: HandoverPort, migration: str
    ) -> None:
        name = naming.marker_name(migration)
        assert target.read_marker(sharing.pool, name) is None
        for text in ("one", "another and longer"):
            source.write_marker(sharing.pool, name, text)
            assert target.read_marker(sharing.pool, name) == text
            assert source.read_marker(sharing.pool, name) == text
        assert list(sharing.source.volumes.owned(migration)) == [name]
        for _ in range(2):
            source.remove_marker(sharing.pool, name)
            assert target.read_marker(sharing.pool, name) is None
        assert list(sharing.target.volumes.owned(migration)) == []

    def test_a_note_on_another_storage_is_not_read(
        self, sharing: SharingHarness, source: HandoverPort, target: HandoverPort, migration: str
    ) -> None:
        name = naming.marker_name(migration)
        source.write_marker(sharing.apart, name, "here")
        try:
            assert target.read_marker(sharing.apart, name) is None
        finally:
            source.remove_marker(sharing.apart, name)

    def test_a_note_in_a_pool_that_is_not_there(self, source: HandoverPort, migration: str) -> None:
        name = naming.marker_name(migration)
        with pytest.raises(NotFound):
            source.write_marker("no-such-pool", name, "x")
        with pytest.raises(NotFound):
            source.read_marker("no-such-pool", name)
        source.remove_marker("no-such-pool", name)

    # --- looking

    def test_both_sides_see_the_same_disks(
        self, sharing: SharingHarness, source: HandoverPort, target: HandoverPort
    ) -> None:
        vm = self.vm(sharing)
        stored = list(source.stored(vm))
        assert [disk.spec for disk in stored] == [*vm.disks]
        assert [(disk.image.pool, disk.image.size_bytes, disk.image.format) for disk in stored] == [
            (sharing.pool, SIZE, self.disk_format)
        ] * 2
        assert len({disk.image.identity for disk in stored}) == 2
        seen = target.look(stored, self.pools(sharing))
        assert [disk.volume.name for disk in seen] == [disk.image.handle for disk in stored]
        assert {disk.volume.pool for disk in seen} == {sharing.pool}
        assert source.users(stored, {}) == [vm.name]
        assert list(target.users(stored, self.pools(sharing))) == []

    def test_what_is_not_there_is_not_found(
        self, sharing: SharingHarness, source: HandoverPort, target: HandoverPort, migration: str
    ) -> None:
        vm = self.vm(sharing, 1)
        (disk,) = source.stored(vm)
        lost = disk.model_copy(update={"image": disk.image.model_copy(update={"handle": "no-such-image"})})
        for ask in (target.look, lambda d, p: target.adopt(d, p, migration=migration)):
            with pytest.raises(NotFound):
                ask([lost], self.pools(sharing))
        gone = vm.model_copy(update={"ref": str(uuid.uuid4())})
        with pytest.raises(NotFound):
            source.stored(gone)
        with pytest.raises(NotFound):
            source.release(gone, migration=migration, turn=1)
        with pytest.raises(NotFound):
            source.held(gone.ref)
        source.forget_vm(gone.ref, migration=migration)

    def test_another_size_is_a_conflict(
        self, sharing: SharingHarness, source: HandoverPort, target: HandoverPort
    ) -> None:
        (disk,) = source.stored(self.vm(sharing, 1))
        other = disk.model_copy(update={"image": disk.image.model_copy(update={"size_bytes": SIZE * 2})})
        with pytest.raises(Conflict):
            target.look([other], self.pools(sharing))

    # --- releasing and giving back

    def test_release_and_reclaim_give_exactly_the_same_vm(
        self, sharing: SharingHarness, source: HandoverPort, migration: str
    ) -> None:
        vm = self.vm(sharing)
        sharing.write(vm.ref, "vda", b"as it was" * 100)
        vm = sharing.source.compute.inspect(vm.ref)
        wanted = list(source.stored(vm))
        for turn in (1, 2):
            for cloud in (sharing.source, sharing.source, sharing.fresh(sharing.source)):
                assert cloud.handover is not None
                assert list(cloud.handover.release(vm, migration=migration, turn=turn)) == wanted
                assert cloud.handover.held(vm.ref) == Hold(migration=migration, turn=turn)
                assert list(cloud.handover.released(migration)) == [vm.name]
                assert list(cloud.handover.stored(vm)) == wanted
            assert list(source.users(wanted, {})) == []
            for _ in range(2):
                back = source.reclaim(vm, migration=migration, turn=turn)
                assert back == vm
            assert source.held(vm.ref) is None
            assert list(source.released(migration)) == []
        assert sharing.force_start(sharing.source, vm.ref)

    def test_a_released_vm_cannot_be_started_by_anybody(
        self, sharing: SharingHarness, source: HandoverPort, migration: str
    ) -> None:
        vm = self.vm(sharing)
        source.release(vm, migration=migration, turn=1)
        with pytest.raises(WhimbrelError):
            sharing.source.compute.start(vm.ref)
        assert not sharing.force_start(sharing.source, vm.ref)
        assert sharing.source.compute.power(vm.ref) is Power.OFF

    def test_a_vm_that_is_on_is_not_released(
        self, sharing: SharingHarness, source: HandoverPort, migration: str
    ) -> None:
        vm = self.vm(sharing, 1, running=True)
        with pytest.raises(Conflict):
            source.release(vm, migration=migration, turn=1)
        assert source.held(vm.ref) is None
        assert sharing.source.compute.inspect(vm.ref).definition_digest == vm.definition_digest
        assert sharing.source.compute.power(vm.ref) is Power.RUNNING

    def test_another_migration_cannot_take_or_give_back(
        self, sharing: SharingHarness, source: HandoverPort, migration: str
    ) -> None:
        vm = self.vm(sharing, 1)
        source.release(vm, migration=migration, turn=1)
        with pytest.raises(Conflict):
            source.release(vm, migration=OTHER, turn=1)
        with pytest.raises(Conflict):
            source.reclaim(vm, migration=OTHER, turn=9)
        with pytest.raises(Conflict):
            source.forget_vm(vm.ref, migration=OTHER)
        assert source.held(vm.ref) == Hold(migration=migration, turn=1)
        assert list(source.released(OTHER)) == []

    def test_an_attempt_of_an_earlier_turn_comes_too_late(
        self, sharing: SharingHarness, source: HandoverPort, migration: str
    ) -> None:
        vm = self.vm(sharing, 1)
        source.release(vm, migration=migration, turn=1)
        source.reclaim(vm, migration=migration, turn=1)
        source.release(vm, migration=migration, turn=2)
        with pytest.raises(Conflict):
            source.reclaim(vm, migration=migration, turn=1)
        with pytest.raises(Conflict):
            source.release(vm, migration=migration, turn=1)
        assert source.held(vm.ref) == Hold(migration=migration, turn=2)

    def test_reclaim_of_a_vm_that_was_never_released(
        self, sharing: SharingHarness, source: HandoverPort, migration: str
    ) -> None:
        vm = self.vm(sharing, 1)
        assert source.reclaim(vm, migration=migration, turn=1) == vm
        with pytest.raises(Conflict):
            source.forget_vm(vm.ref, migration=migration)

    # --- adopting

    def test_the_target_runs_on_the_very_same_images(
        self, sharing: SharingHarness, source: HandoverPort, target: HandoverPort, migration: str
    ) -> None:
        vm = self.vm(sharing)
        sharing.write(vm.ref, "vda", b"moved" * 100)
        vm = sharing.source.compute.inspect(vm.ref)
        released = list(source.release(vm, migration=migration, turn=1))
        first = list(target.adopt(released, self.pools(sharing), migration=migration))
        made = self.rebuilt(sharing, migration, vm, released)
        assert list(target.adopt(released, self.pools(sharing), migration=migration)) == first
        assert [disk.location for disk in made.disks] == [disk.volume.location for disk in first]
        sharing.target.compute.start(made.ref)
        assert list(target.openers(released, self.pools(sharing), migration=migration))
        sharing.target.compute.force_off(made.ref)
        assert list(target.openers(released, self.pools(sharing), migration=migration)) == []
        assert sharing.read(sharing.target, first[0].volume.location, self.disk_format)[:500] == b"moved" * 100
        source.forget_vm(vm.ref, migration=migration)
        source.forget_vm(vm.ref, migration=migration)
        with pytest.raises(NotFound):
            sharing.source.compute.power(vm.ref)
        assert sharing.read(sharing.target, first[0].volume.location, self.disk_format)[:500] == b"moved" * 100

    def test_the_way_back_after_the_target_ran(
        self, sharing: SharingHarness, source: HandoverPort, target: HandoverPort, migration: str
    ) -> None:
        vm = self.vm(sharing)
        released = list(source.release(vm, migration=migration, turn=1))
        made = self.rebuilt(sharing, migration, vm, released)
        sharing.target.compute.start(made.ref)
        sharing.target.compute.ensure_absent(made.ref, migration=migration)
        for _ in range(2):
            target.abandon(released, self.pools(sharing), migration=migration)
        back = source.reclaim(vm, migration=migration, turn=1)
        assert back.definition_digest == vm.definition_digest
        assert [disk.location for disk in back.disks] == [disk.location for disk in vm.disks]
        assert sharing.force_start(sharing.source, vm.ref)

    def test_a_disk_of_another_vm_is_not_adopted(
        self, sharing: SharingHarness, source: HandoverPort, target: HandoverPort, migration: str
    ) -> None:
        vm = self.vm(sharing, 1)
        released = list(source.release(vm, migration=migration, turn=1))
        self.rebuilt(sharing, migration, vm, released)
        with pytest.raises(Conflict):
            target.adopt(released, self.pools(sharing), migration=OTHER)
        assert list(target.users(released, self.pools(sharing))) == [vm.name]

    def test_an_image_that_changed_since_is_not_adopted(
        self, sharing: SharingHarness, source: HandoverPort, target: HandoverPort, migration: str
    ) -> None:
        vm = self.vm(sharing, 1)
        (disk,) = source.release(vm, migration=migration, turn=1)
        other = disk.model_copy(update={"image": disk.image.model_copy(update={"identity": "of a copy"})})
        with pytest.raises(Conflict):
            target.adopt([other], self.pools(sharing), migration=migration)

    # --- who has them open

    def test_openers_of_a_running_vm_are_seen(
        self, sharing: SharingHarness, source: HandoverPort, target: HandoverPort, migration: str
    ) -> None:
        vm = self.vm(sharing, 1, running=True)
        stored = list(source.stored(vm))
        assert list(source.openers(stored, {}, migration=migration)) == [f"VM {vm.name}"]
        assert len(target.openers(stored, self.pools(sharing), migration=migration)) == 1
        assert list(target.openers(stored, self.pools(sharing), migration=migration, locks=False)) == []
        sharing.source.compute.force_off(vm.ref)
        assert list(source.openers(stored, {}, migration=migration)) == []
        assert list(target.openers(stored, self.pools(sharing), migration=migration)) == []

    def test_a_stranger_is_seen_from_both_sides(
        self, sharing: SharingHarness, source: HandoverPort, target: HandoverPort, migration: str
    ) -> None:
        vm = self.vm(sharing, 1)
        stored = list(source.stored(vm))
        with sharing.opened_by_a_stranger(vm.disks[0].location, self.disk_format):
            assert len(source.openers(stored, {}, migration=migration)) == 1
            assert len(target.openers(stored, self.pools(sharing), migration=migration)) == 1
        assert list(source.openers(stored, {}, migration=migration)) == []
