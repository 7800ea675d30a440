"""Neutron's networks and ports: ``whimbrel.ports.network.NetworkPort``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from drivers.openstack import access, inventory, marks
from drivers.openstack.connection import Connection
from whimbrel.errors import Conflict, NotFound
from whimbrel.model.facts import NetworkFacts


class OpenStackNetworks:
    """``NetworkPort`` over one connection. A fixed MAC or address needs the network's owner, or an admin."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def networks(self) -> Sequence[NetworkFacts]:
        """All that the project can plug into; isolated where no subnet has a gateway."""
        admin = access.is_admin(self._connection)
        with self._connection.using("listing networks") as conn:
            subnets: dict[str, list[Any]] = {}
            for subnet in conn.network.subnets():
                subnets.setdefault(subnet.network_id, []).append(subnet)
            return [
                NetworkFacts(
                    name=network.name,
                    active=network.status == "ACTIVE" and bool(network.is_admin_state_up),
                    isolated=not any(subnet.gateway_ip for subnet in subnets.get(network.id, ())),
                    mtu=network.mtu,
                    cidrs=tuple(subnet.cidr for subnet in subnets.get(network.id, ())),
                    fixed=admin or network.project_id == conn.current_project_id,
                    filters=("security group default",) if network.is_port_security_enabled else (),
                )
                for network in inventory.read(self._connection).networks.values()
            ]

    def mac_owners(self, macs: Sequence[str]) -> dict[str, str]:
        """For MACs in use: the VM, or the port, that has it."""
        wanted = {mac.lower() for mac in macs}
        if not wanted:
            return {}
        with self._connection.using("looking for MAC addresses") as conn:
            ports = [port for mac in sorted(wanted) for port in conn.network.ports(mac_address=mac)]
            owners = {}
            for port in ports:
                server = conn.compute.find_server(port.device_id, ignore_missing=True) if port.device_id else None
                owners[port.mac_address.lower()] = server.name if server is not None else port.name or port.id
            return owners

    def ensure_port(self, network: str, mac: str, address: str | None, *, migration: str) -> str:
        """The port with this MAC, found by it. Raises NotFound (network), Conflict (MAC or address is another's)."""
        with self._connection.using(f"reserving {mac} on network {network}") as conn:
            found = network_named(conn, network)
            for port in conn.network.ports(network_id=found.id, mac_address=mac.lower()):
                if not is_ours(port, migration):
                    raise Conflict(
                        f"port {port.name or port.id} on {network} has the MAC {mac}",
                        action="remove that port, or give the VM another MAC",
                        port=port.id,
                    )
                return str(port.id)
            wish = {"fixed_ips": [{"ip_address": address}]} if address else {}
            made = conn.network.create_port(
                name=port_name(mac, migration),
                network_id=found.id,
                mac_address=mac.lower(),
                description=f"reserved by migration {migration}",
                **wish,
            )
            return str(made.id)

    def ensure_port_absent(self, port: str, *, migration: str) -> None:
        """Remove it. Raises Conflict for a port of somebody else."""
        if not port:
            return
        with self._connection.using(f"removing port {port}") as conn:
            found = conn.network.find_port(port, ignore_missing=True)
            if found is None:
                return
            if not is_ours(found, migration):
                raise Conflict(f"port {found.name or port} was not made by migration {migration}", port=port)
            conn.network.delete_port(found.id, ignore_missing=True)

    def drop_loose(self, ports: Iterable[Any], migration: str) -> None:
        """Remove those of ``ports`` that the migration has reserved and no server has."""
        for port in ports:
            if is_ours(port, migration) and not port.device_id:
                with self._connection.using(f"removing port {port.name}") as conn:
                    conn.network.delete_port(port.id, ignore_missing=True)


def network_named(conn: Any, name: str) -> Any:
    """The network. Raises NotFound, Conflict (several of this name)."""
    found = list(conn.network.networks(name=name))
    if not found:
        raise NotFound(f"there is no network {name}", action="correct the plan's map of networks", network=name)
    if len(found) > 1:
        raise Conflict(f"several networks are named {name}", action="rename all but one", network=name)
    return found[0]


def port_name(mac: str, migration: str) -> str:
    """Name of a port that a migration has reserved."""
    return f"whimbrel-{mac.lower().replace(':', '')}-{migration}"


def is_ours(port: Any, migration: str) -> bool:
    """Whether the migration made it."""
    return marks.migration_of(port.name) == migration
