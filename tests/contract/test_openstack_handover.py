"""The OpenStack driver passes the contract suite of handovers, between two clouds over one Ceph pool."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from labs.openstack import OpenStackLab
from tests.contract.openstack_sharing import OpenStackSharing
from tests.contract.sharing_harness import SharingHarness
from tests.contract.suites.handover import HandoverContract

pytestmark = [pytest.mark.openstack, pytest.mark.timeout(600)]


class TestOpenStackHandover(HandoverContract):
    disk_format = "raw"

    @pytest.fixture
    def sharing(self, openstack_clouds: OpenStackLab) -> Iterator[SharingHarness]:
        made = OpenStackSharing(openstack_clouds)
        yield made
        made.end()


class TestOpenStackHandoverByTransfer(TestOpenStackHandover):
    """The same as a plain member, with an administrator's entry of another project beside it."""

    @pytest.fixture
    def sharing(self, openstack_clouds: OpenStackLab) -> Iterator[SharingHarness]:
        made = OpenStackSharing(openstack_clouds, admin_apart=True)
        yield made
        assert [one for one in (*made.a._ids(), *made.b._ids()) if one.startswith("of the admin")] == []
        made.end()
