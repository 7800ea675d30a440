"""Mover servers: one for each session, found by its key, made with the session's volumes attached, deleted at its end.

Deleting the server is what ends a session: whoever still has a connection loses it with the volumes, and a late writer
has nobody left to talk to. What is made is found before it is made, and by any worker: server and port by their name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from drivers.openstack import marks
from drivers.openstack.connection import Connection, settled
from drivers.openstack.errors import server_fault
from drivers.openstack.mover import MoverSettings, ServedVolume, certificate_on, endpoint, user_data
from drivers.openstack.networks import network_named
from whimbrel.errors import InvalidPlan, NotFound, NotReady
from whimbrel.model.endpoint import NbdEndpoint
from whimbrel.model.quota import MoverServer

FREE = {"available", "error"}
LEAST_MIB = 192
TLS_FILES = ("ca-cert.pem", "client-cert.pem", "client-key.pem")


class Movers:
    """Sessions of this cloud's mover servers."""

    def __init__(self, connection: Connection, settings: MoverSettings) -> None:
        self._connection = connection
        self.settings = settings

    def lacks(self) -> list[str]:
        """What the settings name and the cloud, or this machine, has not. Raises Unavailable, AuthFailed."""
        settings, found = self.settings, []
        with self._connection.using("looking for what mover servers need") as conn:
            image = conn.image.find_image(settings.image, ignore_missing=True)
            flavor = conn.compute.find_flavor(settings.flavor, ignore_missing=True)
            networks = list(conn.network.networks(name=settings.network))
            group = settings.security_group
            if group is not None and conn.network.find_security_group(group, ignore_missing=True) is None:
                found.append(f"there is no security group {group}")
        if image is None or image.status != "active":
            found.append(f"there is no image {settings.image}" if image is None else f"image is {image.status}")
        if flavor is None:
            found.append(f"there is no flavor {settings.flavor}")
        elif (flavor.ram or 0) < LEAST_MIB or not flavor.disk:
            found.append(f"flavor {settings.flavor} has less than {LEAST_MIB} MiB of memory, or no local disk")
        if len(networks) != 1:
            found.append(f"there are {len(networks)} networks {settings.network}")
        elif not networks[0].subnet_ids:
            found.append(f"network {settings.network} has no subnet")
        missing = [name for name in TLS_FILES if not (Path(settings.tls_dir) / name).is_file()]
        if missing:
            found.append(f"{', '.join(missing)} not in {settings.tls_dir} on this mover")
        return found

    def cost(self, pools_reached: Iterable[str]) -> MoverServer | None:
        """What one session takes of the quotas; None while there is no such flavor."""
        with self._connection.using("looking for the flavor of mover servers") as conn:
            flavor = conn.compute.find_flavor(self.settings.flavor, ignore_missing=True)
        if flavor is None:
            return None
        return MoverServer(
            vcpus=flavor.vcpus or 0,
            memory_bytes=(flavor.ram or 0) << 20,
            max_disks=self.settings.max_disks,
            pools_reached=tuple(sorted(pools_reached)),
        )

    def serve(self, key: str, served: Sequence[ServedVolume]) -> Mapping[str, NbdEndpoint]:
        """Endpoints by volume id, once the session's server answers for all of them.

        Raises NotReady (it is being made, or starts), QuotaExceeded, NotFound (image, flavor, network), AuthFailed,
        InvalidPlan (too many volumes), GuestUnbootable (what it says itself).
        """
        if len(served) > self.settings.max_disks:
            raise InvalidPlan(
                f"{len(served)} volumes are too many for one mover server, which takes {self.settings.max_disks}",
                action="raise mover.max_disks in whimbrel.yaml, if the cloud attaches that many",
            )
        server = self._server(key)
        ports = self._ports(key)
        mine = [port for port in ports if server is not None and port.device_id == server.id]
        port = next(iter([*mine, *ports]), None) or self._make_port(key)
        if server is None:
            server = self._make_server(key, port, served)
        elif {one.volume for one in served} != {attached.id for attached in server.attached_volumes or ()}:
            self.end(key)  # of a session that has other disks by now
            raise NotReady(f"server {server.name} is made anew with other volumes")
        certificate = settled(lambda: self._certificate(server.id), f"mover server {server.name} starts")
        address = _address(port)
        return {one.volume: endpoint(self.settings, one, address=address, certificate=certificate) for one in served}

    def end(self, key: str) -> None:
        """End the session; one that never began is fine. Raises NotReady until its volumes are free."""
        for server in self._servers(key):
            volumes = [attached.id for attached in server.attached_volumes or ()]
            with self._connection.using(f"deleting mover server {server.name}") as conn:
                if server.task_state != "deleting":
                    conn.compute.delete_server(server.id, ignore_missing=True)
            settled(
                lambda server=server, volumes=volumes: self._gone(server.id, volumes),  # type: ignore[misc]
                f"mover server {server.name} is being deleted",
            )
        for port in self._ports(key):
            with self._connection.using(f"removing port {port.name}") as conn:
                conn.network.delete_port(port.id, ignore_missing=True)

    def _gone(self, server: str, volumes: Sequence[str]) -> bool | None:
        """Nova forgets a server only after it has let its volumes go; Cinder may need a moment more."""
        with self._connection.using("looking whether a mover server is gone") as conn:
            if conn.compute.find_server(server, ignore_missing=True) is not None:
                return None
            found = [conn.block_storage.find_volume(volume, ignore_missing=True) for volume in volumes]
        return True if all(volume is None or volume.status in FREE for volume in found) else None

    def _certificate(self, server_id: str) -> str | None:
        with self._connection.using("looking at a mover server") as conn:
            server = conn.compute.get_server(server_id)
            if server.vm_state == "error":
                conn.compute.delete_server(server.id, ignore_missing=True)  # the next attempt makes another
                raise server_fault(server)
            if server.vm_state == "stopped" and not server.task_state:  # its host was restarted
                conn.compute.start_server(server.id)
            if server.vm_state != "active" or server.task_state:
                return None
            console = conn.compute.get_server_console_output(server.id) or {}
        return certificate_on(str(console.get("output") or ""))

    def _server(self, key: str) -> Any | None:
        """The session's server. Raises NotReady when two attempts have made one at the same time."""
        found = self._servers(key)
        if len(found) > 1:
            self.end(key)
            raise NotReady(f"{len(found)} servers were named {found[0].name}: another one is made")
        return found[0] if found else None

    def _servers(self, key: str) -> list[Any]:
        with self._connection.using(f"looking for mover server {key}") as conn:
            return [
                server
                for server in conn.compute.servers(name=f"^{name_of(key)}$")
                if server.metadata.get(marks.MOVER) == key and server.status not in {"DELETED", "SOFT_DELETED"}
            ]

    def _ports(self, key: str) -> list[Any]:
        with self._connection.using(f"looking for the port of mover server {key}") as conn:
            return list(conn.network.ports(name=name_of(key), project_id=conn.current_project_id))

    def _make_port(self, key: str) -> Any:
        settings = self.settings
        with self._connection.using(f"reserving an address for mover server {key}") as conn:
            network = network_named(conn, settings.network)
            groups = {}
            if settings.security_group is not None:
                group = conn.network.find_security_group(settings.security_group, ignore_missing=True)
                if group is None:
                    raise NotFound(
                        f"there is no security group {settings.security_group}",
                        action="correct mover.security_group in whimbrel.yaml",
                    )
                groups = {"security_groups": [group.id]}
            return conn.network.create_port(
                name=name_of(key), network_id=network.id, description="of a mover server of Whimbrel", **groups
            )

    def _make_server(self, key: str, port: Any, served: Sequence[ServedVolume]) -> Any:
        settings = self.settings
        with self._connection.using(f"making mover server {key}") as conn:
            image = conn.image.find_image(settings.image, ignore_missing=True)
            flavor = conn.compute.find_flavor(settings.flavor, ignore_missing=True)
            for found, what, name in ((image, "image", settings.image), (flavor, "flavor", settings.flavor)):
                if found is None:
                    raise NotFound(f"there is no {what} {name}", action=f"correct mover.{what} in whimbrel.yaml")
            network = conn.network.get_network(port.network_id)
            subnet = conn.network.get_subnet(port.fixed_ips[0]["subnet_id"])
            told = user_data(
                settings,
                served,
                address=_address(port),
                cidr=subnet.cidr,
                gateway=subnet.gateway_ip,
                mtu=network.mtu or 1500,
            )
            disks = [{"source_type": "image", "destination_type": "local", "uuid": image.id, "boot_index": 0}]
            disks += [
                {"source_type": "volume", "destination_type": "volume", "uuid": one.volume, "boot_index": -1}
                for one in served
            ]
            zone = {"availability_zone": settings.availability_zone} if settings.availability_zone else {}
            return conn.compute.create_server(
                name=name_of(key),
                flavor_id=flavor.id,
                image_id=image.id,
                block_device_mapping=[{**disk, "delete_on_termination": disk["boot_index"] == 0} for disk in disks],
                networks=[{"port": port.id}],
                metadata={marks.MOVER: key},
                user_data=told,
                config_drive=True,
                **zone,
            )


def name_of(key: str) -> str:
    """Name of the session's server, and of its port."""
    return f"{marks.MOVER_NAME}{key}"


def _address(port: Any) -> str:
    return str(port.fixed_ips[0]["ip_address"])
