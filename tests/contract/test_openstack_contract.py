"""The OpenStack driver passes the contract suites on a real cloud: Nova, Cinder and Neutron over Ceph."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from labs.openstack import OpenStackLab
from tests.contract.harness import Harness, Lack
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


class _OpenStack(ContractSuite):
    disk_format: DiskFormat = "raw"

    @pytest.fixture
    def harness(self, openstack_lab: OpenStackLab) -> Iterator[Harness]:
        harness = OpenStackHarness(openstack_lab.cloud("a"))
        yield harness
        harness.end()


class TestOpenStackCompute(_OpenStack, ComputeContract):
    pass


class TestOpenStackVolume(_OpenStack, VolumeContract):
    pass


class TestOpenStackPoint(_OpenStack, PointInTimeContract):
    pass


class TestOpenStackTrackedPoint(_OpenStack, TrackedPointContract):
    pass


class TestOpenStackNetwork(_OpenStack, NetworkContract):
    pass


class TestOpenStackGuest(_OpenStack, GuestContract):
    pass


class TestOpenStackFacts(_OpenStack, CloudFactsContract):
    pass


def test_what_is_left_out_does_not_grow_unseen() -> None:
    assert OpenStackHarness.lacks == {
        Lack.GUEST_STOPS,
        Lack.QUOTA,
        Lack.TWO_FORMATS,
        Lack.AGENT,
        Lack.FOREIGN_TOKENS,
        Lack.FOREIGN_JOBS,
        Lack.AUTOSTART,
        Lack.OWN_IDS,
    }
