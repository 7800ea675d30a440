"""One OpenStack cloud of the lab: services, guest, storage keys, networks, faults."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from openstack.exceptions import HttpException

from labs.kvm.errors import LabError
from labs.kvm.processes import is_alive
from labs.openstack import CloudHandle, LabServer, OpenStackLab, boot

pytestmark = [pytest.mark.openstack, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cloud(openstack_lab: OpenStackLab) -> CloudHandle:
    return openstack_lab.cloud("a")


@pytest.fixture
def server(cloud: CloudHandle) -> Iterator[Callable[..., LabServer]]:
    made: list[LabServer] = []

    def make(name: str, number: int, **wishes: object) -> LabServer:
        made.append(boot(cloud, name, number, **wishes))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.remove()


def ping(ip: str) -> bool:
    return (
        subprocess.run(["busybox", "ping", "-c", "1", "-W", "3", ip], capture_output=True, check=False).returncode == 0
    )


def test_every_service_is_up_within_the_memory_promised(openstack_clouds: OpenStackLab) -> None:
    """Both clouds with what they share, also after an hour of tests."""
    states = openstack_clouds.status()
    assert [state.name for state in states if not state.healthy] == []
    assert (openstack_clouds.not_ready("a"), openstack_clouds.not_ready("b")) == ([], [])
    assert sum(state.memory_mib for state in states) < 6 * 1024


def test_bringing_it_up_again_changes_nothing(openstack_lab: OpenStackLab) -> None:
    before = {state.name: state.pid for state in openstack_lab.status()}
    openstack_lab.up()
    assert {state.name: state.pid for state in openstack_lab.status()} == before


def test_a_guest_writes_on_rbd_and_answers(
    server: Callable[..., LabServer], cloud: CloudHandle, openstack_lab: OpenStackLab
) -> None:
    guest = server("writes", 20)
    guest.wait_console("^WB UP boot=1")
    assert guest.command("ping") == "pong"
    assert guest.command("macs") == guest.address.mac
    assert ping(guest.address.ip)
    guest.wait_console("WBREC1 kind=run boot=1 n=5 ")
    last = int(guest.command("stop-writing"))
    on_disk, said = guest.records(), guest.acknowledged()
    assert on_disk.last == last >= 5
    assert (on_disk.lost(said), on_disk.gaps(), on_disk.bad_slots) == ([], [], ())
    with closing(cloud.connect(member=True)) as connection:
        assert f"n={last} " in connection.compute.get_server_console_output(guest.id)["output"]
        guest.command("start-writing")
        connection.compute.stop_server(guest.id)
        found = connection.compute.get_server(guest.id)
        connection.compute.wait_for_server(found, "SHUTOFF", interval=0.5, wait=60)
        stopped = int(guest.wait_console(r"^WB STOPPED boot=1 last=(\d+)")[1])
        assert guest.records().last == stopped
        connection.compute.start_server(guest.id)
    guest.wait_console(rf"^WB UP boot=2 .*resumed={stopped}\b")
    assert guest.command("boot-count") == "2"


def test_the_isolated_network_is_isolated(server: Callable[..., LabServer], cloud: CloudHandle) -> None:
    guest = server("drill", 21, network=cloud.drill_network)
    guest.wait_console(f"^WB NIC eth0 mac={guest.address.mac} ip={guest.address.ip}")
    assert not ping(guest.address.ip)
    with pytest.raises(LabError, match="does not answer"):
        guest.command("ping", timeout_s=3)


def rbd(cloud: CloudHandle, *words: str) -> subprocess.CompletedProcess[str]:
    command = ["rbd", "--conf", str(cloud.ceph_conf), "--id", cloud.ceph_user, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_clouds_key_opens_its_own_pool_and_the_shared_one(cloud: CloudHandle) -> None:
    for pool in (cloud.pool, cloud.shared_pool):
        assert rbd(cloud, "create", "--size", "1M", f"{pool}/probe").returncode == 0
        assert rbd(cloud, "rm", "--no-progress", f"{pool}/probe").returncode == 0
    refused = rbd(cloud, "ls", "volumes-b")
    assert refused.returncode != 0
    assert "Operation not permitted" in refused.stderr
    assert cloud.keyring.stat().st_mode & 0o077 == 0


def test_a_member_is_refused_what_needs_an_admin_and_what_is_above_quota(cloud: CloudHandle) -> None:
    with closing(cloud.connect(member=True)) as connection:
        volume = {"host": cloud.shared_backend, "ref": {"source-name": "x"}, "volume_type": cloud.shared_type}
        refused_by_role = connection.block_storage.post(
            "/manageable_volumes", json={"volume": volume}, microversion="3.8"
        )
        assert refused_by_role.status_code == 403
        with pytest.raises(HttpException) as refused:
            connection.block_storage.create_volume(size=10_000, volume_type=cloud.volume_type)
        assert refused.value.response is not None
        assert refused.value.response.status_code == 413


@pytest.mark.parametrize("service", ["a-nova-api", "a-cinder-volume"])
def test_a_service_can_be_stopped_killed_and_started(openstack_lab: OpenStackLab, service: str) -> None:
    def state() -> tuple[int | None, bool]:
        return next((one.pid, one.healthy) for one in openstack_lab.status() if one.name == service)

    first, _ = state()
    openstack_lab.stop(service)
    assert state() == (None, False)
    assert first is not None
    assert not is_alive(first)
    openstack_lab.start(service)
    assert state()[1]
    dead = openstack_lab.kill(service)
    assert not is_alive(dead)
    with pytest.raises(LabError, match="does not run"):
        openstack_lab.kill(service)
    openstack_lab.start(service)
    assert state()[1]


def test_a_service_that_cannot_start_names_its_log(openstack_lab: OpenStackLab) -> None:
    conf = openstack_lab.layout.cloud("a").etc("cinder") / "cinder.conf"
    good = conf.read_text()
    openstack_lab.stop("a-cinder-scheduler")
    conf.write_text("[DEFAULT]\ntransport_url = nonsense\n")
    try:
        with pytest.raises(LabError, match=r"a-cinder-scheduler ended.*logs/a-cinder-scheduler\.log"):
            openstack_lab.start("a-cinder-scheduler")
    finally:
        conf.write_text(good)
        openstack_lab.start("a-cinder-scheduler")
