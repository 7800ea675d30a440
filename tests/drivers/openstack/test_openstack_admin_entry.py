"""An administrator's entry beside a plain member's: what it may, what it needs, and what is told when it is wrong."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from openstack.exceptions import HttpException

from drivers.openstack import OpenStackCloud
from labs.openstack import OpenStackLab
from tests.contract.openstack_sharing import OpenStackSharing
from tests.drivers.openstack.accounts import seen_by
from tests.drivers.openstack.handing import Handing, go
from whimbrel.errors import InvalidPlan, PermissionDenied, QuotaExceeded
from whimbrel.model.naming import marker_name, migration_id

pytestmark = [pytest.mark.openstack, pytest.mark.timeout(600)]


@pytest.fixture
def sharing(openstack_clouds: OpenStackLab) -> Iterator[OpenStackSharing]:
    made = OpenStackSharing(openstack_clouds, admin_apart=True)
    yield made
    made.end()


@pytest.fixture
def marker() -> str:
    return marker_name(migration_id("admin", secrets.token_hex(8)))


def seen(lab: OpenStackLab, cloud: str, admin: str | None) -> OpenStackCloud:
    return seen_by(lab.cloud(cloud), f"{cloud}-member", admin_clouds_yaml_name=admin)


def test_a_member_alone_is_refused_and_with_an_administrator_is_not(
    openstack_clouds: OpenStackLab, marker: str
) -> None:
    alone, backed = seen(openstack_clouds, "a", None), seen(openstack_clouds, "a", "a")
    assert alone.handover is not None
    assert backed.handover is not None
    alone.handover.write_marker("shared", marker, "here")
    try:
        with pytest.raises(PermissionDenied):
            alone.handover.read_marker("shared", marker)
        assert backed.handover.read_marker("shared", marker) == "here"
    finally:
        alone.handover.remove_marker("shared", marker)
        alone.close()
        backed.close()


def test_an_administrator_of_another_cloud(openstack_clouds: OpenStackLab) -> None:
    cloud = seen(openstack_clouds, "a", "b")
    assert cloud.handover is not None
    try:
        with pytest.raises(InvalidPlan, match="different clouds"):
            cloud.handover.look([], {})
    finally:
        cloud.close()


def test_the_project_that_volumes_pass_through_needs_room(sharing: OpenStackSharing) -> None:
    """For a moment they are there: told before anything is stopped."""
    handing = Handing(sharing, disks=2)
    admin: Any = sharing.b.lab.connect()
    project, used = admin.current_project_id, len(list(admin.block_storage.volumes()))
    admin.block_storage.update_quota_set(project, volumes=used + 1)
    try:
        with pytest.raises(QuotaExceeded, match="volumes"):
            handing.activities.look(handing.wanted)
        admin.block_storage.update_quota_set(project, volumes=used + 2)
        assert handing.activities.look(handing.wanted).disks == handing.wanted.disks
    finally:
        admin.block_storage.revert_quota_set(project)
        admin.close()


def test_volumes_arrive_in_the_tenants_project(sharing: OpenStackSharing) -> None:
    handing = Handing(sharing, disks=1)
    go(handing.forth())
    handing.check()
    (volume,) = [sharing.b.conn.block_storage.get_volume(disk.volume.location) for disk in handing.adopted]
    assert volume.name == f"{handing.vm.name}-vda"
    assert "of the admin" not in " ".join(sharing.b._ids() - sharing.b._before)
    go(handing.confirm())
    handing.moved()


def test_the_tenant_cannot_take_an_administrators_lock_away(sharing: OpenStackSharing) -> None:
    handing = Handing(sharing, disks=1)
    handing.fence()
    with pytest.raises(HttpException):
        sharing.a.conn.compute.unlock_server(handing.vm.ref)
    assert not sharing.a.start_by_hand(handing.vm.ref)
    handing.restore()
    handing.at_home()
