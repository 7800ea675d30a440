"""Volumes that read what they lack from a streaming server of ours: ``whimbrel.ports.imports.ImportPort`` over Cinder.

Cinder makes the volume, so its record, type and quota are true. The empty image behind it is then replaced by one of
the same name that imports (``LiveImages``). Cinder and Nova go on as with any volume: the first snapshot, the
attachment, the server.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any

from drivers.openstack import marks
from drivers.openstack.backing import Backing
from drivers.openstack.connection import Connection
from drivers.openstack.fence import Fence
from drivers.openstack.importing import IMPORT, LiveImages, importing
from drivers.openstack.snapshots import Snapshots
from drivers.openstack.volumes import WRITER
from whimbrel.errors import Conflict, NotFound, NotReady, Unsupported
from whimbrel.model.vm import TargetDisk

OBJECT_BYTES = 4 << 20
"""As Cinder makes images (``rbd_store_chunk_size``). A write to a part of a missing object fetches all of it."""
REQUESTS = 2
"""Objects that an execution has under way: more of them lengthens the misses of the server beside it."""


class OpenStackImports:
    """``ImportPort`` over one connection. ``gateway_address`` is the mover's, as compute hosts and Cinder reach it."""

    def __init__(
        self, connection: Connection, backing: Backing, live: LiveImages, fence: Fence, gateway_address: str
    ) -> None:
        self._connection = connection
        self._backing = backing
        self._live = live
        self._gateway_address = gateway_address
        self._snapshots = Snapshots(connection)
        self._fence = fence

    @property
    def gateway_address(self) -> str:
        """Address of the mover that the cloud's storage and hypervisors reach."""
        return self._gateway_address

    def begin(self, disk: TargetDisk, url: str, *, migration: str) -> None:
        """Replace the volume's empty image; see ImportPort. Raises also Unsupported (encrypted, another backend)."""
        volume = self._found(disk)
        name = volume.name or volume.id
        mine = importing(volume)
        if (volume.metadata or {}).get(marks.MIGRATION) != migration or mine not in {None, migration}:
            raise Conflict(f"volume {name} belongs to another migration", volume=volume.id)
        if volume.is_encrypted:
            raise Unsupported(
                f"volume {name} is encrypted: an import would fill it with plain bytes",
                action="map the disk to a volume type without encryption, or use mode incremental",
            )
        writer = (volume.metadata or {}).get(WRITER)
        if writer:
            raise Conflict(f"volume {name} is being written by session {writer}", volume=volume.id)
        if mine is None and volume.attachments:
            raise Conflict(f"volume {name} is attached to a server", volume=volume.id)
        pool, image = self._backing.image(volume)
        if mine is None:
            with self._connection.using(f"marking volume {name} as imported") as conn:
                # before the image is replaced: what has no mark would be opened as an image of its own bytes
                conn.block_storage.set_volume_metadata(volume.id, **{IMPORT: migration})
        self._live.prepare(pool, image, url, size_bytes=disk.volume.size_bytes, object_bytes=OBJECT_BYTES)

    def try_out(self, disk: TargetDisk, *, migration: str) -> None:
        """Let cinder-volume open the image, as it must for the first snapshot. Raises NotReady, Conflict (it cannot).

        A snapshot that failed goes with its volume, once the image is gone: before, Cinder would fail to open it again.
        """
        volume = self._found(disk)
        key = f"whimbrel-{migration}-tried"
        if not self._snapshots.named([volume], key):
            self._snapshots.create([volume], key, migration=migration, kind="cold", tracked=())
        self._snapshots.ready([volume], key)
        self._snapshots.remove([volume], [key])

    def fill(
        self, disk: TargetDisk, *, should_stop: Callable[[], bool], on_progress: Callable[[int, int], None]
    ) -> bool:
        """Bring every byte; see ImportPort. Looks after the server's fence first."""
        volume = self._found(disk)
        if importing(volume) is None:
            raise NotFound(f"volume {volume.name or volume.id} is not being imported", volume=volume.id)
        for server in self._servers(volume):
            self._fence.shut(server)
        size = disk.volume.size_bytes

        def progress(done: int, total: int) -> None:
            on_progress(size * done // max(total, 1), size)

        return self._live.execute(
            *self._backing.image(volume), requests=REQUESTS, should_stop=should_stop, on_progress=progress
        )

    def give_up(self, disk: TargetDisk, *, migration: str) -> None:
        """Remove the image of an import that was not committed; the volume's record stays. See ImportPort."""
        volume = self._volume(disk)
        if volume is None or importing(volume) != migration:
            return
        name = volume.name or volume.id
        if volume.attachments:
            raise NotReady(f"volume {name} is still attached to a server", volume=volume.id)
        self._live.abort(*self._backing.image(volume))
        self.unmark(volume)

    def unmark(self, volume: Any) -> None:
        """Nothing is imported into the volume any more."""
        with self._connection.using(f"removing the mark of its import from volume {volume.name or volume.id}") as conn:
            conn.block_storage.delete_volume_metadata(volume.id, keys=[IMPORT])

    def blockers(self, pools: Sequence[str]) -> Sequence[str]:
        """Pools (volume types) that lie elsewhere or in too old a Ceph, and an address that is not this mover's."""
        found = []
        for kind in sorted(set(pools)):
            pool = self._backing.pools.get(kind)
            why = self._live.why_not(pool) if pool is not None else "no Ceph pool is named for it under ceph.pools"
            if why:
                found.append(f"volume type {kind}: {why}")
        family = socket.AF_INET6 if ":" in self._gateway_address else socket.AF_INET
        with socket.socket(family) as probe:
            try:
                probe.bind((self._gateway_address, 0))
            except OSError as error:
                found.append(f"this mover cannot listen on gateway_address {self._gateway_address}: {error.strerror}")
        return found

    def _servers(self, volume: Any) -> list[Any]:
        ids = [attachment.get("server_id") for attachment in volume.attachments or ()]
        with self._connection.using(f"looking at the server on volume {volume.name or volume.id}") as conn:
            found = [conn.compute.find_server(one, ignore_missing=True) for one in ids if one]
        return [server for server in found if server is not None]

    def _found(self, disk: TargetDisk) -> Any:
        volume = self._volume(disk)
        if volume is None:
            raise NotFound(f"there is no volume {disk.volume.name}", volume=disk.volume.location)
        return volume

    def _volume(self, disk: TargetDisk) -> Any | None:
        with self._connection.using(f"looking at volume {disk.volume.name}") as conn:
            return conn.block_storage.find_volume(disk.volume.location, ignore_missing=True)
