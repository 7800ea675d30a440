"""The RBD images behind Cinder's volumes, as far as this worker reaches them.

The driver of Ceph is handed in by the worker: drivers know nothing of each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from whimbrel.errors import Unsupported, WhimbrelError
from whimbrel.model.endpoint import Endpoint


class Images(Protocol):
    """What is asked of the storage; every method may raise Unavailable, AuthFailed, PermissionDenied, NotFound."""

    def endpoint(
        self,
        pool: str,
        image: str,
        *,
        snapshot: str | None = None,
        since: str | None = None,
        session: str | None = None,
        writable: bool = False,
    ) -> Endpoint:
        """How a mover opens the image."""
        ...

    def sizes(self, images: Sequence[tuple[str, str]]) -> dict[tuple[str, str], int]:
        """Real sizes by (pool, image); missing ones are left out."""
        ...

    def resize(self, pool: str, image: str, size_bytes: int) -> None:
        """Make the image exactly this long. Raises Conflict if it is open."""
        ...

    def snapshots(self, pool: str, image: str) -> dict[str, int]:
        """Names of its snapshots, with the size it had then, oldest first."""
        ...

    def openers(self, pool: str, image: str) -> tuple[str, ...]:
        """Clients that have it open for writing."""
        ...

    def session(self, pool: str, image: str) -> str | None:
        """Key of the session that writes it."""
        ...

    def begin_session(self, pool: str, image: str, key: str) -> None:
        """Open a session of writing. Raises Conflict."""
        ...

    def end_session(self, pool: str, image: str, key: str) -> None:
        """Close it and shut out late writers; another's is left alone."""
        ...

    def reach(self, pool: str) -> None:
        """Open the pool, write and remove a small object there."""
        ...

    def points(self, pool: str, image: str) -> tuple[str, ...]:
        """Keys of the points in time that are open on it."""
        ...

    def begin_point(self, pool: str, image: str, key: str) -> None:
        """Let endpoints with this key read its snapshots."""
        ...

    def end_point(self, pool: str, image: str, key: str) -> None:
        """Let them read no more; never begun is fine."""
        ...


class Backing:
    """Where volumes lie. ``pools`` maps volume types to Ceph pools; a type that it does not name has no direct way."""

    def __init__(self, images: Images | None, pools: Mapping[str, str]) -> None:
        self._images = images
        self._pools = dict(pools)

    @property
    def images(self) -> Images:
        """The storage. Raises Unsupported when the worker was given no way to it."""
        if self._images is None:
            raise Unsupported(
                "this worker has no access to the Ceph cluster behind Cinder",
                action="give the cloud a `ceph` section in whimbrel.yaml (docs/openstack.md)",
            )
        return self._images

    @property
    def direct(self) -> bool:
        """Whether the worker has a way to the storage at all."""
        return self._images is not None and bool(self._pools)

    def unreached(self) -> list[str]:
        """Pools that cannot be opened and written from here, each with the reason."""
        found = []
        for pool in sorted(set(self._pools.values())) if self._images is not None else ():
            try:
                self.images.reach(pool)
            except WhimbrelError as error:
                found.append(f"{pool}: {error.message}")
        return found

    def reaches(self, volume: Any) -> bool:
        """Whether the volume's image can be opened from here."""
        return self._images is not None and volume.volume_type in self._pools

    def image(self, volume: Any) -> tuple[str, str]:
        """Pool and name of the volume's image. Raises Unsupported.

        Cinder's template for names is ``volume-%s``; a volume that was migrated keeps the name of the id before.
        """
        if not self.reaches(volume):
            raise Unsupported(
                f"volume {volume.name or volume.id} of type {volume.volume_type} cannot be opened from this worker",
                action="name the Ceph pool of this volume type under ceph.pools in whimbrel.yaml",
            )
        return self._pools[volume.volume_type], f"volume-{volume.id}"

    def sizes(self, volumes: Sequence[Any]) -> dict[str, int]:
        """Real sizes of volumes in bytes by id; of those that cannot be reached what Cinder says, in whole GiB."""
        reached = {volume.id: self.image(volume) for volume in volumes if self.reaches(volume)}
        known = self.images.sizes(list(reached.values())) if reached else {}
        return {
            volume.id: known.get(reached.get(volume.id, ("", "")), int(volume.size or 0) << 30) for volume in volumes
        }
