"""The OpenStack driver passes the contract suites with the role ``member`` alone, on networks of its own project."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from labs.openstack import OpenStackLab
from tests.contract.harness import Harness
from tests.contract.openstack_harness import OpenStackHarness
from tests.contract.suites import (
    CloudFactsContract,
    ComputeContract,
    GuestContract,
    NetworkContract,
    PointInTimeContract,
    TrackedPointContract,
    VolumeContract,
)
from tests.contract.suites.suite import ContractSuite
from whimbrel.model.vm import DiskFormat

pytestmark = [pytest.mark.openstack, pytest.mark.timeout(600)]


class MemberHarness(OpenStackHarness):
    """The same with the lab's plain member."""

    account = "-member"


class _Member(ContractSuite):
    disk_format: DiskFormat = "raw"

    @pytest.fixture
    def harness(self, openstack_lab: OpenStackLab) -> Iterator[Harness]:
        harness = MemberHarness(openstack_lab.cloud("a"))
        assert set(harness.cloud.target_facts().access.roles) == {"member", "reader"}
        yield harness
        harness.end()


class TestMemberCompute(_Member, ComputeContract):
    pass


class TestMemberVolume(_Member, VolumeContract):
    pass


class TestMemberPoint(_Member, PointInTimeContract):
    pass


class TestMemberTrackedPoint(_Member, TrackedPointContract):
    pass


class TestMemberNetwork(_Member, NetworkContract):
    pass


class TestMemberGuest(_Member, GuestContract):
    pass


class TestMemberFacts(_Member, CloudFactsContract):
    pass
