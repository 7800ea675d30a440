"""What keeps mover servers from being made, on the lab: told before, and cleaned up after."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivers.openstack.mover import MoverSettings
from labs.openstack import CloudHandle, OpenStackLab
from tests.contract.openstack_harness import patiently
from tests.contract.openstack_mover_harness import MoverHarness, mover_settings
from tests.drivers.openstack.accounts import seen_by
from whimbrel.errors import InvalidPlan, NotFound, QuotaExceeded
from whimbrel.model.naming import migration_id, volume_name, writer_key
from whimbrel.model.vm import VolumeRef, VolumeSpec

pytestmark = [pytest.mark.openstack, pytest.mark.timeout(600)]
SIZE = 2 << 20


@pytest.fixture
def lab(openstack_lab: OpenStackLab) -> CloudHandle:
    return openstack_lab.cloud("a")


@pytest.fixture
def harness(lab: CloudHandle) -> Iterator[MoverHarness]:
    made = MoverHarness(lab)
    yield made
    made.end()


def lacks(lab: CloudHandle, settings: MoverSettings) -> tuple[str, ...]:
    cloud = seen_by(lab, "a-member", images=None, pools=None, mover=settings)
    try:
        told = cloud.target_facts().access.mover_lacks
        assert cloud.capabilities().roles == {"source", "target"}
        return told
    finally:
        cloud.close()


def test_what_is_missing_is_told(lab: CloudHandle, tmp_path: Path) -> None:
    good = mover_settings(lab)
    assert lacks(lab, good) == ()
    nothing = dataclasses.replace(
        good, image="no-image", flavor="no-flavor", network="no-net", security_group="no-group", tls_dir=str(tmp_path)
    )
    told = " | ".join(lacks(lab, nothing))
    for words in ("no-image", "no-flavor", "0 networks no-net", "no-group", f"client-key.pem not in {tmp_path}"):
        assert words in told
    assert "local disk" in lacks(lab, dataclasses.replace(good, flavor=lab.flavors[-1]))[0]


def test_a_session_takes_no_more_disks_than_a_server(harness: MoverHarness) -> None:
    settings = dataclasses.replace(mover_settings(harness.lab), max_disks=1)
    cloud = seen_by(harness.lab, "a-member", images=None, pools=None, mover=settings)
    migration = migration_id("mover", secrets.token_hex(4))
    volumes = {disk: volume(harness, migration, disk) for disk in ("vda", "vdb")}
    with pytest.raises(InvalidPlan, match="too many"):
        cloud.volumes.open_writer(writer_key(migration), volumes, migration=migration)
    cloud.volumes.close_writer(writer_key(migration))
    cloud.close()


def test_a_server_that_no_host_takes_is_told_and_deleted(harness: MoverHarness) -> None:
    admin = harness.lab.connect()
    flavor = admin.compute.create_flavor(name=f"mover5-{secrets.token_hex(3)}", ram=256, vcpus=1, disk=90_000)
    settings = dataclasses.replace(mover_settings(harness.lab), flavor=flavor.name)
    cloud = seen_by(harness.lab, "a-member", images=None, pools=None, mover=settings)
    migration = migration_id("mover", secrets.token_hex(4))
    key = writer_key(migration)
    try:
        volumes = {"vda": volume(harness, migration, "vda")}
        with pytest.raises(QuotaExceeded, match="No valid host"):
            patiently(lambda: cloud.volumes.open_writer(key, volumes, migration=migration))
        patiently(lambda: cloud.volumes.close_writer(key))
        assert key not in " ".join(cloud.target_facts().leftovers)
        assert [port.name for port in harness.conn.network.ports() if key in port.name] == []
        volumes["vda"] = volumes["vda"].model_copy(update={"location": "f" * 8})
        with pytest.raises(NotFound):
            cloud.volumes.open_writer(key, volumes, migration=migration)
    finally:
        cloud.close()
        admin.compute.delete_flavor(flavor.id)
        admin.close()


def test_facts_of_a_vm_behind_a_mover(harness: MoverHarness) -> None:
    facts = harness.cloud.source_facts(harness.make_vm([(SIZE, "raw"), (SIZE, "qcow2")]))
    assert facts.limits.mover is not None
    assert (facts.limits.mover.vcpus, facts.limits.mover.pools_reached) == (1, (harness.lab.shared_type,))
    assert [disk.writable for disk in facts.disks] == [False, True]
    assert facts.vm is not None
    assert [disk.trackable for disk in facts.vm.disks] == [False, True]
    assert [facts.limits.served(disk.pool) for disk in facts.vm.disks] == [True, False]
    assert facts.rebuild_blockers == ()
    assert facts.access.mover_lacks == ()


def volume(harness: MoverHarness, migration: str, disk: str) -> VolumeRef:
    spec = VolumeSpec(
        name=volume_name("guest", disk, migration),
        pool=harness.pool,
        size_bytes=SIZE,
        format="raw",
        migration=migration,
    )
    return harness.cloud.volumes.ensure_volume(spec)
