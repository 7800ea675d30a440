"""Cinder's volumes: ``whimbrel.ports.volume.VolumePort``. Bytes go straight into the RBD images behind them, or, where
no worker reaches those, through a mover server that has the volumes while they are written.

Cinder counts in whole GiB. A volume is made in that size, and its image then cut to the size that was asked for, as it
is after ``manage`` of an image: the guest sees its disk as long as it was, and a rollback has nothing left over. Where
the image is not reached it stays longer, and zero there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from drivers.openstack import inventory, marks, pools, vms
from drivers.openstack.backing import Backing
from drivers.openstack.connection import Connection, settled
from drivers.openstack.errors import volume_failed
from drivers.openstack.managing import adopted
from drivers.openstack.mover import ServedVolume
from whimbrel.errors import Conflict, InvalidPlan, NotFound, NotReady, Unsupported, WhimbrelError
from whimbrel.model.facts import PoolFacts
from whimbrel.model.naming import marker_name
from whimbrel.model.point import DiskPoint, OpenPoint, WriterSession
from whimbrel.model.vm import Power, VmSpec, VolumeRef, VolumeSpec

WRITER = "whimbrel_writer"
"""On a volume that is being written: the session's key."""
VM = "whimbrel_vm"
IDLE = {"available", "in-use", "reserved"}


