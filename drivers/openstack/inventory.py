"""What the project has, read at once: servers, volumes, ports, networks; and VMs that are announced, not yet servers.

Nova cannot make a server without starting it. So a VM that is to be rebuilt is announced first: ports hold its MACs and
addresses, and the metadata of its first volume holds the plan (``AnnouncedVm``). The server is made when it is started.
Its ref is the id of that volume from the first moment on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

from pydantic import Field

from drivers.openstack import marks
from drivers.openstack.connection import Connection
from whimbrel.errors import Conflict, NotFound
from whimbrel.model.endpoint import Frozen

GONE = {"DELETED", "SOFT_DELETED"}


class AnnouncedDisk(Frozen):
    """A disk of an announced VM."""

    key: str
    volume: str
    bus: str


class AnnouncedVm(Frozen):
    """A VM that is to be made when it is started."""

    ref: str
    name: str
    migration: str | None
    """None once it was handed over."""
    flavor: str
    """Its id."""
    ports: tuple[tuple[str, str], ...]
    """NIC key and port id."""
    disks: tuple[AnnouncedDisk, ...]
    metadata: dict[str, str] = Field(default_factory=dict)
    availability_zone: str | None = None
    group: str | None = None
    """Id of the server group that it joins."""


class Inventory:
    """One look at the project. Each kind of thing is asked for when it is first needed, and then known."""

    def __init__(self, connection: Connection | None = None) -> None:
        self._connection = connection

    @cached_property
    def servers(self) -> dict[str, Any]:
        """By id, without our own."""
        return {key: server for key, server in self._all_servers.items() if marks.MOVER not in server.metadata}

    @cached_property
    def movers(self) -> dict[str, Any]:
        """Our own servers: no VMs of the project."""
        return {key: server for key, server in self._all_servers.items() if marks.MOVER in server.metadata}

    @cached_property
    def _all_servers(self) -> dict[str, Any]:
        found = self._ask("servers", lambda conn: conn.compute.servers())
        return {server.id: server for server in found if server.status not in GONE}

    @cached_property
    def volumes(self) -> dict[str, Any]:
        """By id."""
        return {volume.id: volume for volume in self._ask("volumes", lambda conn: conn.block_storage.volumes())}

    @cached_property
    def ports(self) -> list[Any]:
        """The project's own."""
        return list(self._ask("ports", lambda conn: conn.network.ports(project_id=conn.current_project_id)))

    @cached_property
    def networks(self) -> dict[str, Any]:
        """By id, also those of others."""
        return {network.id: network for network in self._ask("networks", lambda conn: conn.network.networks())}

    @cached_property
    def flavors(self) -> dict[str, Any]:
        """By id."""
        return {flavor.id: flavor for flavor in self._ask("flavors", lambda conn: conn.compute.flavors())}

    @cached_property
    def announced(self) -> dict[str, AnnouncedVm]:
        """VMs that are announced, by ref."""
        return {plan.ref: plan for plan in map(announced, self.volumes.values()) if plan is not None}

    def whole(self) -> Inventory:
        """All of it known now: nothing that is looked up later can fail."""
        for _ in (self.servers, self.volumes, self.ports, self.networks, self.flavors):
            pass
        return self

    def _ask(self, what: str, lists: Callable[[Any], Iterable[Any]]) -> tuple[Any, ...]:
        """One answer for all threads that ask at the same moment."""
        connection = self._connection
        if connection is None:
            return ()

        def look() -> tuple[Any, ...]:
            with connection.using(f"listing the project's {what}") as conn:
                return tuple(lists(conn))

        return connection.together.look(what, look)

    def server_of(self, ref: str) -> Any | None:
        """The server with this id, or the one that an announced VM has become."""
        if ref in self.servers:
            return self.servers[ref]
        return next((server for server in self.servers.values() if server.metadata.get(marks.REF) == ref), None)

    def find(self, vm: str) -> tuple[str, Any | None, AnnouncedVm | None]:
        """By ref, server id or name: the ref, the server, the announcement. Raises NotFound, Conflict."""
        server = self.server_of(vm)
        if server is not None or vm in self.announced:
            return self._both(self.ref_of(server) if server is not None else vm)
        named = [self.ref_of(server) for server in self.servers.values() if server.name == vm]
        named += [ref for ref, plan in self.announced.items() if plan.name == vm and ref not in named]
        if not named:
            raise NotFound(f"there is no VM {vm}", vm=vm)
        if len(named) > 1:
            raise Conflict(f"several VMs are named {vm}", action="use the id instead of the name", refs=named)
        return self._both(named[0])

    def refs(self) -> list[str]:
        """All VMs."""
        refs = [self.ref_of(server) for server in self.servers.values()]
        return refs + [ref for ref in self.announced if ref not in refs]

    def ports_of(self, server: Any | None, plan: AnnouncedVm | None) -> list[tuple[str, Any]]:
        """NIC key and port, in a lasting order."""
        if plan is not None:
            by_id = {port.id: port for port in self.ports}
            return [(key, by_id[port]) for key, port in plan.ports if port in by_id]
        mine = [port for port in self.ports if server is not None and port.device_id == server.id]
        mine.sort(key=lambda port: (port.created_at or "", port.id))
        return [(f"net{number}", port) for number, port in enumerate(mine)]

    def disks_of(self, server: Any | None, plan: AnnouncedVm | None) -> list[tuple[str, Any]]:
        """Disk key and volume."""
        if plan is not None:
            return [(disk.key, self.volumes[disk.volume]) for disk in plan.disks if disk.volume in self.volumes]
        found = [
            ((attachment.get("device") or "").removeprefix("/dev/") or volume.id, volume)
            for volume in self.volumes.values()
            for attachment in volume.attachments or ()
            if server is not None and attachment.get("server_id") == server.id
        ]
        return sorted(found, key=lambda entry: entry[0])

    @staticmethod
    def ref_of(server: Any) -> str:
        """The ref of a server."""
        return str(server.metadata.get(marks.REF) or server.id)

    def _both(self, ref: str) -> tuple[str, Any | None, AnnouncedVm | None]:
        return ref, self.server_of(ref), self.announced.get(ref)


def read(connection: Connection) -> Inventory:
    """Look at the project; within ``Connection.one_look`` the same look again.

    Its attributes raise Unavailable, AuthFailed, PermissionDenied, Throttled.
    """
    return connection.once("inventory", lambda: Inventory(connection))


def announced(volume: Any) -> AnnouncedVm | None:
    """The VM that is announced on this volume.

    A shorter plan may still have the end of the longer one behind it, and of one that is being removed a part is left:
    whoever was at it has died. The first is the plan, the second none.
    """
    text = marks.joined(marks.PLAN, volume.metadata or {})
    try:
        return AnnouncedVm.model_validate(json.JSONDecoder().raw_decode(text)[0])
    except ValueError:
        return None
