"""Both OpenStack clouds of the lab: separate, and yet one array and one wire between them."""

from __future__ import annotations

from contextlib import closing

import pytest

from labs.openstack import OpenStackLab, boot
from labs.openstack.server import LabServer

pytestmark = [pytest.mark.openstack, pytest.mark.timeout(900)]


def test_both_clouds_within_the_memory_promised(openstack_clouds: OpenStackLab) -> None:
    states = openstack_clouds.status()
    assert [state.name for state in states if not state.healthy] == []
    assert openstack_clouds.not_ready("a") == openstack_clouds.not_ready("b") == []
    assert sum(state.memory_mib for state in states) < 6 * 1024


def test_the_clouds_know_nothing_of_each_other(openstack_clouds: OpenStackLab) -> None:
    seen = []
    for name in ("a", "b"):
        with closing(openstack_clouds.cloud(name).connect()) as connection:
            ids = {project.id for project in connection.identity.projects()}  # type: ignore[union-attr]
            ids |= {network.id for network in connection.network.networks()}
            ids |= {image.id for image in connection.image.images()}
            seen.append(ids)
    assert all(len(ids) >= 5 for ids in seen)
    assert not seen[0] & seen[1]


def test_a_volume_of_the_shared_pool_moves_with_its_guest_and_address(openstack_clouds: OpenStackLab) -> None:
    """By hand what the dual-attach mode will do: the pool is one array, and the wire is one network."""
    a, b = openstack_clouds.cloud("a"), openstack_clouds.cloud("b")
    guest = boot(a, "moves", 30, shared=True)
    adopted, moved = None, None
    with closing(a.connect()) as here, closing(b.connect()) as there, closing(b.connect(member=True)) as tenant:
        try:
            guest.wait_console("WBREC1 kind=run boot=1 n=3 ")
            here.compute.stop_server(guest.id)
            here.compute.wait_for_server(here.compute.get_server(guest.id), "SHUTOFF", interval=0.5, wait=60)
            last = int(guest.wait_console(r"^WB STOPPED boot=1 last=(\d+)")[1])
            acknowledged = guest.acknowledged()
            here.compute.delete_server(guest.id)
            here.compute.wait_for_delete(here.compute.get_server(guest.id), interval=0.5, wait=60)
            volumes = here.block_storage
            volumes.wait_for_status(volumes.get_volume(guest.volume_id), "available", interval=0.5, wait=60)
            volumes.post(f"/volumes/{guest.volume_id}/action", json={"os-unmanage": {}})

            def known() -> bool:
                return volumes.find_volume(guest.volume_id) is not None

            openstack_clouds.wait_until("unmanaged", lambda: not known(), timeout_s=60)
            body = {
                "name": "moves",
                "host": b.shared_backend,
                "ref": {"source-name": f"volume-{guest.volume_id}"},
                "volume_type": b.shared_type,
                "bootable": True,
            }
            answer = there.block_storage.post("/manageable_volumes", json={"volume": body}, microversion="3.8")
            assert answer.status_code == 202, answer.text
            adopted = answer.json()["volume"]["id"]
            managed = there.block_storage.get_volume(adopted)
            there.block_storage.wait_for_status(managed, "available", ["error"], interval=0.5, wait=60)
            transfer = there.block_storage.create_transfer(volume_id=adopted, name="moves")
            tenant.block_storage.accept_transfer(transfer.id, transfer.auth_key)
            wire = tenant.network.find_network(b.network, ignore_missing=False)
            port = tenant.network.create_port(
                network_id=wire.id, mac_address=guest.address.mac, fixed_ips=[{"ip_address": guest.address.ip}]
            )
            disk = {"uuid": adopted, "source_type": "volume", "destination_type": "volume", "boot_index": 0}
            server = tenant.compute.create_server(
                name="moves",
                flavor_id=tenant.compute.find_flavor(b.flavors[0], ignore_missing=False).id,
                networks=[{"port": port.id}],
                block_device_mapping_v2=[disk],
            )
            moved = LabServer(b, server.id, adopted, port.id, guest.address, b.shared_pool)
            tenant.compute.wait_for_server(server, interval=0.5, wait=120)
            moved.wait_console(rf"^WB UP boot=2 .*resumed={last}\b")
            assert moved.command("boot-count") == "2"  # over the wire, from where cloud a answered before
            moved.command("stop-writing")
            assert moved.records().lost(acknowledged) == []
        finally:
            if moved is not None:
                moved.remove()
            if adopted is None:
                guest.remove()
            else:
                here.network.delete_port(guest.port_id)


@pytest.mark.slow
def test_data_survives_a_restart_of_everything(openstack_clouds: OpenStackLab) -> None:
    cloud = openstack_clouds.cloud("a")
    guest = boot(cloud, "stays", 31)
    try:
        guest.wait_console("WBREC1 kind=run boot=1 n=3 ")
        last = int(guest.command("stop-writing"))
        openstack_clouds.down(keep_data=True)
        assert [state.name for state in openstack_clouds.status() if state.pid is not None] == []
        openstack_clouds.up()
        assert guest.records().last == last
        with closing(cloud.connect(member=True)) as connection:
            openstack_clouds.wait_until(
                "nova noticed the power loss", lambda: connection.compute.get_server(guest.id).status == "SHUTOFF", 120
            )
            connection.compute.start_server(guest.id)
        guest.wait_console(rf"^WB UP boot=2 .*resumed={last}\b")
    finally:
        guest.remove()
