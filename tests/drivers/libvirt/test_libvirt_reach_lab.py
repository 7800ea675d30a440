"""Ways to the bytes and to the daemon: TLS, taken ports, connections that fail, rights that are missing, full pools."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable

import pytest

from drivers.libvirt import LibvirtCloud
from drivers.libvirt.reach import Reach
from labs.kvm import KvmLab
from tests.contract.blockio import opened, read_device, write_point
from tests.contract.libvirt_harness import LibvirtHarness
from tests.drivers.libvirt.round_trip import endpoint, round_trip
from whimbrel.errors import NotFound, PermissionDenied, QuotaExceeded, Unavailable, WhimbrelError
from whimbrel.model.naming import point_key, volume_name, writer_key
from whimbrel.model.vm import VolumeSpec

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

SIZE = 2 << 20
Make = Callable[..., LibvirtHarness]


@pytest.mark.parametrize("remote", [False, True], ids=["local daemon", "daemon over TLS"])
def test_everything_over_tls(make_harness: Make, kvm_lab: KvmLab, migration: str, remote: bool) -> None:
    harness = make_harness(
        uri=kvm_lab.tls_uri("a") if remote else None,
        transport="tls",
        nbd_host="127.0.0.1",
        tls_dir=str(kvm_lab.client_tls_dir),
        server_tls_dir=str(kvm_lab.layout.tls / "server"),
    )
    for one in round_trip(harness, migration):
        assert one.tls is not None
        assert one.host == "127.0.0.1"


def test_without_certificate_nothing_is_read(make_harness: Make, kvm_lab: KvmLab, migration: str) -> None:
    harness = make_harness(
        transport="tls",
        nbd_host="127.0.0.1",
        tls_dir=str(kvm_lab.client_tls_dir),
        server_tls_dir=str(kvm_lab.layout.tls / "server"),
    )
    ref = harness.make_vm([(SIZE, "qcow2")], running=True)
    point = harness.cloud.points.open(ref, ["vda"], key=point_key(migration, 1), migration=migration)
    plain = endpoint(point.disk("vda")).model_copy(update={"tls": None})
    with pytest.raises(WhimbrelError), opened(plain) as device:
        read_device(device, 0, 512)


def test_a_taken_port_is_passed_over(make_harness: Make, kvm_lab: KvmLab, migration: str) -> None:
    harness = make_harness(transport="tcp", nbd_host="127.0.0.1")
    reach = Reach(transport="tcp", runtime_dir="", nbd_host="127.0.0.1", salt=kvm_lab.uri("a"))
    keys = [*(point_key(migration, serial) for serial in (1, 2, 3)), writer_key(migration)]
    # Two keys may begin with the same port, and somebody else may have one already: it is taken all the same.
    taken = {next(reach.candidates(key)).port for key in keys}
    blockers: list[socket.socket] = []
    for port in taken:
        with contextlib.suppress(OSError):
            blockers.append(socket.create_server(("127.0.0.1", port)))
    try:
        used = {one.port for one in round_trip(harness, migration)}
    finally:
        for blocker in blockers:
            blocker.close()
    assert not used & taken


def test_the_daemon_over_tls(kvm_lab: KvmLab) -> None:
    cloud = LibvirtCloud("lab", uri=kvm_lab.tls_uri("a"), transport="tcp")
    assert cloud.capabilities().live_points
    cloud.close()


@pytest.mark.parametrize(
    "uri",
    [
        "qemu+unix:///system?socket=/nowhere/libvirt-sock",
        "qemu+tcp://127.0.0.1:9/system",
        "qemu+tcp://no-such-host.invalid/system",
    ],
)
def test_a_daemon_that_is_not_there_is_unavailable(uri: str) -> None:
    cloud = LibvirtCloud("lab", uri=uri)
    with pytest.raises(Unavailable):
        cloud.compute.inventory()
    told = cloud.target_facts()
    assert (told.reachable, cloud.source_facts("x").reachable) == (False, False)
    assert told.unreachable_why
    cloud.close()


def test_a_host_that_answers_nothing_is_given_up(kvm_lab: KvmLab) -> None:
    from drivers.libvirt.connection import Connection

    with socket.create_server(("127.0.0.1", 0)) as mute:
        connection = Connection(f"qemu+tcp://127.0.0.1:{mute.getsockname()[1]}/system", open_timeout_s=1.0)
        begun = time.monotonic()
        with pytest.raises(Unavailable), connection.using("trying"):
            pass
        assert time.monotonic() - begun < 60


def test_a_read_only_connection_may_look_only(harness: LibvirtHarness) -> None:
    ref = harness.make_vm([(SIZE, "qcow2")])
    cloud = harness.fresh_cloud()
    looking = LibvirtCloud("lab", uri=cloud._connection.uri, read_only=True)
    assert looking.compute.inspect(ref).ref == ref
    assert looking.target_facts().can_create is False
    with pytest.raises(PermissionDenied):
        looking.compute.start(ref)
    looking.close()


def test_a_full_pool_has_no_room(harness: LibvirtHarness, kvm_lab: KvmLab, migration: str) -> None:
    pool = kvm_lab.add_small_pool("a", 2 << 20)
    filler = kvm_lab.pool_path("a", "small") / "filler"
    filler.write_bytes(bytes((2 << 20) - 65536))
    spec = VolumeSpec(
        name=volume_name("vm", "vda", migration), pool=pool, size_bytes=1 << 20, format="raw", migration=migration
    )
    try:
        with pytest.raises(QuotaExceeded):
            harness.cloud.volumes.ensure_volume(spec)
        with pytest.raises(QuotaExceeded):
            harness.cloud.volumes.ensure_volume(spec.model_copy(update={"size_bytes": 1 << 30}))
        filler.unlink()
        volume = harness.cloud.volumes.ensure_volume(spec)
        # tmpfs knows no O_DIRECT on older kernels: the session must fall back to the page cache by itself.
        session = harness.cloud.volumes.open_writer(writer_key(migration), {"vda": volume}, migration=migration)
        write_point(session.disk("vda"), 0, b"x" * 4096)
        harness.cloud.volumes.close_writer(session.key)
        harness.cloud.volumes.ensure_absent(volume.name, pool, migration=migration)
        assert list(harness.cloud.volumes.owned(migration)) == []
    finally:
        filler.unlink(missing_ok=True)


def test_a_pool_that_is_not_active_is_named(harness: LibvirtHarness, kvm_lab: KvmLab, migration: str) -> None:
    kvm_lab.add_small_pool("a", 2 << 20)
    pool = harness.conn.storagePoolLookupByName("small")
    pool.destroy()
    name = volume_name("vm", "vda", migration)
    try:
        assert not {told.name: told for told in harness.cloud.volumes.pools()}["small"].active
        with pytest.raises(NotFound) as missing:
            harness.cloud.volumes.ensure_absent(name, "small", migration=migration)
        assert "not active" in missing.value.message
    finally:
        pool.create()
