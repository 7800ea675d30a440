"""Cinder snapshots of ours: one a disk and point, named by the point's key, in RBD ``snapshot-<id>``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from drivers.openstack import marks
from drivers.openstack.connection import Connection, settled
from drivers.openstack.errors import volume_failed
from whimbrel.model.naming import owns_point
from whimbrel.model.point import PointKind

KIND = "whimbrel_kind"
TRACK = "whimbrel_track"
"""``yes``: stays as a token after its point was closed."""


class Snapshots:
    """Snapshots of some volumes, asked for anew with each call."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def named(self, volumes: Sequence[Any], key: str) -> dict[str, Any]:
        """Those of a point, by volume id; one that is being deleted or has failed is not there."""
        return {
            snapshot.volume_id: snapshot
            for snapshot in self._all(volumes)
            if snapshot.name == key and snapshot.status in {"available", "creating"}
        }

    def failed(self, volumes: Sequence[Any], key: str) -> list[Any]:
        """Those of a point that Cinder could not make."""
        return [found for found in self._all(volumes) if found.name == key and found.status == "error"]

    def owned(self, volumes: Sequence[Any], migration: str) -> list[Any]:
        """All of a migration, in any state."""
        return [snapshot for snapshot in self._all(volumes) if owns_point(snapshot.name or "", migration)]

    def foreign(self, volumes: Sequence[Any]) -> list[Any]:
        """All that no migration made."""
        return [snapshot for snapshot in self._all(volumes) if marks.MIGRATION not in (snapshot.metadata or {})]

    def create(
        self, volumes: Sequence[Any], key: str, *, migration: str, kind: PointKind, tracked: Collection[str]
    ) -> None:
        """Ask for one of each volume, also of volumes in use; those of ``tracked`` (ids) are to stay as tokens.

        Raises QuotaExceeded: a snapshot counts its GiB.
        """
        for volume in volumes:
            track = "yes" if volume.id in tracked else "no"
            metadata = {marks.MIGRATION: migration, KIND: kind, TRACK: track}
            with self._connection.using(f"taking a snapshot of volume {volume.name or volume.id}") as conn:
                conn.block_storage.create_snapshot(volume_id=volume.id, name=key, is_forced=True, metadata=metadata)

    def ready(self, volumes: Sequence[Any], key: str) -> Mapping[str, Any]:
        """Those of a point once all are there. Raises NotReady, QuotaExceeded or Conflict (one failed)."""

        def look() -> dict[str, Any] | None:
            found = {}
            for snapshot in self._all(volumes):
                if snapshot.name == key and snapshot.status.startswith("error"):
                    raise volume_failed(snapshot)
                if snapshot.name == key and snapshot.status == "available":
                    found[snapshot.volume_id] = snapshot
            return found if len(found) == len(volumes) else None

        return settled(look, f"the snapshots {key} are being taken")

    def remove(self, volumes: Sequence[Any], names: Sequence[str]) -> None:
        """Delete those of these names and wait until they are gone. Raises NotReady, Conflict (it failed)."""

        def look() -> bool | None:
            left = [snapshot for snapshot in self._all(volumes) if snapshot.name in names]
            for snapshot in left:
                if snapshot.status == "error_deleting":
                    raise volume_failed(snapshot)
                if snapshot.status in {"available", "error"}:
                    with self._connection.using(f"deleting snapshot {snapshot.name}") as conn:
                        conn.block_storage.delete_snapshot(snapshot.id, ignore_missing=True)
            return None if left else True

        if names:
            settled(look, f"snapshots {', '.join(names)} are being deleted")

    def _all(self, volumes: Sequence[Any]) -> list[Any]:
        found: list[Any] = []
        for volume in volumes:
            with self._connection.using(f"listing snapshots of volume {volume.name or volume.id}") as conn:
                found += conn.block_storage.snapshots(volume_id=volume.id)
        return found


def image_name(snapshot: Any) -> str:
    """Its name in RBD, by Cinder's template."""
    return f"snapshot-{snapshot.id}"


def taken_at(snapshots: Sequence[Any]) -> datetime:
    """When the first of them was asked for, by Cinder's clock, which is UTC without saying so."""
    return min(datetime.fromisoformat(snapshot.created_at).replace(tzinfo=UTC) for snapshot in snapshots)
