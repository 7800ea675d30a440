"""A VM is made of the flavor, in the zone and in the server group that the plan names: what Nova says of it after."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from labs.openstack import OpenStackLab
from tests.contract.harness import Harness
from tests.contract.openstack_harness import OpenStackHarness, patiently
from tests.contract.suites.suite import ContractSuite
from whimbrel.errors import NotFound
from whimbrel.model.vm import DiskFormat, TargetVm

pytestmark = [pytest.mark.openstack, pytest.mark.timeout(300)]


class TestPlacement(ContractSuite):
    disk_format: DiskFormat = "raw"

    @pytest.fixture
    def harness(self, openstack_lab: OpenStackLab) -> Iterator[OpenStackHarness]:
        harness = OpenStackHarness(openstack_lab.cloud("a"))
        yield harness
        harness.end()

    @pytest.fixture
    def group(self, harness: OpenStackHarness, migration: str) -> Iterator[str]:
        name = f"spread-{migration}"
        made = harness.conn.compute.create_server_group(name=name, policy="soft-anti-affinity")
        yield name
        harness.conn.compute.delete_server_group(made.id)

    def wanted(self, harness: Harness, migration: str, **changes: str) -> TargetVm:
        return self.target(harness, migration, self.moved_vm(harness)).model_copy(update=changes)

    def test_flavor_zone_and_group_are_the_plans(self, harness: OpenStackHarness, migration: str, group: str) -> None:
        facts = harness.cloud.target_facts()
        (zone,) = facts.zones
        (seen,) = (one for one in facts.groups if one.name == group)
        assert (seen.policy, seen.members) == ("soft-anti-affinity", 0)
        assert seen.members_max == 10
        vm = self.wanted(harness, migration, zone=zone, group=group)
        fitting = harness.cloud.compute.inspect(patiently(lambda: harness.cloud.compute.ensure_vm(vm)).ref).size_name
        other = next(size for size in facts.sizes if size.name != fitting and size.memory_bytes <= 512 << 20)
        vm = vm.model_copy(update={"size": other.name})
        ref = patiently(lambda: harness.cloud.compute.ensure_vm(vm)).ref
        assert harness.cloud.compute.inspect(ref).size_name == other.name
        patiently(lambda: harness.cloud.compute.start(ref))
        made = harness.cloud.compute.inspect(ref)
        assert (made.size_name, made.vcpus, made.memory_bytes) == (other.name, other.vcpus, other.memory_bytes)
        (server,) = (one for one in harness.conn.compute.servers() if one.name == vm.name)
        assert server.availability_zone == zone
        found = harness.conn.compute.find_server_group(group)
        assert found.member_ids == [server.id]
        (seen,) = (one for one in harness.cloud.target_facts().groups if one.name == group)
        assert seen.members == 1

    def test_what_is_not_there_is_told_before_anything_is_made(self, harness: Harness, migration: str) -> None:
        for changes in ({"size": "no-such-flavor"}, {"group": "no-such-group"}):
            with pytest.raises(NotFound, match="no-such"):
                harness.cloud.compute.ensure_vm(self.wanted(harness, migration, **changes))
        assert list(harness.cloud.compute.owned(migration)) == []
