"""Points in time by Cinder snapshots, and what changed between two of them by RBD's own diff.

A VM that is off and kept off needs none: its images are read as they are. A snapshot costs a second or two (Cinder's
queue, and up to a second for the number that Ceph's monitors give it), which would all be outage.

A volume whose image no worker reaches is read through a mover server, from a volume made of the snapshot; what changed
there nobody tells, so such a snapshot is no token and goes with its point.

A snapshot is a point's content and, when it is kept, the token by which a later point asks for changes. One call takes
one snapshot, so a server with several disks is paused while they are taken: only so is it one instant. The pause is
marked on the server before it begins, and ended by whoever finds it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from drivers.openstack import inventory, marks, snapshots, vms
from drivers.openstack.backing import Backing
from drivers.openstack.connection import Connection
from drivers.openstack.inventory import Inventory
from drivers.openstack.mover import ServedVolume
from drivers.openstack.pausing import LIMIT_S, REST_S, Pauses
from drivers.openstack.readers import Readers
from drivers.openstack.snapshots import KIND, TRACK, Snapshots
from drivers.openstack.volumes import WRITER
from whimbrel.errors import BaseLost, Conflict, NotFound, NotReady, Unsupported, WhimbrelError
from whimbrel.model.endpoint import NbdEndpoint
from whimbrel.model.naming import owns_point
from whimbrel.model.point import DiskPoint, OpenPoint, PointKind
from whimbrel.model.vm import Power


class OpenStackPoints:
    """``PointInTimePort`` over one connection."""

    def __init__(self, connection: Connection, backing: Backing) -> None:
        self._connection = connection
        self._backing = backing
        self._snapshots = Snapshots(connection)
        self._pauses = Pauses(connection)
        self._readers = Readers(connection)

    def open(
        self,
        ref: str,
        disks: Sequence[str],
        *,
        key: str,
        since: str | None = None,
        migration: str,
        track: bool = True,
        resting: bool = False,
    ) -> OpenPoint:
        """See PointInTimePort. Raises also QuotaExceeded (snapshots count), NotReady."""
        seen = inventory.read(self._connection)
        try:
            return self._open(seen, ref, disks, key=key, since=since, migration=migration, track=track, resting=resting)
        except WhimbrelError as error:
            self._look_after(seen, ref, key, error)
            raise

    def _open(
        self,
        seen: Inventory,
        ref: str,
        disks: Sequence[str],
        *,
        key: str,
        since: str | None,
        migration: str,
        track: bool,
        resting: bool,
    ) -> OpenPoint:
        ref, server, plan = seen.find(ref)
        known = dict(seen.disks_of(server, plan))
        missing = [disk for disk in disks if disk not in known]
        if missing:
            raise NotFound(f"VM {ref} has no disk {', '.join(missing)}", vm=ref)
        volumes = [known[disk] for disk in disks]
        direct = [volume for volume in volumes if not self._backing.served(volume)]
        images = {volume.id: self._backing.image(volume) for volume in direct}
        self._check_free(volumes, images, migration, announced=server is None)
        bases = self._bases(direct, since)
        off = vms.power_of(server) in {Power.OFF, Power.CRASHED}
        if resting and not off and len(direct) < len(volumes):
            # a snapshot of it now would not be what is there once it is off
            raise Unsupported(f"VM {ref} has disks behind mover servers: they are opened when it is off", vm=ref)
        if resting and len(direct) == len(volumes):
            at_rest = {disk: (volume, bases.get(volume.id)) for disk, volume in zip(disks, volumes, strict=True)}
            return self._at_rest(ref, key, since, at_rest)
        self._take(server, volumes, key, migration=migration, tracked=set(images) if track else set())
        with self._backing.telling_when_full(direct):
            taken = self._snapshots.ready(volumes, key)
        self._pauses.end(server)
        served = self._serve(key, [volume for volume in volumes if volume.id not in images], taken)
        points = []
        for disk, volume in zip(disks, volumes, strict=True):
            if volume.id in served:
                points.append(DiskPoint(key=disk, size_bytes=marks.size_of(volume), endpoint=served[volume.id]))
                continue
            pool, image = images[volume.id]
            name = snapshots.image_name(taken[volume.id])
            self._backing.images.begin_point(pool, image, key)
            base = snapshots.image_name(bases[volume.id]) if since is not None else None
            endpoint = self._backing.images.endpoint(pool, image, snapshot=name, since=base, session=key)
            size = self._backing.images.snapshots(pool, image)[name]
            points.append(DiskPoint(key=disk, size_bytes=size, endpoint=endpoint, tracked=since is not None))
        found = list(taken.values())
        kind: PointKind = "cold" if found[0].metadata.get(KIND) == "cold" else "live"
        return OpenPoint(
            key=key,
            vm_ref=ref,
            kind=kind,
            taken_at=snapshots.taken_at(found),
            token=key if any(_stays(snapshot) for snapshot in found) else None,
            since=since,
            disks=tuple(points),
        )

    def close(self, ref: str, key: str, *, migration: str) -> None:
        """End reading; the snapshots stay as token, or go. Raises NotFound (VM), NotReady."""
        server, volumes = self._vm(ref)
        self._pauses.end(server, key)
        if not owns_point(key, migration):
            return
        self._stop_serving(volumes, [key])
        for volume in volumes:
            if self._backing.reaches(volume):
                self._backing.images.end_point(*self._backing.image(volume), key)
        kept = self._snapshots.named(volumes, key)
        going = [volume for volume in volumes if volume.id in kept and not _stays(kept[volume.id])]
        if going:
            self._snapshots.remove(going, [key])

    def forget(self, ref: str, *, migration: str, keep: Sequence[str] = ()) -> None:
        """Remove the migration's snapshots but for those in ``keep``. Raises NotFound (VM), NotReady."""
        _, volumes = self._vm(ref)
        names = {str(snapshot.name) for snapshot in self._snapshots.owned(volumes, migration)} - set(keep)
        self._stop_serving(volumes, sorted((names | self._served(volumes, migration)) - set(keep)))
        for volume in volumes:
            if not self._backing.reaches(volume):
                continue
            pool, image = self._backing.image(volume)
            for key in self._backing.images.points(pool, image):
                if owns_point(key, migration) and key not in keep:
                    self._backing.images.end_point(pool, image, key)
        self._snapshots.remove(volumes, sorted(names))

    def owned(self, ref: str, migration: str) -> Sequence[str]:
        """Names of the migration's snapshots, and of points that are open."""
        _, volumes = self._vm(ref)
        names = {str(snapshot.name) for snapshot in self._snapshots.owned(volumes, migration)}
        names |= self._served(volumes, migration)
        for volume in volumes:
            if self._backing.reaches(volume):
                open_now = self._backing.images.points(*self._backing.image(volume))
                names |= {key for key in open_now if owns_point(key, migration)}
        return sorted(names)

    def _at_rest(self, ref: str, key: str, since: str | None, disks: Mapping[str, tuple[Any, Any | None]]) -> OpenPoint:
        """The images as they are; ``disks`` are volume and base snapshot by key."""
        images, moments, points = self._backing.images, [], []
        for disk, (volume, base) in disks.items():
            where = self._backing.image(volume)
            moments.append(images.begin_point(*where, key))
            name = snapshots.image_name(base) if base is not None else None
            endpoint = images.endpoint(*where, since=name, session=key)
            size = images.sizes([where])[where]
            points.append(DiskPoint(key=disk, size_bytes=size, endpoint=endpoint, tracked=base is not None))
        return OpenPoint(
            key=key,
            vm_ref=ref,
            kind="cold",
            taken_at=min(moments),
            token=None,
            since=since,
            disks=tuple(points),
        )

    def _look_after(self, seen: Inventory, ref: str, key: str, error: WhimbrelError) -> None:
        """No guest stays paused for a point that is not there. Raises NotReady for one that was let go.

        What is away may be Cinder as a whole, so only Nova is asked.
        """
        server = seen.server_of(ref)
        if not error.retryable:  # a person is asked now, which takes its time
            self._pauses.end(server, key)
        elif server is not None and self._pauses.end_if_too_long(server, key):
            raise NotReady(
                f"Cinder has not taken snapshots of all disks in the {LIMIT_S:.0f} s that {server.name} was paused: "
                f"it goes on, they are taken again in {REST_S:.0f} s ({error.message})",
                retry_after_s=REST_S,
            ) from error

    def _serve(self, key: str, volumes: Sequence[Any], taken: Mapping[str, Any]) -> Mapping[str, NbdEndpoint]:
        """Endpoints by volume id."""
        movers = self._backing.movers
        if movers is None or not volumes:
            return {}
        readers = self._readers.ensure(key, volumes, taken)
        served = [ServedVolume(readers[volume.id].id, marks.size_of(volume), writable=False) for volume in volumes]
        found = movers.serve(key, served)
        return {volume.id: found[readers[volume.id].id] for volume in volumes}

    def _stop_serving(self, volumes: Sequence[Any], keys: Sequence[str]) -> None:
        movers = self._backing.movers
        if movers is None or not any(map(self._backing.served, volumes)):
            return
        for key in keys:
            movers.end(key)
        self._readers.remove(keys)

    def _served(self, volumes: Sequence[Any], migration: str) -> set[str]:
        """The migration's points of these volumes that a mover server serves: its volumes come first and go last."""
        found = self._readers.of([volume for volume in volumes if self._backing.served(volume)])
        return {key for keys in found.values() for key in keys if owns_point(key, migration)}

    def _vm(self, ref: str) -> tuple[Any | None, list[Any]]:
        seen = inventory.read(self._connection)
        _, server, plan = seen.find(ref)
        return server, [
            volume
            for _, volume in seen.disks_of(server, plan)
            if self._backing.reaches(volume) or self._backing.served(volume)
        ]

    def _check_free(
        self, volumes: Sequence[Any], images: Mapping[str, tuple[str, str]], migration: str, *, announced: bool
    ) -> None:
        """Raises Conflict. A VM that is announced only may have the session of the migration that fills its volumes.

        That copies nothing into them while the point is taken.
        """
        readers = self._readers.of([volume for volume in volumes if volume.id not in images])
        for volume in volumes:
            writer = (volume.metadata or {}).get(WRITER)
            if writer and not (announced and owns_point(writer, migration)):
                raise Conflict(f"volume {volume.name or volume.id} is being written by session {writer}")
            direct = images.get(volume.id)
            known = self._backing.images.points(*direct) if direct is not None else readers[volume.id]
            others = [key for key in known if not owns_point(key, migration)]
            if others:
                raise Conflict(
                    f"volume {volume.name or volume.id} is read at point {', '.join(others)}",
                    action="end the other migration of this VM first",
                )

    def _bases(self, volumes: Sequence[Any], since: str | None) -> dict[str, Any]:
        if since is None:
            return {}
        if not volumes:
            raise BaseLost("no disk of this VM has a token: none of its volumes is reached directly")
        found = self._snapshots.named(volumes, since)
        for volume in volumes:
            pool, image = self._backing.image(volume)
            base = found.get(volume.id)
            if base is None or snapshots.image_name(base) not in self._backing.images.snapshots(pool, image):
                raise BaseLost(f"volume {volume.name or volume.id} has no snapshot {since} any more")
        return found

    def _take(
        self, server: Any | None, volumes: Sequence[Any], key: str, *, migration: str, tracked: Collection[str]
    ) -> None:
        """Ask for the snapshots unless all were asked for already."""
        there, late = self._snapshots.named(volumes, key), self._pauses.is_late(server, key)
        if len(there) == len(volumes) and not late:
            return
        power = vms.power_of(server)
        if late or there or self._snapshots.failed(volumes, key):
            # an attempt was killed between two of them, or Cinder failed: what is there is not of one instant
            self._snapshots.remove(volumes, [key])
        if len(volumes) > 1 and power is Power.RUNNING and server is not None:
            self._pauses.begin(server, key)
        kind: PointKind = "cold" if power in {Power.OFF, Power.CRASHED} else "live"
        self._snapshots.create(volumes, key, migration=migration, kind=kind, tracked=tracked)


def _stays(snapshot: Any) -> bool:
    """Whether it is a token once its point is closed."""
    return (snapshot.metadata or {}).get(TRACK) == "yes"
