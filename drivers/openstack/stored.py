"""Disks of a VM as the storage has them: RBD images by their lasting ids, whatever they are called now."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from drivers.openstack import held, inventory, managing, vms
from drivers.openstack.backing import Backing, SharedImage, image_name, volume_named
from drivers.openstack.connection import Connection
from drivers.openstack.held import Taken
from drivers.openstack.inventory import Inventory
from drivers.openstack.volumes import WRITER
from whimbrel.errors import Conflict, NotFound, Unsupported
from whimbrel.model.handover import StoredDisk, StoredImage
from whimbrel.model.vm import Power, TargetDisk, VmSpec, VolumeRef

LINGER_S = 35.0
"""Ceph forgets a client that has died after 30 s; until then it looks as if it had its images open."""
POLL_S = 1.0


class SourceDisk(NamedTuple):
    """A disk of a VM here: the record, who has taken its image, and the image."""

    key: str
    volume: Any
    pool: str
    """The Ceph pool."""
    mark: Taken | None
    image: SharedImage


class Stored:
    """Looking, and nothing else."""

    def __init__(self, connection: Connection, backing: Backing, *, linger_s: float = LINGER_S) -> None:
        self._connection = connection
        self._backing = backing
        self.linger_s = linger_s

    # --- this cloud's own VMs

    def disks(self, seen: Inventory, vm: str) -> list[SourceDisk]:
        """All disks of a VM. Raises NotFound (VM, image), Unsupported (a volume that is not reached)."""
        _, server, plan = seen.find(vm)
        found = []
        for key, volume in seen.disks_of(server, plan):
            pool, name = self._backing.image(volume)
            mark = held.taken(volume) or self._lost_mark(pool, volume, vm, key)
            image = mark.image if mark is not None else self._backing.images.shared.ids(pool, [name]).get(name)
            if image is None:
                raise NotFound(
                    f"volume {volume.name or volume.id} has no image {pool}/{name}",
                    action="look for its image in the pool: somebody has renamed or removed it",
                )
            found.append(SourceDisk(key, volume, pool, mark, self._backing.images.shared.get(pool, image)))
        return found

    def _lost_mark(self, pool: str, volume: Any, vm: str, key: str) -> Taken | None:
        """The mark of a volume whose metadata has lost it, from the image that lies there under its held name."""
        shared = self._backing.images.shared
        name = image_name(volume.id)
        if name in shared.ids(pool, [name]):
            return None
        away = [image for named, image in shared.names(pool).items() if held.is_away(named, volume.id)]
        kept = held.deposit(shared.get(pool, away[0])) if away else None
        if kept is None:
            return None
        return Taken(migration=kept.migration, turn=kept.turn, image=away[0], vm=vm, disk=key)

    def stored(self, seen: Inventory, vm: str, disks: Sequence[SourceDisk]) -> list[StoredDisk]:
        """The disks as the port has them."""
        sizes = {disk.volume.id: disk.image.size_bytes for disk in disks}
        spec = vms.spec(seen, vm, self._backing, sizes)
        return [
            StoredDisk(
                spec=spec.disk(disk.key),
                image=StoredImage(
                    pool=disk.volume.volume_type,
                    handle=disk.image.id,
                    size_bytes=disk.image.size_bytes,
                    format="raw",
                    identity=disk.image.identity,
                ),
                chain=tuple(
                    StoredImage(pool=None, handle=parent, size_bytes=0, format="raw")
                    for parent in [disk.image.parent]
                    if parent
                ),
            )
            for disk in disks
        ]

    @staticmethod
    def check_free(vm: VmSpec, disks: Sequence[SourceDisk]) -> None:
        """Raises Conflict, Unsupported for a volume that could not be managed elsewhere, or not given up here."""
        for disk in disks:
            volume = disk.volume
            name = f"disk {disk.key} of {vm.name} (volume {volume.name or volume.id})"
            if volume.is_encrypted:
                raise Unsupported(f"{name} is encrypted: its key stays here", action="choose another mode for this VM")
            if disk.image.snapshots or volume.is_multiattach:
                what = "snapshots" if disk.image.snapshots else "the multiattach flag"
                raise Conflict(
                    f"{name} has {what}: {', '.join(disk.image.snapshots)}".rstrip(": "),
                    action="remove them, or choose another mode: Cinder neither manages nor lets go such a volume",
                    volume=volume.id,
                )
            if len(volume.attachments or ()) > 1:
                raise Conflict(f"{name} has {len(volume.attachments)} attachments", volume=volume.id)
            writer = (volume.metadata or {}).get(WRITER)
            if writer:
                raise Conflict(f"{name} is being written by session {writer}", volume=volume.id)

    # --- disks of either cloud

    def images(self, disks: Sequence[StoredDisk], pools: Mapping[str, str]) -> list[tuple[str, SharedImage]]:
        """(Ceph pool, image) of each disk, as this cloud finds them. Raises NotFound."""
        return [self._image(disk, pools) for disk in disks]

    def _image(self, disk: StoredDisk, pools: Mapping[str, str]) -> tuple[str, SharedImage]:
        if disk.image.pool is None:
            raise NotFound(f"image {disk.image.handle} is in no pool that is known")
        pool = self._backing.pool(pools.get(disk.image.pool, disk.image.pool))
        return pool, self._backing.images.shared.get(pool, disk.image.handle)

    def look(self, seen: Inventory, disk: StoredDisk, pools: Mapping[str, str]) -> TargetDisk:
        """The disk here; ``location`` is the volume's id once there is one. Raises NotFound, Conflict."""
        pool, image = self._image(disk, pools)
        if image.size_bytes != disk.image.size_bytes or disk.image.format != "raw":
            raise Conflict(
                f"image {pool}/{image.name} is another one here",
                found=f"{image.size_bytes} raw",
                wanted=f"{disk.image.size_bytes} {disk.image.format}",
            )
        volume = seen.volumes.get(volume_named(image.name) or "")
        kind = pools.get(disk.image.pool or "", disk.image.pool or "")
        return TargetDisk(
            spec=disk.spec,
            volume=VolumeRef(
                name=image.id,
                pool=kind,
                size_bytes=image.size_bytes,
                format="raw",
                location=str(volume.id) if volume is not None else f"{pool}/{image.name}",
            ),
        )

    def openers(self, disks: Sequence[StoredDisk], pools: Mapping[str, str], *, locks: bool) -> list[str]:
        """VMs that are on and have one, sessions; if there are none, clients that watch the images."""
        if not disks:
            return []
        seen = inventory.read(self._connection)
        images = self.images(disks, pools)
        found: set[str] = set()
        for _, image in images:
            found |= self._known_openers(seen, image)
        if found or not locks:
            return sorted(found)
        deadline = time.monotonic() + self.linger_s
        while True:
            watched = [
                f"client {address}, which has image {image.name} open"
                for _, image in images
                for address in image.watchers
            ]
            if not watched or time.monotonic() > deadline:
                return sorted(set(watched))
            time.sleep(POLL_S)
            images = self.images(disks, pools)

    @staticmethod
    def _known_openers(seen: Inventory, image: SharedImage) -> set[str]:
        found = {f"writer session {image.session}"} if image.session else set()
        volume = seen.volumes.get(volume_named(image.name) or "")
        if volume is None:
            return found
        for attachment in volume.attachments or ():
            server = seen.servers.get(attachment.get("server_id") or "")
            if server is None:
                found.add(
                    f"attachment of volume {volume.name or volume.id} by {attachment.get('host_name') or 'a host'}"
                )
            elif vms.power_of(server) is not Power.OFF:
                found.add(f"VM {server.name}")
        return found

    def users(self, disks: Sequence[StoredDisk], pools: Mapping[str, str]) -> list[str]:
        """VMs that have a volume by whose name one of the images is found; volumes that no VM has."""
        seen = inventory.read(self._connection)
        wanted = {volume_named(image.name) for _, image in self.images(disks, pools)} & set(seen.volumes)
        found, used = set(), set()
        for ref in seen.refs():
            _, server, plan = seen.find(ref)
            mine = {volume.id for _, volume in seen.disks_of(server, plan)} & wanted
            if mine:
                found.add(str(server.name if server is not None else plan.name if plan is not None else ref))
            used |= mine
        loose = [seen.volumes[volume] for volume in wanted - used if volume is not None]
        return sorted(found | {f"(none, but volume {volume.name or volume.id} is managed)" for volume in loose})


def adopted_of(volumes: Iterable[Any], image: str) -> list[Any]:
    """Those that were made of this image, finished or not."""
    return [volume for volume in volumes if (mark := managing.adopted(volume)) is not None and mark.image == image]
