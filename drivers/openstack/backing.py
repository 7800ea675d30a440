"""The RBD images behind Cinder's volumes, as far as this worker reaches them; mover servers are the way to the others.

The driver of Ceph is handed in by the worker: drivers know nothing of each other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from drivers.openstack import marks
from drivers.openstack.importing import importing
from whimbrel.errors import NotFound, NotReady, QuotaExceeded, Unsupported, WhimbrelError
from whimbrel.model.endpoint import Endpoint

if TYPE_CHECKING:
    from drivers.openstack.movers import Movers


class SharedImage(Protocol):
    """An image of a pool that two clouds see, as it is now."""

    @property
    def id(self) -> str:
        """Stays when the image is renamed."""
        ...

    @property
    def name(self) -> str:
        """What a cloud opens it by, now."""
        ...

    @property
    def size_bytes(self) -> int:
        """Real size."""
        ...

    @property
    def identity(self) -> str:
        """The same for whoever sees this very image, and of no copy."""
        ...

    @property
    def parent(self) -> str:
        """What it is a clone of; empty for an image that stands alone."""
        ...

    @property
    def snapshots(self) -> tuple[str, ...]:
        """Names of its snapshots."""
        ...

    @property
    def watchers(self) -> tuple[str, ...]:
        """Clients that have it open for writing, or died less than half a minute ago."""
        ...

    @property
    def session(self) -> str | None:
        """Key of the session that writes it."""
        ...

    @property
    def marks(self) -> Mapping[str, str]:
        """What was written with ``mark``."""
        ...


class SharedImages(Protocol):
    """Images known by their lasting id. Raises what ``Images`` raises."""

    def ids(self, pool: str, names: Iterable[str]) -> dict[str, str]:
        """Ids by name, of those names that lead to an image."""
        ...

    def names(self, pool: str) -> dict[str, str]:
        """Ids of all images of the pool, by name."""
        ...

    def get(self, pool: str, image: str) -> SharedImage:
        """The image with this id."""
        ...

    def all(self, pool: str, images: Sequence[str]) -> Sequence[SharedImage]:
        """Images by id."""
        ...

    def rename(self, pool: str, image: str, to: str, *, never: Sequence[str] = ()) -> None:
        """Give it this name, and see that none of ``never`` leads to it. Raises Conflict, NotReady."""
        ...

    def mark(self, pool: str, image: str, key: str, text: str) -> None:
        """Write into the image's metadata."""
        ...

    def unmark(self, pool: str, image: str, key: str) -> None:
        """Take it away; not there is fine."""
        ...

    def write_note(self, pool: str, name: str, text: str) -> None:
        """Leave a small image with a text."""
        ...

    def read_note(self, pool: str, name: str) -> str | None:
        """The text."""
        ...

    def remove_note(self, pool: str, name: str) -> None:
        """Remove it; not there is fine."""
        ...


class Images(Protocol):
    """What is asked of the storage; every method may raise Unavailable, AuthFailed, PermissionDenied, NotFound."""

    @property
    def shared(self) -> SharedImages:
        """The same images by their ids."""
        ...

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
        """Open the pool, write and remove a small object there. Raises QuotaExceeded (it is full)."""
        ...

    def points(self, pool: str, image: str) -> tuple[str, ...]:
        """Keys of the points in time that are open on it."""
        ...

    def begin_point(self, pool: str, image: str, key: str) -> datetime:
        """Let endpoints with this key read its snapshots, or the image itself; since when they may."""
        ...

    def end_point(self, pool: str, image: str, key: str) -> None:
        """Let them read no more; never begun is fine."""
        ...


NAMED = re.compile(r"^volume-([0-9a-f-]{36})$")
"""Cinder's default template for the names of its images."""


def image_name(volume: str) -> str:
    """The name by which Cinder opens the image of a volume."""
    return f"volume-{volume}"


def volume_named(image: str) -> str | None:
    """The volume whose image has this name."""
    found = NAMED.match(image)
    return found.group(1) if found else None


class Backing:
    """Where volumes lie. ``pools`` maps volume types to Ceph pools; a type that it does not name has no direct way.

    ``movers``, where there are any, serve the volumes of those types.
    """

    def __init__(self, images: Images | None, pools: Mapping[str, str], movers: Movers | None = None) -> None:
        self._images = images
        self._pools = dict(pools)
        self._movers = movers

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

    @property
    def movers(self) -> Movers | None:
        """Servers of ours in the cloud that serve what is not reached directly."""
        return self._movers

    def served(self, volume: Any) -> bool:
        """Whether the volume's way is a mover server."""
        return self._movers is not None and not self.reaches(volume)

    def unreached(self) -> list[str]:
        """Pools that cannot be opened and written from here, each with the reason."""
        found = []
        for pool in sorted(set(self._pools.values())) if self._images is not None else ():
            try:
                self.images.reach(pool)
            except WhimbrelError as error:
                found.append(f"{pool}: {error.message}")
        return found

    @contextmanager
    def telling_when_full(self, volumes: Iterable[Any]) -> Iterator[None]:
        """Around what waits for Cinder: its own clients wait without a word while a pool of these volumes is full.

        Raises QuotaExceeded then, in place of NotReady.
        """
        try:
            yield
        except NotReady:
            full = self.full(volumes)
            if full is not None:
                raise full from None
            raise

    def full(self, volumes: Iterable[Any]) -> QuotaExceeded | None:
        """What Ceph says when a pool of these volumes, as far as they are reached from here, takes nothing more."""
        for pool in sorted({self.image(volume)[0] for volume in volumes if self.reaches(volume)}):
            try:
                self.images.reach(pool)
            except QuotaExceeded as error:
                return error
            except WhimbrelError:  # it cannot be asked: no reason to stop
                continue
        return None

    def make_room(self, volume: Any) -> None:
        """Empty a volume that Cinder is to delete, if its pool is full: Cinder's own client could not do it then.

        Raises Conflict (somebody has it open).
        """
        if self.full([volume]) is not None:
            with suppress(NotFound):
                self.images.resize(*self.image(volume), 0)

    @property
    def pools(self) -> Mapping[str, str]:
        """Volume type -> Ceph pool."""
        return self._pools

    def pool(self, kind: str) -> str:
        """The Ceph pool of a volume type. Raises NotFound."""
        if kind not in self._pools:
            raise NotFound(
                f"no Ceph pool is known for volume type {kind}",
                action="name it under ceph.pools in whimbrel.yaml, or correct the plan's map of storage",
                pool=kind,
            )
        return self._pools[kind]

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
                action="name the Ceph pool of this volume type under ceph.pools in whimbrel.yaml, or give a `mover`",
            )
        return self._pools[volume.volume_type], image_name(volume.id)

    def sizes(self, volumes: Sequence[Any]) -> dict[str, int]:
        """Real sizes of volumes in bytes by id; of those that cannot be reached what we made, or Cinder's whole GiB.

        An image that is imported is not opened: its source may be away, and whoever opens it waits for that.
        """
        reached = {
            volume.id: self.image(volume) for volume in volumes if self.reaches(volume) and importing(volume) is None
        }
        known = self.images.sizes(list(reached.values())) if reached else {}
        return {volume.id: known.get(reached.get(volume.id, ("", "")), marks.size_of(volume)) for volume in volumes}
