"""The Cloud itself: capabilities, facts, closing."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests.contract.harness import Harness
from tests.contract.suites.suite import SIZE, ContractSuite
from whimbrel.errors import NotFound
from whimbrel.model.vm import Power


class CloudFactsContract(ContractSuite):
    """What prechecks are told."""

    def test_capabilities_name_the_kind_and_the_format(self, harness: Harness) -> None:
        capabilities = harness.cloud.capabilities()
        assert capabilities.kind
        assert capabilities.roles
        assert self.disk_format in capabilities.disk_formats
        assert harness.fresh_cloud().capabilities() == capabilities

    def test_source_facts_describe_the_vm(self, harness: Harness) -> None:
        ref = harness.make_vm([(SIZE, self.disk_format)] * 2, running=True)
        vm = harness.cloud.compute.inspect(ref)
        facts = harness.cloud.source_facts(vm.name)
        assert facts.vm == vm
        assert facts.reachable
        assert facts.cloud == harness.cloud.name
        assert [disk.key for disk in facts.disks] == ["vda", "vdb"]
        assert facts.capabilities == harness.cloud.capabilities()
        assert harness.cloud.source_facts(ref).vm == vm

    def test_a_plain_vm_has_nothing_in_the_way(self, harness: Harness) -> None:
        facts = harness.cloud.source_facts(harness.make_vm([(SIZE, self.disk_format)], running=True))
        assert (facts.running_job, facts.managed_save, facts.tpm) == (None, False, False)
        assert (facts.passthrough, facts.snapshots, facts.shared_filesystems) == ((), (), ())
        for disk in facts.disks:
            assert (disk.chain_complete, disk.encrypted, disk.internal_snapshots) == (True, False, 0)
            assert (disk.stale_tracking, disk.foreign_tracking, disk.chain_shared_with) == ((), (), ())

    def test_facts_of_a_vm_that_is_not_there(self, harness: Harness) -> None:
        with pytest.raises(NotFound):
            harness.cloud.source_facts("no-such-vm")

    def test_the_clouds_clock_is_aware(self, harness: Harness) -> None:
        ref = harness.make_vm([(SIZE, self.disk_format)])
        for clock in (harness.cloud.source_facts(ref).clock, harness.cloud.target_facts().clock):
            if clock is not None:
                assert clock.tzinfo is not None
                assert abs((datetime.now(UTC) - clock).total_seconds()) < 3600

    def test_target_facts_name_what_exists(self, harness: Harness) -> None:
        vm = harness.cloud.compute.inspect(harness.make_vm([(SIZE, self.disk_format)]))
        facts = harness.cloud.target_facts()
        assert facts.cloud == harness.cloud.name
        assert facts.vm_names[vm.name] == vm.ref
        assert facts.macs[vm.nics[0].mac.lower()] == vm.name
        assert harness.pool in {pool.name for pool in facts.pools}
        assert harness.network in {network.name for network in facts.networks}
        assert vm.arch in facts.archs
        assert facts.can_create

    def test_leftovers_are_what_was_not_handed_over(self, harness: Harness, migration: str) -> None:
        target = self.target(harness, migration, self.moved_vm(harness))
        made = harness.cloud.compute.ensure_vm(target)
        told = " ".join(harness.cloud.target_facts().leftovers)
        assert made.name in told
        harness.cloud.compute.ensure_absent(made.ref, migration=migration)
        volume = target.disks[0].volume
        assert volume.name in " ".join(harness.cloud.target_facts().leftovers)
        harness.cloud.volumes.ensure_absent(volume.name, volume.pool, migration=migration)
        assert migration not in " ".join(harness.cloud.target_facts().leftovers)

    def test_close_twice_and_go_on(self, harness: Harness) -> None:
        ref = harness.make_vm([(SIZE, self.disk_format)])
        harness.cloud.close()
        harness.cloud.close()
        assert harness.cloud.compute.power(ref) is Power.OFF
