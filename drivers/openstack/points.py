"""Points in time by Cinder snapshots, and what changed between two of them by RBD's own diff.

A snapshot is a point's content and, when it is kept, the token by which a later point asks for changes. One call takes
one snapshot, so a server with several disks is paused while they are taken: only so is it one instant. The pause is
marked on the server before it begins, and ended by whoever finds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drivers.openstack import inventory, snapshots, vms
from drivers.openstack.backing import Backing
from drivers.openstack.connection import Connection, settled
from drivers.openstack.snapshots import KIND, TRACK, Snapshots
from drivers.openstack.volumes import WRITER
from whimbrel.errors import BaseLost, Conflict, NotFound
from whimbrel.model.naming import owns_point
from whimbrel.model.point import DiskPoint, OpenPoint, PointKind
from whimbrel.model.vm import Power

PAUSED = "whimbrel_paused"
"""On a server that was paused for a point: the point's key."""


class OpenStackPoints:
    """``PointInTimePort`` over one connection; for volumes whose images the worker reaches."""

    def __init__(self, connection: Connection, backing: Backing) -> None:
        self._connection = connection
        self._backing = backing
        self._snapshots = Snapshots(connection)

    def open(
        self, ref: str, disks: Sequence[str], *, key: str, since: str | None = None, migration: str, track: bool = True
    ) -> OpenPoint:
        """See PointInTimePort. Raises also QuotaExceeded (snapshots count), NotReady."""
        seen = inventory.read(self._connection)
        ref, server, plan = seen.find(ref)
        known = dict(seen.disks_of(server, plan))
        missing = [disk for disk in disks if disk not in known]
        if missing:
            raise NotFound(f"VM {ref} has no disk {', '.join(missing)}", vm=ref)
        volumes = [known[disk] for disk in disks]
        images = [self._backing.image(volume) for volume in volumes]
        self._check_free(volumes, images, migration)
        bases = self._bases(volumes, since)
        self._take(server, volumes, key, migration=migration, track=track)
        taken = self._snapshots.ready(volumes, key)
        self._let_go(server)
        points = []
        for disk, volume, (pool, image) in zip(disks, volumes, images, strict=True):
            name = snapshots.image_name(taken[volume.id])
            self._backing.images.begin_point(pool, image, key)
            base = snapshots.image_name(bases[volume.id]) if since is not None else None
            endpoint = self._backing.images.endpoint(pool, image, snapshot=name, since=base, session=key)
            size = self._backing.images.snapshots(pool, image)[name]
            points.append(DiskPoint(key=disk, size_bytes=size, endpoint=endpoint, tracked=since is not None))
        first = taken[volumes[0].id]
        kind: PointKind = "cold" if first.metadata.get(KIND) == "cold" else "live"
        return OpenPoint(
            key=key,
            vm_ref=ref,
            kind=kind,
            taken_at=snapshots.taken_at(list(taken.values())),
            token=key if first.metadata.get(TRACK) == "yes" else None,
            since=since,
            disks=tuple(points),
        )

    def close(self, ref: str, key: str, *, migration: str) -> None:
        """End reading; the snapshot stays as token, or goes. Raises NotFound (VM), NotReady."""
        server, volumes = self._vm(ref)
        self._let_go(server, key)
        if not owns_point(key, migration):
            return
        for volume in volumes:
            self._backing.images.end_point(*self._backing.image(volume), key)
        kept = self._snapshots.named(volumes, key)
        if any((snapshot.metadata or {}).get(TRACK) != "yes" for snapshot in kept.values()):
            self._snapshots.remove(volumes, [key])

    def forget(self, ref: str, *, migration: str, keep: Sequence[str] = ()) -> None:
        """Remove the migration's snapshots but for those in ``keep``. Raises NotFound (VM), NotReady."""
        _, volumes = self._vm(ref)
        names = sorted({snapshot.name for snapshot in self._snapshots.owned(volumes, migration)} - set(keep))
        for volume in volumes:
            pool, image = self._backing.image(volume)
            for key in self._backing.images.points(pool, image):
                if owns_point(key, migration) and key not in keep:
                    self._backing.images.end_point(pool, image, key)
        self._snapshots.remove(volumes, names)

    def owned(self, ref: str, migration: str) -> Sequence[str]:
        """Names of the migration's snapshots, and of points that are open."""
        _, volumes = self._vm(ref)
        names = {str(snapshot.name) for snapshot in self._snapshots.owned(volumes, migration)}
        for volume in volumes:
            open_now = self._backing.images.points(*self._backing.image(volume))
            names |= {key for key in open_now if owns_point(key, migration)}
        return sorted(names)

    def _vm(self, ref: str) -> tuple[Any | None, list[Any]]:
        seen = inventory.read(self._connection)
        _, server, plan = seen.find(ref)
        return server, [volume for _, volume in seen.disks_of(server, plan) if self._backing.reaches(volume)]

    def _check_free(self, volumes: Sequence[Any], images: Sequence[tuple[str, str]], migration: str) -> None:
        for volume, (pool, image) in zip(volumes, images, strict=True):
            writer = (volume.metadata or {}).get(WRITER)
            if writer:
                raise Conflict(f"volume {volume.name or volume.id} is being written by session {writer}")
            others = [key for key in self._backing.images.points(pool, image) if not owns_point(key, migration)]
            if others:
                raise Conflict(
                    f"volume {volume.name or volume.id} is read at point {', '.join(others)}",
                    action="end the other migration of this VM first",
                )

    def _bases(self, volumes: Sequence[Any], since: str | None) -> dict[str, Any]:
        if since is None:
            return {}
        found = self._snapshots.named(volumes, since)
        for volume in volumes:
            pool, image = self._backing.image(volume)
            base = found.get(volume.id)
            if base is None or snapshots.image_name(base) not in self._backing.images.snapshots(pool, image):
                raise BaseLost(f"volume {volume.name or volume.id} has no snapshot {since} any more")
        return found

    def _take(self, server: Any | None, volumes: Sequence[Any], key: str, *, migration: str, track: bool) -> None:
        """Ask for the snapshots unless all were asked for already."""
        there = self._snapshots.named(volumes, key)
        if len(there) == len(volumes):
            return
        power = vms.power_of(server)
        if there:  # an attempt was killed between two of them: they are not of one instant
            self._snapshots.remove(volumes, [key])
        if len(volumes) > 1 and power is Power.RUNNING and server is not None:
            self._pause(server, key)
        kind: PointKind = "cold" if power in {Power.OFF, Power.CRASHED} else "live"
        self._snapshots.create(volumes, key, migration=migration, kind=kind, track=track)

    def _pause(self, server: Any, key: str) -> None:
        with self._connection.using(f"pausing {server.name} for a snapshot of all its disks") as conn:
            conn.compute.set_server_metadata(server.id, **{PAUSED: key})
            server.metadata[PAUSED] = key
            conn.compute.pause_server(server.id)
            settled(
                lambda: True if vms.power_of(conn.compute.get_server(server.id)) is Power.PAUSED else None,
                f"server {server.name} is being paused",
            )

    def _let_go(self, server: Any | None, key: str | None = None) -> None:
        """Undo ``_pause``, also that of an attempt that was killed."""
        held = server.metadata.get(PAUSED) if server is not None else None
        if server is None or held is None or key not in {None, held}:
            return
        with self._connection.using(f"letting {server.name} go on after its snapshots") as conn:
            if vms.power_of(conn.compute.get_server(server.id)) is Power.PAUSED:
                conn.compute.unpause_server(server.id)
            conn.compute.delete_server_metadata(server.id, keys=[PAUSED])
