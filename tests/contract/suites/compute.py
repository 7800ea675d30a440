"""ComputePort, line by line."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from tests.contract.harness import Harness, Lack, needs
from tests.contract.suites.suite import SIZE, ContractSuite, wait_for_power
from whimbrel.errors import Conflict, NotFound
from whimbrel.model.vm import Power
from whimbrel.ports.compute import ComputePort

OTHER = "0123456789"
ON_ONE_VM: list[Callable[[ComputePort, str], object]] = [
    lambda compute, ref: compute.inspect(ref),
    lambda compute, ref: compute.power(ref),
    lambda compute, ref: compute.start(ref),
    lambda compute, ref: compute.resume(ref),
    lambda compute, ref: compute.request_stop(ref),
    lambda compute, ref: compute.force_off(ref),
    lambda compute, ref: compute.set_autostart(ref, enabled=True),
]


class ComputeContract(ContractSuite):
    """Looking, power, rebuilding, removing."""

    # --- looking

    def test_inventory_and_inspect_show_the_same(self, harness: Harness) -> None:
        ref = harness.make_vm([(SIZE, self.disk_format)])
        seen = {vm.ref: vm for vm in harness.cloud.compute.inventory()}
        by_ref = harness.cloud.compute.inspect(ref)
        assert seen[ref] == by_ref
        assert harness.cloud.compute.inspect(by_ref.name) == by_ref
        assert harness.fresh_cloud().compute.inspect(ref) == by_ref

    def test_spec_tells_disks_and_nics(self, harness: Harness) -> None:
        ref = harness.make_vm([(SIZE, self.disk_format), (2 * SIZE, self.disk_format)])
        spec = harness.cloud.compute.inspect(ref)
        assert [(disk.key, disk.size_bytes, disk.format) for disk in spec.disks] == [
            ("vda", SIZE, self.disk_format),
            ("vdb", 2 * SIZE, self.disk_format),
        ]
        assert {disk.pool for disk in spec.disks} == {harness.pool}
        assert [nic.network for nic in spec.nics] == [harness.network]
        assert spec.owner_migration is None
        assert spec.definition
        assert spec.definition_kind == harness.cloud.capabilities().kind

    def test_a_name_that_fits_several_is_a_conflict(self, harness: Harness) -> None:
        needs(harness, Lack.SAME_NAMES)
        for _ in range(2):
            harness.make_vm([(SIZE, self.disk_format)], name="twin")
        with pytest.raises(Conflict):
            harness.cloud.compute.inspect("twin")

    @pytest.mark.parametrize("act", ON_ONE_VM, ids=["inspect", "power", "start", "resume", "stop", "off", "autostart"])
    def test_a_vm_that_is_not_there_is_not_found(
        self, harness: Harness, act: Callable[[ComputePort, str], object]
    ) -> None:
        with pytest.raises(NotFound):
            act(harness.cloud.compute, str(uuid.uuid4()))

    # --- power

    def test_start_and_force_off_twice_each(self, harness: Harness) -> None:
        compute = harness.cloud.compute
        ref = harness.make_vm([(SIZE, self.disk_format)])
        assert compute.power(ref) is Power.OFF
        for _ in range(2):
            compute.start(ref)
            assert compute.power(ref) is Power.RUNNING
        assert compute.inspect(ref).power is Power.RUNNING
        for _ in range(2):
            compute.force_off(ref)
            assert compute.power(ref) is Power.OFF

    def test_start_paused_then_resume_twice_each(self, harness: Harness) -> None:
        if not harness.cloud.capabilities().start_paused:
            pytest.skip("capabilities().start_paused is False")
        compute = harness.cloud.compute
        ref = harness.make_vm([(SIZE, self.disk_format)])
        for _ in range(2):
            compute.start(ref, paused=True)
            assert compute.power(ref) is Power.PAUSED
        for _ in range(2):
            compute.resume(ref)
            assert compute.power(ref) is Power.RUNNING

    def test_a_paused_vm_can_be_forced_off(self, harness: Harness) -> None:
        if not harness.cloud.capabilities().start_paused:
            pytest.skip("capabilities().start_paused is False")
        ref = harness.make_vm([(SIZE, self.disk_format)])
        harness.cloud.compute.start(ref, paused=True)
        harness.cloud.compute.force_off(ref)
        assert harness.cloud.compute.power(ref) is Power.OFF

    def test_start_paused_leaves_a_running_vm_running(self, harness: Harness) -> None:
        if not harness.cloud.capabilities().start_paused:
            pytest.skip("capabilities().start_paused is False")
        ref = harness.make_vm([(SIZE, self.disk_format)], running=True)
        harness.cloud.compute.start(ref, paused=True)
        assert harness.cloud.compute.power(ref) is Power.RUNNING

    def test_resume_of_a_vm_that_is_off_is_a_conflict(self, harness: Harness) -> None:
        ref = harness.make_vm([(SIZE, self.disk_format)])
        with pytest.raises(Conflict):
            harness.cloud.compute.resume(ref)
        assert harness.cloud.compute.power(ref) is Power.OFF

    def test_request_stop_of_a_vm_that_is_off_changes_nothing(self, harness: Harness) -> None:
        ref = harness.make_vm([(SIZE, self.disk_format)])
        harness.cloud.compute.request_stop(ref)
        assert harness.cloud.compute.power(ref) is Power.OFF

    def test_request_stop_may_be_repeated(self, harness: Harness) -> None:
        ref = harness.make_vm([(SIZE, self.disk_format)], running=True)
        for _ in range(2):
            harness.cloud.compute.request_stop(ref)
        assert harness.cloud.compute.power(ref) in {Power.RUNNING, Power.OFF}

    def test_a_guest_that_listens_stops(self, harness: Harness) -> None:
        needs(harness, Lack.GUEST_STOPS)
        ref = harness.make_vm([(SIZE, self.disk_format)], running=True)
        harness.cloud.compute.request_stop(ref)
        wait_for_power(harness, ref, Power.OFF)

    def test_force_off_keeps_what_the_guest_wrote(self, harness: Harness) -> None:
        ref = harness.make_vm([(SIZE, self.disk_format)], running=True)
        harness.guest_write(ref, "vda", 4096, b"kept" * 1024)
        before = harness.read_disk(ref, "vda")
        harness.cloud.compute.force_off(ref)
        assert harness.read_disk(ref, "vda") == before
        assert before[4096 : 4096 + 4096] == b"kept" * 1024

    def test_digest_is_stable_over_a_power_cycle(self, harness: Harness) -> None:
        compute = harness.cloud.compute
        ref = harness.make_vm([(SIZE, self.disk_format)])
        before = compute.inspect(ref).definition_digest
        assert before
        compute.start(ref)
        assert compute.inspect(ref).definition_digest == before
        compute.force_off(ref)
        assert harness.fresh_cloud().compute.inspect(ref).definition_digest == before

    def test_autostart_is_read_back(self, harness: Harness) -> None:
        needs(harness, Lack.AUTOSTART)
        compute = harness.cloud.compute
        ref = harness.make_vm([(SIZE, self.disk_format)])
        for enabled in (True, True, False, False):
            compute.set_autostart(ref, enabled=enabled)
            assert compute.inspect(ref).autostart is enabled

    # --- fencing

    def test_a_fenced_vm_is_not_started_by_its_owner(self, harness: Harness, migration: str) -> None:
        if not harness.cloud.capabilities().fences:
            pytest.skip("capabilities().fences is False")
        compute = harness.cloud.compute
        ref = harness.make_vm([(SIZE, self.disk_format)])
        before = compute.inspect(ref)
        for cloud in (harness.cloud, harness.cloud, harness.fresh_cloud()):
            cloud.compute.fence(ref, migration=migration)
            assert harness.fresh_cloud().compute.fenced(ref) == migration
        compute.fence(ref, migration=OTHER)
        compute.unfence(ref, migration=OTHER)
        assert compute.fenced(ref) == migration
        assert not harness.start_by_hand(ref)
        with pytest.raises(Conflict):
            compute.start(ref)
        assert compute.inspect(ref) == before
        for cloud in (harness.cloud, harness.cloud, harness.fresh_cloud()):
            cloud.compute.unfence(ref, migration=migration)
            assert harness.fresh_cloud().compute.fenced(ref) is None
        assert compute.inspect(ref) == before
        assert harness.start_by_hand(ref)

    def test_the_fence_of_a_vm_that_is_not_there(self, harness: Harness, migration: str) -> None:
        if not harness.cloud.capabilities().fences:
            pytest.skip("capabilities().fences is False")
        with pytest.raises(NotFound):
            harness.cloud.compute.fence(str(uuid.uuid4()), migration=migration)
        with pytest.raises(NotFound):
            harness.cloud.compute.fenced(str(uuid.uuid4()))
        harness.cloud.compute.unfence(str(uuid.uuid4()), migration=migration)

    # --- rebuilding

    def test_ensure_vm_keeps_the_sources_traits(self, harness: Harness, migration: str) -> None:
        source = self.moved_vm(harness, disks=2)
        target = self.target(harness, migration, source)
        made = harness.cloud.compute.ensure_vm(target)
        assert (made.name, made.power, made.owner_migration) == (target.name, Power.OFF, migration)
        assert (made.vcpus, made.memory_bytes, made.arch, made.firmware) == (
            source.vcpus,
            source.memory_bytes,
            source.arch,
            source.firmware,
        )
        assert [(disk.key, disk.bus, disk.size_bytes) for disk in made.disks] == [
            (disk.key, disk.bus, disk.size_bytes) for disk in source.disks
        ]
        assert [disk.location for disk in made.disks] == [disk.volume.location for disk in target.disks]
        assert [(nic.mac.lower(), nic.network) for nic in made.nics] == [(source.nics[0].mac.lower(), harness.network)]

    def test_ensure_vm_twice_is_one_vm(self, harness: Harness, migration: str) -> None:
        target = self.target(harness, migration, self.moved_vm(harness))
        first = harness.cloud.compute.ensure_vm(target)
        assert harness.cloud.compute.ensure_vm(target) == first
        assert harness.fresh_cloud().compute.ensure_vm(target) == first
        assert [vm.ref for vm in harness.cloud.compute.inventory() if vm.name == target.name] == [first.ref]

    def test_a_rebuilt_vm_starts(self, harness: Harness, migration: str) -> None:
        made = harness.cloud.compute.ensure_vm(self.target(harness, migration, self.moved_vm(harness)))
        harness.cloud.compute.start(made.ref)
        assert harness.cloud.compute.power(made.ref) is Power.RUNNING
        assert harness.cloud.compute.inspect(made.ref).definition_digest == made.definition_digest

    def test_a_foreign_vm_of_this_name_is_a_conflict(self, harness: Harness, migration: str) -> None:
        target = self.target(harness, migration, self.moved_vm(harness))
        foreign = harness.make_vm([(SIZE, self.disk_format)], name=target.name)
        with pytest.raises(Conflict):
            harness.cloud.compute.ensure_vm(target)
        assert harness.cloud.compute.inspect(foreign).owner_migration is None

    def test_a_foreign_vm_with_the_uuid_is_a_conflict(self, harness: Harness, migration: str) -> None:
        needs(harness, Lack.OWN_IDS)
        foreign = harness.cloud.compute.inspect(harness.make_vm([(SIZE, self.disk_format)]))
        with pytest.raises(Conflict):
            harness.cloud.compute.ensure_vm(self.target(harness, migration, foreign, mac="52:54:00:fe:dc:ba"))

    def test_a_foreign_vm_with_the_mac_is_a_conflict(self, harness: Harness, migration: str) -> None:
        source = self.moved_vm(harness)
        foreign = harness.cloud.compute.inspect(harness.make_vm([(SIZE, self.disk_format)]))
        with pytest.raises(Conflict):
            harness.cloud.compute.ensure_vm(self.target(harness, migration, source, mac=foreign.nics[0].mac.upper()))

    def test_another_migrations_vm_is_a_conflict(self, harness: Harness, migration: str) -> None:
        source = self.moved_vm(harness)
        harness.cloud.compute.ensure_vm(self.target(harness, migration, source))
        other = self.target(harness, "0123456789", source, name=f"rebuilt-{migration}")
        with pytest.raises(Conflict):
            harness.cloud.compute.ensure_vm(other)

    # --- removing and handing over

    def test_ensure_absent_takes_the_vm_and_leaves_its_volumes(self, harness: Harness, migration: str) -> None:
        target = self.target(harness, migration, self.moved_vm(harness))
        made = harness.cloud.compute.ensure_vm(target)
        harness.cloud.compute.start(made.ref)
        for cloud in (harness.cloud, harness.cloud, harness.fresh_cloud()):
            cloud.compute.ensure_absent(made.ref, migration=migration)
        with pytest.raises(NotFound):
            harness.cloud.compute.power(made.ref)
        assert list(harness.cloud.volumes.owned(migration)) == [disk.volume.name for disk in target.disks]

    def test_absence_of_what_never_was_is_fine(self, harness: Harness, migration: str) -> None:
        harness.cloud.compute.ensure_absent(str(uuid.uuid4()), migration=migration)

    def test_ensure_absent_takes_what_was_reserved_for_a_vm_that_never_was(
        self, harness: Harness, migration: str
    ) -> None:
        """An attempt to define it died after its first step."""
        networks, mine, others = harness.cloud.networks, "52:54:00:fe:dc:bb", "52:54:00:fe:dc:bc"
        networks.ensure_port(harness.network, mine, None, migration=migration)
        networks.ensure_port(harness.network, others, None, migration=OTHER)
        reserved = set(networks.mac_owners([mine, others]))
        for _ in range(2):
            harness.cloud.compute.ensure_absent("never-was", migration=migration)
            assert set(networks.mac_owners([mine, others])) == reserved - {mine}
        harness.cloud.compute.ensure_absent("never-was", migration=OTHER)
        assert networks.mac_owners([mine, others]) == {}

    def test_ensure_absent_spares_a_foreign_vm(self, harness: Harness, migration: str) -> None:
        ref = harness.make_vm([(SIZE, self.disk_format)], running=True)
        with pytest.raises(Conflict):
            harness.cloud.compute.ensure_absent(ref, migration=migration)
        assert harness.cloud.compute.power(ref) is Power.RUNNING

    def test_ensure_absent_spares_another_migrations_vm(self, harness: Harness, migration: str) -> None:
        made = harness.cloud.compute.ensure_vm(self.target(harness, migration, self.moved_vm(harness)))
        with pytest.raises(Conflict):
            harness.cloud.compute.ensure_absent(made.ref, migration="0123456789")
        assert harness.cloud.compute.inspect(made.ref).owner_migration == migration

    def test_owned_is_exactly_ours(self, harness: Harness, migration: str) -> None:
        assert list(harness.cloud.compute.owned(migration)) == []
        harness.make_vm([(SIZE, self.disk_format)])
        made = harness.cloud.compute.ensure_vm(self.target(harness, migration, self.moved_vm(harness)))
        assert list(harness.fresh_cloud().compute.owned(migration)) == [made.name]
        assert list(harness.cloud.compute.owned("0123456789")) == []
        harness.cloud.compute.ensure_absent(made.ref, migration=migration)
        assert list(harness.cloud.compute.owned(migration)) == []

    def test_a_vm_handed_over_is_no_longer_ours_to_remove(self, harness: Harness, migration: str) -> None:
        compute = harness.cloud.compute
        made = compute.ensure_vm(self.target(harness, migration, self.moved_vm(harness)))
        for cloud in (harness.cloud, harness.fresh_cloud()):
            cloud.compute.release_tag(made.ref, migration=migration)
        assert list(compute.owned(migration)) == []
        after = compute.inspect(made.ref)
        assert (after.owner_migration, after.definition_digest) == (None, made.definition_digest)
        with pytest.raises(Conflict):
            compute.ensure_absent(made.ref, migration=migration)
        assert compute.power(made.ref) is Power.OFF

    def test_a_tag_can_be_released_while_the_vm_runs(self, harness: Harness, migration: str) -> None:
        compute = harness.cloud.compute
        made = compute.ensure_vm(self.target(harness, migration, self.moved_vm(harness)))
        compute.start(made.ref)
        compute.release_tag(made.ref, migration=migration)
        assert list(compute.owned(migration)) == []
        compute.force_off(made.ref)
        assert list(compute.owned(migration)) == []
        assert compute.inspect(made.ref).owner_migration is None