class OpenStackVolumes:
    """``VolumePort`` over one connection; a pool is a volume type."""

    def __init__(self, connection: Connection, backing: Backing) -> None:
        self._connection = connection
        self._backing = backing

    def pools(self) -> Sequence[PoolFacts]:
        """The volume types that the project may use."""
        return pools.read(self._connection)

    def ensure_volume(self, spec: VolumeSpec) -> VolumeRef:
        """Make it, or find it. Raises NotFound (volume type), QuotaExceeded, Conflict, InvalidPlan, NotReady."""
        if spec.format != "raw":
            raise InvalidPlan(f"volumes of OpenStack are raw, not {spec.format}", action="say disk_format: raw")
        found = self._named(spec.name)
        if found is not None and found.status == "error":
            found = self._never_made(found, spec)
        if found is None:
            if spec.pool not in {pool.name for pool in self.pools()}:
                raise NotFound(f"there is no volume type {spec.pool}", action="correct the plan's map of storage")
            with self._connection.using(f"making volume {spec.name}") as conn:
                found = conn.block_storage.create_volume(
                    name=spec.name,
                    size=marks.whole_gib(spec.size_bytes),
                    volume_type=spec.pool,
                    metadata={marks.MIGRATION: spec.migration, marks.SIZE: str(spec.size_bytes)},
                )
        self._check_like(found, spec)
        with self._backing.telling_when_full([found]):
            volume = self._ready(found.id)
        if self._backing.reaches(volume):
            self._backing.images.resize(*self._backing.image(volume), spec.size_bytes)
        return VolumeRef(
            name=spec.name, pool=spec.pool, size_bytes=spec.size_bytes, format="raw", location=str(volume.id)
        )

    def ensure_absent(self, name: str, pool: str, *, migration: str) -> None:
        """Delete it with our snapshots of it. Raises Conflict (in use, not ours), NotReady."""
        volume = self._named(name)
        if volume is None:
            return
        if (volume.metadata or {}).get(marks.MIGRATION) != migration:
            raise Conflict(f"volume {name} was not made by migration {migration}", volume=volume.id)
        user = (volume.metadata or {}).get(VM) or (volume.metadata or {}).get(WRITER)
        if user or volume.attachments or volume.status in {"in-use", "reserved"}:
            raise Conflict(f"volume {name} is in use by {user or 'a server'}", volume=volume.id)
        self._delete(volume)

    def owned(self, migration: str) -> Sequence[str]:
        """Names of the migration's volumes: made, adopted and not handed over yet; and of its notes in the pools."""
        found = [
            volume.name or volume.id
            for volume in self._volumes()
            if (volume.metadata or {}).get(marks.MIGRATION) == migration
            or ((mark := adopted(volume)) is not None and mark.migration == migration)
        ]
        return sorted(found + self._notes(migration))

    def _notes(self, migration: str) -> list[str]:
        if not self._backing.direct:
            return []
        name = marker_name(migration)
        return [name for pool in set(self._backing.pools.values()) if self._backing.images.shared.ids(pool, [name])]

    def open_writer(self, key: str, volumes: Mapping[str, VolumeRef], *, migration: str) -> WriterSession:
        """Make volumes writable. Raises NotFound, Conflict, Unsupported (no way to the storage)."""
        seen = inventory.read(self._connection)
        chosen = {}
        for disk, ref in volumes.items():
            volume = seen.volumes.get(ref.location)
            if volume is None or volume.status in {"deleting", "error_deleting"}:
                raise NotFound(f"there is no volume {ref.name}", volume=ref.location)
            for attachment in volume.attachments or ():
                server = seen.servers.get(attachment.get("server_id") or "")
                if server is not None and vms.power_of(server) is not Power.OFF:
                    raise Conflict(f"volume {ref.name} is in use by VM {server.name}, which is on", vm=server.id)
            chosen[disk] = volume
        return self._open(key, chosen)

    def open_disk_writer(self, key: str, vm: VmSpec, disks: Sequence[str], *, migration: str) -> WriterSession:
        """The same for disks of a VM that is off. Raises NotFound, Conflict."""
        seen = inventory.read(self._connection)
        _, server, plan = seen.find(vm.ref)
        if vms.power_of(server) not in {Power.OFF, Power.CRASHED}:
            raise Conflict(f"VM {vm.name} is on: its disks are not written", vm=vm.ref)
        known = dict(seen.disks_of(server, plan))
        for disk in disks:
            if disk not in known:
                raise NotFound(f"VM {vm.name} has no disk {disk}", vm=vm.ref)
            if server is not None and self._backing.served(known[disk]):
                raise Unsupported(
                    f"disk {disk} of {vm.name} cannot be written: a mover server cannot have it while the VM has it",
                    action="roll back without the target's writes (--drop-writes)",
                )
        return self._open(key, {disk: known[disk] for disk in disks})

    def close_writer(self, key: str) -> None:
        """End the session, and shut late writers out."""
        volumes = [volume for volume in self._volumes() if (volume.metadata or {}).get(WRITER) == key]
        movers = self._backing.movers
        if movers is not None and any(map(self._backing.served, volumes)):
            movers.end(key)
        for volume in volumes:
            self._end(volume, key)

    def freeze_writer(self, key: str, point: str, *, migration: str) -> OpenPoint:
        """Raises Unsupported: this driver lends no copy to a drill."""
        raise Unsupported("this version's OpenStack driver has no drills", action="drill in a KVM cloud")

    def thaw_writer(self, key: str, point: str) -> None:
        """Nothing is ever frozen."""

    def _open(self, key: str, volumes: Mapping[str, Any]) -> WriterSession:
        for volume in volumes.values():
            held = (volume.metadata or {}).get(WRITER)
            if held not in {None, key}:
                raise Conflict(f"volume {volume.name} is being written by session {held}", volume=volume.id)
        points, served = [], {}
        sizes = self._backing.sizes(list(volumes.values()))
        for disk, volume in volumes.items():
            if self._backing.served(volume):
                self._mark(volume, key)
                served[disk] = volume
                continue
            pool, image = self._backing.image(volume)
            new = WRITER not in (volume.metadata or {})
            self._mark(volume, key)
            try:
                self._backing.images.begin_session(pool, image, key)
            except WhimbrelError as error:
                if new and not error.retryable:
                    self._unmark(volume)
                raise
            endpoint = self._backing.images.endpoint(pool, image, session=key, writable=True)
            points.append(DiskPoint(key=disk, size_bytes=sizes[volume.id], endpoint=endpoint))
        points += self._serve(key, served)
        return WriterSession(key=key, disks=tuple(sorted(points, key=lambda point: list(volumes).index(point.key))))

    def _serve(self, key: str, volumes: Mapping[str, Any]) -> list[DiskPoint]:
        """Volumes that a mover server has while they are written."""
        movers = self._backing.movers
        if movers is None or not volumes:
            return []
        wanted = [ServedVolume(volume.id, marks.size_of(volume), writable=True) for volume in volumes.values()]
        endpoints = movers.serve(key, wanted)
        return [
            DiskPoint(key=disk, size_bytes=marks.size_of(volume), endpoint=endpoints[volume.id])
            for disk, volume in volumes.items()
        ]

    def _mark(self, volume: Any, key: str) -> None:
        """Before the session begins: what has no mark could not be found and closed. An earlier attempt's mark does."""
        if (volume.metadata or {}).get(WRITER) == key:
            return
        with self._connection.using(f"marking volume {volume.name} as written") as conn:
            conn.block_storage.set_volume_metadata(volume.id, **{WRITER: key})

    def _end(self, volume: Any, key: str) -> None:
        if self._backing.served(volume):
            if self._ready(volume.id).status != "available":
                raise NotReady(f"volume {volume.name} is being given back by its mover server")
        else:
            with suppress(NotFound):  # the image went with its volume
                self._backing.images.end_session(*self._backing.image(volume), key)
        self._unmark(volume)

    def _unmark(self, volume: Any) -> None:
        with self._connection.using(f"removing the session's mark from volume {volume.name}") as conn:
            conn.block_storage.delete_volume_metadata(volume.id, keys=[WRITER])

    def _volumes(self, **query: Any) -> list[Any]:
        with self._connection.using("listing volumes") as conn:
            return list(conn.block_storage.volumes(**query))

    def _named(self, name: str) -> Any | None:
        """The volume of this name that is ours. Raises Conflict when several are."""
        found = [volume for volume in self._volumes(name=name) if marks.MIGRATION in (volume.metadata or {})]
        if len(found) > 1:  # two calls at once: the names are a migration's own
            raise Conflict(f"{len(found)} volumes are named {name}", action="remove all but the oldest")
        return found[0] if found else None

    def _never_made(self, volume: Any, spec: VolumeSpec) -> Any | None:
        """Remove what an earlier attempt asked for and Cinder could not make: now there may be room for it.

        One that was written or belongs to a VM is given back as it is.
        """
        self._check_like(volume, spec)
        if volume.attachments or {VM, WRITER} & (volume.metadata or {}).keys():
            return volume
        self._delete(volume)
        return None

    def _delete(self, volume: Any) -> None:
        """Delete it with our snapshots of it. Raises NotReady; Conflict (Cinder cannot)."""
        with self._connection.using(f"deleting volume {volume.name}") as conn:
            if volume.status != "deleting":
                self._backing.make_room(volume)
                conn.block_storage.delete_volume(volume.id, cascade=True)

            def look() -> bool | None:
                now = conn.block_storage.find_volume(volume.id, ignore_missing=True)
                if now is not None and now.status.startswith("error_"):
                    raise volume_failed(now)
                return True if now is None else None

            settled(look, f"volume {volume.name} is being deleted")

    def _ready(self, volume_id: str) -> Any:
        def look() -> Any | None:
            with self._connection.using("looking at a volume") as conn:
                volume = conn.block_storage.get_volume(volume_id)
            if volume.status.startswith("error"):
                raise volume_failed(volume, self._why(volume_id))
            return volume if volume.status in IDLE else None

        return settled(look, "the volume is being made")

    def _why(self, volume_id: str) -> str:
        """Cinder's own words about what failed, which are kept apart from the volume."""
        try:
            with self._connection.using("asking why a volume failed") as conn:
                answer = conn.block_storage.get("/messages", params={"resource_uuid": volume_id}, microversion="3.5")
                told = answer.json().get("messages", [])
        except (WhimbrelError, ValueError):
            return ""
        return "; ".join(str(message.get("user_message", "")) for message in told)

    @staticmethod
    def _check_like(volume: Any, spec: VolumeSpec) -> None:
        metadata = volume.metadata or {}
        like = (metadata.get(marks.SIZE), metadata.get(marks.MIGRATION), volume.volume_type)
        if like != (str(spec.size_bytes), spec.migration, spec.pool):
            raise Conflict(
                f"volume {spec.name} exists with another size, type or owner",
                action="remove it if nothing needs it",
                volume=volume.id,
            )
