"""Cinder's manage and unmanage: an image that lies in the pool becomes a volume, and ceases to be one. Admin only.

``manage`` renames the image to the name that Cinder opens it by. ``unmanage`` removes the record and leaves the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from openstack import exceptions as sdk

from drivers.openstack.connection import Connection, settled
from drivers.openstack.errors import volume_failed
from drivers.openstack.transfer import OFFERED, Transfers
from whimbrel.errors import Conflict, NotFound, NotReady, Unsupported
from whimbrel.model.endpoint import Frozen

ADOPTED = "whimbrel_adopted"
"""On a volume that was made of an image which another cloud has released; not on those that may be deleted."""
STUCK_S = 120.0
"""After this a volume that is being managed or unmanaged is left by its service."""
PATIENCE_S = 8.0
LISTED_SINCE = "3.8"
"""Microversion of the list of what could be managed."""
BUSY = {"managing", "unmanaging", "deleting", "error_managing_deleting"}
LETS_GO = {"available", "error", "error_managing", "error_deleting", "error_extending"}


class Adopted(Frozen):
    """The mark on such a volume."""

    migration: str
    image: str
    """Lasting id of the image."""


def adopted(volume: Any) -> Adopted | None:
    """By whom, and of what the volume was made."""
    text = (volume.metadata or {}).get(ADOPTED)
    return Adopted.model_validate_json(text) if text else None


class Managing:
    """Over an administrator's connection; the volumes come into the tenant's project, by transfer if need be."""

    def __init__(self, tenant: Connection, admin: Connection | None = None, *, stuck_s: float = STUCK_S) -> None:
        self._connection = admin or tenant
        self._transfers = Transfers(tenant, self._connection)
        self._stuck_s = stuck_s

    def on_their_way(self) -> list[Any]:
        """Volumes that were managed and did not reach the tenant's project yet."""
        return [volume for volume in self._transfers.waiting() if adopted(volume) is not None]

    def check_room(self, sizes_bytes: Sequence[int]) -> None:
        """Raises QuotaExceeded when the administrator's project cannot take volumes of these sizes for a moment."""
        self._transfers.check_room(sizes_bytes)

    def host(self, kind: str) -> str:
        """Cinder's name for the backend of a volume type. Raises NotFound, PermissionDenied, Unsupported."""
        return self._connection.once(f"backend of {kind}", lambda: self._host(kind))

    def _host(self, kind: str) -> str:
        with self._connection.using(f"looking for the backend of volume type {kind}") as conn:
            types = {found.name: found for found in conn.block_storage.types()}
            if kind not in types:
                raise NotFound(f"there is no volume type {kind}", action="correct the plan's map of storage", pool=kind)
            pools = list(conn.block_storage.backend_pools(detail=True))
        wanted = (types[kind].extra_specs or {}).get("volume_backend_name")
        fit = [
            pool for pool in pools if wanted is None or (pool.capabilities or {}).get("volume_backend_name") == wanted
        ]
        if wanted is None and len(fit) > 1:
            raise Unsupported(
                f"volume type {kind} does not say which backend it lies in",
                action="set volume_backend_name in the extra specs of the type",
            )
        if not fit:
            raise NotFound(f"no running backend has volume type {kind}", action="start cinder-volume for it", pool=kind)
        return str(min(pool.name for pool in fit))

    def sees(self, kind: str, image: str) -> bool:
        """Whether Cinder itself sees an image in the pool of this type. Raises as ``host``."""
        host = self.host(kind)
        with self._connection.using(f"asking Cinder which images of {host} it could manage") as conn:
            params: dict[str, Any] | None = {"host": host, "sort": "reference:desc"}  # names with a w come first
            page = "/manageable_volumes"
            while page:
                answer = conn.block_storage.get(page, params=params, microversion=LISTED_SINCE)
                sdk.raise_from_response(answer)
                told = answer.json()
                names = [str(found["reference"].get("source-name", "")) for found in told["manageable-volumes"]]
                if image in names:
                    return True
                if not names or names[-1] < image:
                    return False
                links = told.get("manageable-volumes_links", ())
                page = next((str(link["href"]) for link in links if link["rel"] == "next"), "")
                params = None
        return False

    def manage(self, kind: str, image: str, mark: Adopted, *, name: str, description: str, bootable: bool) -> str:
        """Ask for it; the volume's id. Raises PermissionDenied, QuotaExceeded, NotFound."""
        host = self.host(kind)
        with self._connection.using(f"managing image {image} as a volume") as conn:
            made = conn.block_storage.manage_volume(
                host=host,
                ref={"source-name": image},
                name=name,
                description=description,
                volume_type=kind,
                bootable=bootable,
                metadata={ADOPTED: mark.model_dump_json()},
            )
        return str(made.id)

    def managed(self, volume: str) -> Any:
        """The volume once it is one, and the tenant's. Raises NotReady; Conflict, QuotaExceeded when it failed."""

        def look() -> Any | None:
            with self._connection.using("looking at a volume that is being managed") as conn:
                found = conn.block_storage.get_volume(volume)
            if found.status.startswith("error"):
                raise volume_failed(found, self._why(volume))
            return found if found.status in {"available", "in-use", "reserved", OFFERED} else None

        found = settled(look, f"volume {volume} is being managed")
        self._transfers.hand_over(found)
        return found

    def unmanage(self, volume: str, *, patient: bool = True) -> None:
        """Remove the record; one that is not there is fine. One that is half made, or half removed, is waited for.

        Without ``patient`` it is enough that the cloud was asked: for records that no image belongs to. Raises
        Conflict (attached, snapshots), PermissionDenied, NotReady.
        """
        asked = False

        def look() -> bool | None:
            nonlocal asked
            with self._connection.using(f"letting volume {volume} go") as conn:
                try:
                    found = conn.block_storage.get_volume(volume)
                except sdk.NotFoundException:
                    return True
                if not asked or found.status.startswith("error"):
                    asked = self._unmanage(conn, found)
            return None

        try:
            settled(look, f"volume {volume} is being let go", patience_s=PATIENCE_S)
        except NotReady:
            if patient:
                raise

    def _unmanage(self, conn: Any, found: Any) -> bool:
        """Ask for it; False while the record's service is at it."""
        if found.status in {"attaching", "detaching"}:
            return False
        self._transfers.withdraw(found)
        if found.status == OFFERED:
            return False
        if found.status in BUSY:
            if _age_s(found) < self._stuck_s:
                return False
            conn.block_storage.reset_volume_status(found.id, status="error")
        elif found.status not in LETS_GO:
            raise Conflict(
                f"volume {found.name or found.id} is {found.status}: it cannot be let go",
                action="take it from what uses it; its data is not touched",
                volume=found.id,
            )
        try:
            conn.block_storage.unmanage_volume(found.id)
        except sdk.NotFoundException:
            return True
        return True

    def _why(self, volume: str) -> str:
        """Cinder's own words about what failed."""
        try:
            with self._connection.using("asking why a volume could not be managed") as conn:
                answer = conn.block_storage.get("/messages", params={"resource_uuid": volume}, microversion="3.5")
                told = answer.json().get("messages", [])
        except (NotFound, NotReady, ValueError):
            return ""
        return "; ".join(str(message.get("user_message", "")) for message in told)


def _age_s(volume: Any) -> float:
    """Since the record was last changed, by the clock of the cloud, which is UTC without saying so."""
    text = volume.updated_at or volume.created_at
    changed = datetime.fromisoformat(text).replace(tzinfo=UTC)
    return (datetime.now(UTC) - changed).total_seconds()
