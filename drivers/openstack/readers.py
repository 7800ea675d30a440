"""Volumes made from a point's snapshots, for storage that no worker reaches: a mover server serves them.

One for each disk and point, found by its metadata; they go before the snapshot does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from drivers.openstack import marks
from drivers.openstack.connection import Connection, settled
from drivers.openstack.errors import volume_failed

READY = {"available", "reserved", "attaching", "in-use"}


class Readers:
    """Such volumes, asked for anew with each call."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def ensure(self, key: str, volumes: Sequence[Any], taken: Mapping[str, Any]) -> dict[str, Any]:
        """By volume id; ``taken`` are the point's snapshots. Raises NotReady, QuotaExceeded, Conflict (it failed)."""
        there = self._by_volume(key)
        for volume in volumes:
            if volume.id not in there:
                with self._connection.using(f"making a volume of point {key} of {volume.name or volume.id}") as conn:
                    conn.block_storage.create_volume(
                        name=f"whimbrel-read-{key}-{volume.id}",
                        size=volume.size,
                        snapshot_id=taken[volume.id].id,
                        metadata={marks.READS: key, marks.READS_VOLUME: volume.id},
                    )

        def look() -> dict[str, Any] | None:
            found = self._by_volume(key)
            for volume in found.values():
                if volume.status.startswith("error"):
                    self._delete([volume])  # the next attempt makes another
                    raise volume_failed(volume)
            ready = {of: volume for of, volume in found.items() if volume.status in READY}
            return ready if {volume.id for volume in volumes} <= set(ready) else None

        return settled(look, f"volumes of the snapshots {key} are being made")

    def remove(self, keys: Iterable[str]) -> None:
        """Delete those of these points and wait until they are gone. Raises NotReady, Conflict (it failed)."""
        wanted = set(keys)

        def look() -> bool | None:
            left = [volume for volume in self.all() if volume.metadata[marks.READS] in wanted]
            for volume in left:
                if volume.status == "error_deleting":
                    raise volume_failed(volume)
            self._delete([volume for volume in left if volume.status in {"available", "error"}])
            return None if left else True

        if wanted:
            settled(look, f"volumes of the snapshots {', '.join(sorted(wanted))} are being deleted")

    def all(self) -> list[Any]:
        """Those of all points."""
        with self._connection.using("listing volumes of snapshots") as conn:
            return [volume for volume in conn.block_storage.volumes() if marks.READS in (volume.metadata or {})]

    def of(self, volumes: Sequence[Any]) -> dict[str, list[str]]:
        """Keys of the points that have one of these volumes, by the volume's id."""
        found: dict[str, list[str]] = {volume.id: [] for volume in volumes}
        for reader in self.all() if volumes else ():
            keys = found.get(reader.metadata.get(marks.READS_VOLUME, ""))
            if keys is not None:
                keys.append(reader.metadata[marks.READS])
        return found

    def _by_volume(self, key: str) -> dict[str, Any]:
        return {
            volume.metadata[marks.READS_VOLUME]: volume
            for volume in self.all()
            if volume.metadata[marks.READS] == key and volume.status != "deleting"
        }

    def _delete(self, volumes: Iterable[Any]) -> None:
        for volume in volumes:
            with self._connection.using(f"deleting volume {volume.name}") as conn:
                conn.block_storage.delete_volume(volume.id, ignore_missing=True)
