"""Servers on volumes that are imported: ``whimbrel.ports.serving.ServingPort`` where ``ImportPort`` feeds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drivers.openstack import inventory, vms
from drivers.openstack.backing import Backing
from drivers.openstack.connection import Connection
from drivers.openstack.fence import Fence
from drivers.openstack.importing import LiveImages, importing
from drivers.openstack.imports import OpenStackImports
from whimbrel.errors import Conflict, Unsupported
from whimbrel.model.vm import TargetDisk, VolumeRef


class OpenStackServing:
    """``ServingPort``: the hot switch is a commit of each import; what then runs is an ordinary server."""

    def __init__(
        self, connection: Connection, backing: Backing, live: LiveImages, fence: Fence, imports: OpenStackImports
    ) -> None:
        self._connection = connection
        self._backing = backing
        self._live = live
        self._imports = imports
        self._fence = fence

    def local_path(self, volume: VolumeRef) -> str:
        """Raises Unsupported: no file of a mover is behind a volume."""
        raise Unsupported(
            f"volume {volume.name} is imported by its storage, nobody opens it under a path",
            action="use mode streaming with this cloud as the target, or mode incremental",
        )

    def client(self) -> tuple[int, int] | None:
        """Nobody connects by a socket of this host."""
        return None

    def switch_disks(self, ref: str, disks: Sequence[TargetDisk], *, migration: str) -> None:
        """Detach every image from its source, then lift the server's fence. See ServingPort."""
        seen = inventory.read(self._connection)
        ref, server, plan = seen.find(ref)
        if vms.owner(server, plan) != migration:
            raise Conflict(f"VM {ref} was not made by migration {migration}", vm=ref)
        known = dict(seen.disks_of(server, plan))
        for disk in disks:
            volume = known.get(disk.spec.key)
            if volume is None or volume.id != disk.volume.location:
                raise Conflict(f"disk {disk.spec.key} of VM {ref} was not made for volume {disk.volume.name}", vm=ref)
        for disk in disks:
            volume = known[disk.spec.key]
            if importing(volume) is None:
                continue
            self._live.commit(*self._backing.image(volume))
            self._imports.unmark(volume)
        if server is not None and not self.served_disks(ref):
            self._fence.remove(server)

    def stalled(self, ref: str) -> bool:
        """Never: a request that the gateway holds is waited for inside QEMU, which does not pause the server."""
        return False

    def served_disks(self, ref: str) -> Sequence[str]:
        """Keys of the VM's disks whose volumes are marked, or whose images still import."""
        seen = inventory.read(self._connection)
        _, server, plan = seen.find(ref)
        return sorted(key for key, volume in seen.disks_of(server, plan) if self._imports_still(volume))

    def _imports_still(self, volume: Any) -> bool:
        if importing(volume) is not None:
            return True
        return self._backing.reaches(volume) and self._live.state(*self._backing.image(volume)).imports
