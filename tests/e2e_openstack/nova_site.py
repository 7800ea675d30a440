"""An OpenStack cloud as the proofs see it: through its APIs and its pools, without the project's drivers."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from labs.openstack import CloudHandle
from labs.openstack.nova import instances_path
from labs.openstack.server import command
from labs.openstack_stage import name_in_plans
from tests.e2e_openstack.images import address, flatten

PATIENCE_S = 120.0
OURS = re.compile(r"whimbrel[._-]")
STAYS = {"whimbrel_ref", "whimbrel_migration", "whimbrel_size_bytes"}
"""Metadata that a VM which has arrived keeps: where it came from."""


class NovaSite:
    """One cloud."""

    kind = "openstack"
    network = CloudHandle.network

    def __init__(self, handle: CloudHandle, *, admin: bool = False, mover: bool = False) -> None:
        self.handle = handle
        self.plan_name = name_in_plans(handle.name, admin=admin, mover=mover)
        self.storage = handle.volume_type
        self.api = handle.connect(member=True)
        self._admin = handle.connect()
        self._names: dict[str, str | None] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Give the connections up."""
        self.api.close()
        self._admin.close()

    # -- the guest ----------------------------------------------------------------------------------------------

    def server(self, name: str) -> Any | None:
        """The server of exactly this name."""
        found = [one for one in self.api.compute.servers() if one.name == name]
        assert len(found) < 2, f"{len(found)} servers are named {name} in cloud {self.handle.name}"
        return found[0] if found else None

    def exists(self, guest: str) -> bool:
        """Whether there is a server of this name."""
        return self.server(guest) is not None

    def running(self, guest: str) -> bool:
        """Whether its server is on."""
        server = self.server(guest)
        return server is not None and server.status == "ACTIVE"

    def command(self, guest: str, text: str) -> str:
        """Ask the guest over the network."""
        server = self.server(guest)
        assert server is not None
        ports = list(self.api.network.ports(device_id=server.id))
        return command(str(ports[0].fixed_ips[0]["ip_address"]), text)

    def shut_down(self, guest: str) -> None:
        """Stop it as Nova does: the power button first."""
        server = self.server(guest)
        assert server is not None
        if server.status == "ACTIVE":
            self.api.compute.stop_server(server.id)
        until(lambda: self.api.compute.get_server(server.id).status == "SHUTOFF", f"{guest} is off")

    def definition(self, guest: str) -> str:
        """What must be the same after a rollback: ids, shape, ports, volumes, metadata."""
        server = self.server(guest)
        assert server is not None
        ports = self.api.network.ports(device_id=server.id)
        return json.dumps(
            {
                "id": server.id,
                "flavor": server.flavor.original_name,
                "metadata": server.metadata,
                "ports": sorted((port.id, port.mac_address, str(port.fixed_ips)) for port in ports),
                "volumes": {key: [volume.id, volume.metadata] for key, volume in self.volumes(guest).items()},
            },
            sort_keys=True,
        )

    def cards(self, guest: str) -> list[tuple[str, str, str]]:
        """Its network cards: MAC, first address, network."""
        server = self.server(guest)
        assert server is not None
        ports = self.api.network.ports(device_id=server.id)
        names = {network.id: network.name for network in self.api.network.networks()}
        return [(port.mac_address, port.fixed_ips[0]["ip_address"], names[port.network_id]) for port in ports]

    def volumes(self, guest: str) -> dict[str, Any]:
        """Its volumes by disk key."""
        server = self.server(guest)
        assert server is not None
        attached = self.api.compute.volume_attachments(server.id)
        return {one.device.removeprefix("/dev/"): self.api.block_storage.get_volume(one.volume_id) for one in attached}

    def image(self, volume: Any) -> tuple[str, str]:
        """Pool and RBD image of a volume."""
        pools = {self.handle.volume_type: self.handle.pool, self.handle.shared_type: self.handle.shared_pool}
        return pools[volume.volume_type], f"volume-{volume.id}"

    def flatten(self, guest: str, into: Path) -> dict[str, Path]:
        """Its disks as flat files in a directory, by disk key."""
        return {
            key: flatten(address(self.handle, *self.image(volume)), "raw", into / f"{self.plan_name}-{key}")
            for key, volume in self.volumes(guest).items()
        }

    def features(self, guest: str) -> set[str]:
        """Features that the images behind all its volumes have."""
        infos = [
            self.rbd("info", "/".join(self.image(one)), "--format", "json") for one in self.volumes(guest).values()
        ]
        return set.intersection(*(set(info["features"]) for info in infos))

    def consoles(self, names: re.Pattern[str]) -> Mapping[str, Path]:
        """Logs of servers with such a name: ``<cloud>/<name>`` and the path. A server that is gone keeps its label."""
        found = {}
        for directory in Path(instances_path(self.handle.layout)).glob("*-*-*-*-*"):
            name = self._name(directory.name)
            if name is not None and names.fullmatch(name):
                found[f"{self.plan_name}/{name}"] = directory / "console.log"
        return found

    def _name(self, server: str) -> str | None:
        with self._lock:
            if server not in self._names:
                try:
                    self._names[server] = str(self.api.compute.get_server(server).name)
                except Exception:
                    return None
            return self._names[server]

    # -- leftovers ----------------------------------------------------------------------------------------------

    def remains(self, arrived: str | None = None) -> list[str]:
        """Whatever a migration may leave, in the whole cloud; ``arrived`` is a VM that was moved here and stays."""
        server = self.server(arrived) if arrived is not None else None
        stays = {server.id} if server is not None else set()
        if server is not None:
            stays |= {volume.id for volume in self.volumes(str(arrived)).values()}
            stays |= {port.id for port in self.api.network.ports(device_id=server.id)}
        return [f"{self.plan_name}: {line}" for line in (*self._objects(stays), *self._pool_objects(stays))]

    def _objects(self, stays: set[str]) -> Iterator[str]:
        for kind, things in (
            ("server", self._admin.compute.servers(all_projects=True)),
            ("volume", self._admin.block_storage.volumes(all_projects=True)),
            ("snapshot", self._admin.block_storage.snapshots(all_projects=True)),
        ):
            for thing in things:
                kept = STAYS if thing.id in stays else set()
                marks = [key for key in thing.metadata or {} if OURS.match(key) and key not in kept]
                if marks or kind == "snapshot":
                    yield f"{kind} {thing.name} ({thing.id}) {thing.status} {sorted(marks)}"
        for port in self._admin.network.ports():
            if port.id not in stays and (OURS.match(port.name or "") or not port.device_id):
                yield f"port {port.name} ({port.id})"
        for image in self._admin.image.images():
            if image.name != self.handle.image:
                yield f"image {image.name} ({image.id})"
        for attachment in (
            self._admin.block_storage.get("/attachments?all_tenants=1", microversion="3.27")
            .json()
            .get("attachments", [])
        ):
            if not attachment.get("instance"):
                yield f"attachment {attachment['id']} of volume {attachment['volume_id']}"

    def _pool_objects(self, stays: set[str]) -> Iterator[str]:
        """Images that no Cinder knows, their snapshots, and our marks on them."""
        known = {f"volume-{volume.id}" for volume in self._admin.block_storage.volumes(all_projects=True)}
        for pool in (self.handle.pool, self.handle.shared_pool):
            for image in self.rbd("ls", pool, "--format", "json"):
                if image not in known and pool == self.handle.pool:
                    yield f"RBD image {pool}/{image} that Cinder does not know"
                for snapshot in self.rbd("snap", "ls", "--all", f"{pool}/{image}", "--format", "json"):
                    yield f"RBD snapshot {pool}/{image}@{snapshot['name']}"
                for key in self.rbd("image-meta", "ls", f"{pool}/{image}", "--format", "json"):
                    if OURS.match(key):
                        yield f"mark {key} on RBD image {pool}/{image}"
            for trashed in self.rbd("trash", "ls", pool, "--format", "json"):
                yield f"RBD image {pool}/{trashed} in the trash"

    def rbd(self, *words: str) -> Any:
        """What Ceph's own program answers, from JSON; nothing for an image that has just gone."""
        access = ["-c", str(self.handle.ceph_conf), "--id", self.handle.ceph_user]
        done = subprocess.run(["rbd", *access, *words], capture_output=True, text=True, check=False, timeout=60)
        if done.returncode == 2:
            return []
        assert done.returncode == 0, f"rbd {' '.join(words)}: {done.stderr}"
        return json.loads(done.stdout or "[]")

    # -- taking down --------------------------------------------------------------------------------------------

    def remove(self, guest: str) -> None:
        """Delete every server, volume and port whose name begins with the guest's, or that these have.

        With them go mover servers, and volumes made for them: a migration that was cut off leaves its own.
        """
        servers = [one for one in self.api.compute.servers() if one.name.startswith((guest, "whimbrel-mover-"))]
        ports = [port.id for one in servers for port in self.api.network.ports(device_id=one.id)]
        begins = (guest, "whimbrel-mover-", "whimbrel-read-")
        ports += [port.id for port in self.api.network.ports() if (port.name or "").startswith(begins)]
        volumes = {one.volume_id for server in servers for one in self.api.compute.volume_attachments(server.id)}
        for server in servers:
            self._admin.compute.unlock_server(server.id)
            self.api.compute.delete_server(server.id)
        for server in servers:
            until(
                lambda server=server: self.api.compute.find_server(server.id, ignore_missing=True) is None,  # type: ignore[misc]
                f"server {server.name} is gone",
            )
        for port in set(ports):
            self.api.network.delete_port(port)
        named = [one for one in self.api.block_storage.volumes() if (one.name or "").startswith(begins)]
        made = {one.id for one in named if one.name.startswith("whimbrel-read-")}
        volumes |= {one.id for one in named}
        # what was made of a snapshot goes before the snapshot
        for volume in sorted(volumes, key=lambda one: one not in made):
            self._end_import(volume)
            self._remove_volume(volume)

    def _end_import(self, volume: str) -> None:
        """The image of a migration that was cut off: with its gateway gone Cinder cannot open it."""
        found = self.api.block_storage.find_volume(volume, ignore_missing=True)
        if found is None or "whimbrel_import" not in (found.metadata or {}):
            return
        image = "/".join(self.image(found))
        access = ["-c", str(self.handle.ceph_conf), "--id", self.handle.ceph_user]
        words = ["rbd", *access, "migration", "abort", "--no-progress", image]
        until(lambda: subprocess.run(words, check=False, timeout=60).returncode != 16, f"nobody has {image} open")

    def _remove_volume(self, volume: str) -> None:
        def gone() -> bool:
            found = self.api.block_storage.find_volume(volume, ignore_missing=True)
            if found is not None and found.status in {"available", "error"}:
                self.api.block_storage.delete_volume(volume, cascade=True)
            return found is None

        until(gone, f"volume {volume} is gone")


def until(true: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Wait for the lab."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.3)
