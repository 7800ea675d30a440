"""What the project has, read at once: servers, volumes, ports, networks; and VMs that are announced, not yet servers.

Nova cannot make a server without starting it. So a VM that is to be rebuilt is announced first: ports hold its MACs and
addresses, and the metadata of its first volume holds the plan (``AnnouncedVm``). The server is made when it is started.
Its ref is the id of that volume from the first moment on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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


@dataclass
class Inventory:
    """One look at the project."""

    servers: dict[str, Any] = field(default_factory=dict)
    movers: dict[str, Any] = field(default_factory=dict)
    """Our own servers: no VMs of the project."""
    volumes: dict[str, Any] = field(default_factory=dict)
    ports: list[Any] = field(default_factory=list)
    networks: dict[str, Any] = field(default_factory=dict)
    flavors: dict[str, Any] = field(default_factory=dict)
    announced: dict[str, AnnouncedVm] = field(default_factory=dict)

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


def read(connection: Connection, *, flavors: bool = False) -> Inventory:
    """Look at everything. Raises Unavailable, AuthFailed, PermissionDenied, Throttled."""
    with connection.using("listing what the project has") as conn:
        servers = {server.id: server for server in conn.compute.servers() if server.status not in GONE}
        found = Inventory(
            servers={ref: server for ref, server in servers.items() if marks.MOVER not in server.metadata},
            movers={ref: server for ref, server in servers.items() if marks.MOVER in server.metadata},
            volumes={volume.id: volume for volume in conn.block_storage.volumes()},
            ports=list(conn.network.ports(project_id=conn.current_project_id)),
            networks={network.id: network for network in conn.network.networks()},
            flavors={flavor.id: flavor for flavor in conn.compute.flavors()} if flavors else {},
        )
    found.announced = {plan.ref: plan for plan in map(announced, found.volumes.values()) if plan is not None}
    return found


def announced(volume: Any) -> AnnouncedVm | None:
    """The VM that is announced on this volume."""
    text = marks.joined(marks.PLAN, volume.metadata or {})
    return AnnouncedVm.model_validate_json(text) if text else None
