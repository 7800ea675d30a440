"""Which server a ref has become: remembered, and never believed without looking at it. Without a cloud."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from openstack.block_storage.v3.volume import Volume
from openstack.compute.v2.server import Server
from openstack.exceptions import NotFoundException
from openstack.test import fakes

from drivers.openstack import marks
from drivers.openstack.connection import Connection
from drivers.openstack.guest import OpenStackGuest
from drivers.openstack.inventory import AnnouncedDisk, AnnouncedVm
from drivers.openstack.servers import Servers
from whimbrel.errors import NotFound

REF = "volume-1"


class Nova:
    """Servers by id, and a list of what it was asked."""

    def __init__(self) -> None:
        self.there: dict[str, Any] = {}
        self.asked: list[str] = []

    def add(self, **values: Any) -> Any:
        made = fakes.generate_fake_resource(Server, **{"status": "ACTIVE", "metadata": {}, **values})
        self.there[made.id] = made
        return made

    def get_server(self, server: str) -> Any:
        self.asked.append(server)
        if server not in self.there:
            raise NotFoundException(http_status=404)
        return self.there[server]

    def get_server_console_output(self, server: str, length: int) -> dict[str, str]:
        if server not in self.there:
            raise NotFoundException(http_status=404)
        return {"output": f"console of {server}"[-length * 80 :]}

    def servers(self) -> list[Any]:
        self.asked.append("all")
        return [*self.there.values()]


@pytest.fixture
def nova() -> Nova:
    return Nova()


@pytest.fixture
def volumes() -> list[Any]:
    return []


@pytest.fixture
def servers(nova: Nova, volumes: list[Any]) -> Servers:
    connection = Connection("nowhere")
    connection._made = SimpleNamespace(compute=nova, block_storage=SimpleNamespace(volumes=lambda: volumes))
    return Servers(connection)


def test_a_server_is_asked_for_by_itself(nova: Nova, servers: Servers) -> None:
    made = nova.add()
    for _ in range(2):
        assert servers.get(made.id) is made
    assert nova.asked == [made.id] * 2


def test_what_a_ref_has_become_is_looked_for_once(nova: Nova, servers: Servers) -> None:
    made = nova.add(metadata={marks.REF: REF})
    for _ in range(3):
        assert servers.get(REF) is made
    assert nova.asked == [REF, "all", made.id, made.id]


def test_a_server_that_was_made_anew_is_found(nova: Nova, servers: Servers) -> None:
    first = nova.add(metadata={marks.REF: REF})
    assert servers.get(REF) == first
    del nova.there[first.id]
    with pytest.raises(NotFound):
        servers.get(REF)
    second = nova.add(metadata={marks.REF: REF})
    assert servers.get(REF) is second


def test_a_server_that_is_another_vm_now(nova: Nova, servers: Servers) -> None:
    """Somebody has taken our mark away, or given it to another."""
    first = nova.add(metadata={marks.REF: REF})
    assert servers.get(REF) == first
    nova.there[first.id].metadata = {}
    second = nova.add(metadata={marks.REF: REF})
    assert servers.get(REF) is second


def test_a_vm_that_is_announced_only(nova: Nova, servers: Servers, volumes: list[Any]) -> None:
    plan = AnnouncedVm(
        ref=REF, name="web", migration=None, flavor="1", ports=(),
        disks=(AnnouncedDisk(key="vda", volume=REF, bus="virtio"),),
    )  # fmt: skip
    metadata = marks.pieces(marks.PLAN, plan.model_dump_json())
    volumes.append(fakes.generate_fake_resource(Volume, id=REF, metadata=metadata, attachments=[]))
    assert servers.get(REF) is None
    made = nova.add(metadata={marks.REF: REF})
    assert servers.get(REF) is made


def test_a_console_is_read_without_looking_for_the_server_again(nova: Nova, servers: Servers) -> None:
    """And from another server once the first is gone; before there is any, it has none."""
    guest = OpenStackGuest(servers._connection, servers)
    first = nova.add(metadata={marks.REF: REF})
    for _ in range(3):
        assert guest.console_tail(REF) == f"console of {first.id}"
    assert nova.asked == [REF, "all"]
    del nova.there[first.id]
    second = nova.add(metadata={marks.REF: REF})
    assert guest.console_tail(REF) == f"console of {second.id}"
    servers.became(REF, "not-built-yet")
    nova.there[second.id].status = "DELETED"
    with pytest.raises(NotFound):
        guest.console_tail(REF)


def test_a_server_that_is_being_forgotten_is_none(nova: Nova, servers: Servers) -> None:
    made = nova.add(status="DELETED")
    with pytest.raises(NotFound):
        servers.get(made.id)
