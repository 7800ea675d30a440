"""A live point, a live delta, a cold delta and a writer through one harness."""

from __future__ import annotations

from tests.contract.blockio import apply_changes, read_point, write_point
from tests.contract.libvirt_harness import LibvirtHarness
from whimbrel.model.endpoint import NbdEndpoint
from whimbrel.model.naming import point_key, volume_name, writer_key
from whimbrel.model.point import DiskPoint
from whimbrel.model.vm import VolumeSpec

SIZE = 2 << 20


def endpoint(disk: DiskPoint) -> NbdEndpoint:
    assert isinstance(disk.endpoint, NbdEndpoint)
    return disk.endpoint


def round_trip(harness: LibvirtHarness, migration: str) -> list[NbdEndpoint]:
    """A live point, a live delta, a cold delta and a writer, bytes compared; returns the endpoints used."""
    points = harness.cloud.points
    ref = harness.make_vm([(SIZE, "qcow2")], running=True)
    harness.guest_write(ref, "vda", 65536, b"first" * 100)
    one = points.open(ref, ["vda"], key=point_key(migration, 1), migration=migration)
    used = [endpoint(one.disk("vda"))]
    copy = read_point(one.disk("vda"))
    points.close(ref, one.key, migration=migration)
    harness.guest_write(ref, "vda", 300_000, b"second" * 100)
    two = points.open(ref, ["vda"], key=point_key(migration, 2), since=one.token, migration=migration)
    used.append(endpoint(two.disk("vda")))
    copy = apply_changes(copy, two.disk("vda"))
    points.close(ref, two.key, migration=migration)
    harness.guest_write(ref, "vda", 900_000, b"third" * 100)
    harness.cloud.compute.force_off(ref)
    three = points.open(ref, ["vda"], key=point_key(migration, 3), since=two.token, migration=migration)
    used.append(endpoint(three.disk("vda")))
    copy = apply_changes(copy, three.disk("vda"))
    assert copy == harness.read_disk(ref, "vda")
    points.close(ref, three.key, migration=migration)
    spec = VolumeSpec(
        name=volume_name("vm", "vda", migration), pool="default", size_bytes=SIZE, format="raw", migration=migration
    )
    volume = harness.cloud.volumes.ensure_volume(spec)
    session = harness.cloud.volumes.open_writer(writer_key(migration), {"vda": volume}, migration=migration)
    assert harness.fresh_cloud().volumes.open_writer(session.key, {"vda": volume}, migration=migration) == session
    used.append(endpoint(session.disk("vda")))
    write_point(session.disk("vda"), 0, copy)
    harness.cloud.volumes.close_writer(session.key)
    assert harness.read_volume(volume) == copy
    return used
