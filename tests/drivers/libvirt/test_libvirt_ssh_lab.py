"""A libvirt host through a real sshd: inventory, points and writers with nothing local; keys that do not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drivers.libvirt import LibvirtCloud
from labs.kvm import KvmLab
from tests.contract.blockio import read_point
from tests.contract.libvirt_harness import LibvirtHarness
from tests.contract.stream_harness import StreamHarness
from tests.drivers.libvirt.round_trip import round_trip
from tests.drivers.libvirt.ssh_server import SshServer
from whimbrel.errors import AuthFailed, Unavailable
from whimbrel.model.naming import point_key

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

Make = Callable[..., LibvirtHarness]


@pytest.fixture
def ssh(tmp_path: Path) -> Iterator[SshServer]:
    server = SshServer(tmp_path)
    server.start()
    yield server
    server.stop()


def test_a_vm_is_read_and_a_volume_written_over_ssh_and_tls(
    make_harness: Make, kvm_lab: KvmLab, ssh: SshServer, migration: str
) -> None:
    harness = make_harness(
        uri=ssh.uri(kvm_lab.cloud("a").socket),
        transport="tls",
        nbd_host="127.0.0.1",
        tls_dir=str(kvm_lab.client_tls_dir),
        server_tls_dir=str(kvm_lab.layout.tls / "server"),
    )
    for one in round_trip(harness, migration):
        assert (one.host, one.unix_path) == ("127.0.0.1", None)
        assert one.tls is not None
    assert any(vm.name.startswith("bare-") for vm in harness.cloud.compute.inventory())
    facts = harness.cloud.target_facts()
    assert facts.reachable
    assert facts.clock is None, "the clock of a remote host is not this one's"


def test_disks_of_a_stopped_vm_over_ssh_alone(kvm_lab: KvmLab, ssh: SshServer, migration: str) -> None:
    harness = StreamHarness(kvm_lab, uri=ssh.uri(kvm_lab.cloud("a").socket))
    try:
        ref = harness.make_vm([(4 << 20, "raw")])
        harness.guest_write(ref, "vda", 1_000_000, b"over ssh" * 10_000)
        point = harness.cloud.points.open(ref, ["vda"], key=point_key(migration, 1), migration=migration)
        assert read_point(point.disk("vda")) == harness.read_disk(ref, "vda")
    finally:
        harness.end()


def test_a_connection_that_breaks_is_opened_again(kvm_lab: KvmLab, ssh: SshServer) -> None:
    cloud = LibvirtCloud("far", uri=ssh.uri(kvm_lab.cloud("a").socket), transport="tcp")
    cloud.compute.inventory()
    cloud.close()
    ssh.stop()
    with pytest.raises(Unavailable):
        cloud.compute.inventory()
    ssh.start()
    cloud.compute.inventory()
    cloud.close()


def test_a_host_with_another_key_is_refused(kvm_lab: KvmLab, ssh: SshServer) -> None:
    ssh.trust("other-host")
    cloud = LibvirtCloud("far", uri=ssh.uri(kvm_lab.cloud("a").socket))
    with pytest.raises(AuthFailed) as refused:
        cloud.compute.inventory()
    assert "known_hosts" in refused.value.action
    assert "root@" not in str(refused.value)


def test_a_key_that_the_host_does_not_know_is_refused(kvm_lab: KvmLab, ssh: SshServer) -> None:
    cloud = LibvirtCloud("far", uri=ssh.uri(kvm_lab.cloud("a").socket, key="stranger"))
    with pytest.raises(AuthFailed) as refused:
        cloud.compute.inventory()
    assert "authorized_keys" in refused.value.action


def test_a_host_without_libvirt_is_unavailable(ssh: SshServer, tmp_path: Path) -> None:
    cloud = LibvirtCloud("far", uri=ssh.uri(tmp_path / "no-socket"))
    with pytest.raises(Unavailable):
        cloud.compute.inventory()
    assert not cloud.source_facts("any").reachable
