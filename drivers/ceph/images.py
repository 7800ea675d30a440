"""RBD images as the driver of a cloud looks after them: sizes, snapshots, sessions, who has them open."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, NamedTuple

from drivers.ceph import binding, session
from drivers.ceph.cluster import pool_of
from drivers.ceph.errors import translated
from drivers.ceph.shared import SharedImages
from whimbrel.errors import Conflict, NotFound
from whimbrel.model.endpoint import RbdEndpoint


class RbdImages:
    """The images that one Ceph user can reach. Every call connects anew (about 20 ms) and leaves nothing open.

    Every method may raise Unavailable, AuthFailed, PermissionDenied, NotFound, Unsupported (no binding).
    """

    def __init__(self, *, conf: str = "/etc/ceph/ceph.conf", user: str = "admin") -> None:
        self.conf = conf
        self.user = user
        self.shared = SharedImages(conf, user)

    def endpoint(
        self,
        pool: str,
        image: str,
        *,
        snapshot: str | None = None,
        since: str | None = None,
        session: str | None = None,
        writable: bool = False,
    ) -> RbdEndpoint:
        """How a mover opens it."""
        return RbdEndpoint(
            pool=pool,
            image=image,
            snapshot=snapshot,
            since=since,
            conf=self.conf,
            user=self.user,
            session=session,
            writable=writable,
        )

    def sizes(self, images: Sequence[tuple[str, str]]) -> dict[tuple[str, str], int]:
        """Real sizes in bytes by (pool, image), over one connection for each pool; missing ones are left out."""
        rbd = binding.load().rbd
        found: dict[tuple[str, str], int] = {}
        for pool in sorted({pool for pool, _ in images}):
            with pool_of(self.conf, self.user, pool) as (ioctx, _):
                for name in sorted({image for where, image in images if where == pool}):
                    asked = translated(f"asking for the size of {pool}/{name}")
                    with suppress(NotFound), asked, rbd.Image(ioctx, name, read_only=True) as opened:
                        found[pool, name] = int(opened.size())
        return found

    def resize(self, pool: str, image: str, size_bytes: int) -> None:
        """Make the image exactly this long; what lies beyond is lost. Again: nothing. Raises Conflict if it is open."""
        with self._open(pool, image) as (opened, client), translated(f"resizing {pool}/{image}"):
            if int(opened.size()) == size_bytes:
                return
            others = _Opened(opened, client).others()
            if others:
                raise Conflict(f"{pool}/{image} is open by {', '.join(others)}")
            opened.resize(size_bytes)

    def reach(self, pool: str) -> None:
        """Try the key: open the pool, write a small object that is no part of any image, and remove it.

        Raises PermissionDenied (the key may only read), QuotaExceeded (the pool is full).
        """
        with pool_of(self.conf, self.user, pool) as (ioctx, client), translated(f"writing to Ceph pool {pool}"):
            name = f"whimbrel.reach.{client}"
            ioctx.write_full(name, b"whimbrel was here")
            ioctx.remove_object(name)

    def snapshots(self, pool: str, image: str) -> dict[str, int]:
        """Names of the image's snapshots, with the size that it had then, oldest first."""
        with self._open(pool, image, read_only=True) as (opened, _), translated(f"listing snapshots of {pool}/{image}"):
            snaps = sorted(opened.list_snaps(), key=lambda snapshot: snapshot["id"])
            return {str(snapshot["name"]): int(snapshot["size"]) for snapshot in snaps}

    def openers(self, pool: str, image: str) -> tuple[str, ...]:
        """Addresses of the clients that have the image open for writing, or died less than half a minute ago."""
        with self._open(pool, image, read_only=True) as opened, translated(f"listing watchers of {pool}/{image}"):
            return opened.others()

    def session(self, pool: str, image: str) -> str | None:
        """Key of the session that is open on the image."""
        with self._open(pool, image, read_only=True) as opened, translated(f"looking at {pool}/{image}"):
            return session.of(opened.image)

    def begin_session(self, pool: str, image: str, key: str) -> None:
        """Open a session on an image that nobody else writes; the same again is fine. Raises Conflict, Unsupported."""
        with self._open(pool, image) as opened:
            if session.of(opened.image) != key:
                others = opened.others()
                if others:
                    raise Conflict(f"{pool}/{image} is open by {', '.join(others)}", action="stop what has it open")
            session.begin(opened.image, key, f"{pool}/{image}")

    def end_session(self, pool: str, image: str, key: str) -> None:
        """Close the session and shut out who still writes; another's, or none, is left alone."""
        with self._open(pool, image) as opened:
            session.end(opened.image, key, f"{pool}/{image}")

    def points(self, pool: str, image: str) -> tuple[str, ...]:
        """Keys of the points in time that are open on the image."""
        with self._open(pool, image, read_only=True) as opened, translated(f"looking at {pool}/{image}"):
            return session.points(opened.image)

    def begin_point(self, pool: str, image: str, key: str) -> datetime:
        """Let endpoints with this key read the image and its snapshots; since when they may: again is the same."""
        with self._open(pool, image) as opened, translated(f"opening point {key} on {pool}/{image}"):
            return session.begin_point(opened.image, key)

    def end_point(self, pool: str, image: str, key: str) -> None:
        """Let them be opened no more; never begun is fine."""
        with self._open(pool, image) as opened, translated(f"closing point {key} on {pool}/{image}"):
            if key in session.points(opened.image):
                opened.image.metadata_remove(session.POINT + key)

    @contextmanager
    def _open(self, pool: str, image: str, *, read_only: bool = False) -> Iterator[_Opened]:
        rbd = binding.load().rbd
        with pool_of(self.conf, self.user, pool) as (ioctx, client):
            with translated(f"opening {pool}/{image}"):
                opened = rbd.Image(ioctx, image, read_only=read_only)
            try:
                yield _Opened(opened, client)
            finally:
                opened.close()


class _Opened(NamedTuple):
    image: Any
    client: int

    def others(self) -> tuple[str, ...]:
        """Addresses of all watchers but this client."""
        return watchers(self.image, self.client)


def watchers(image: Any, *known: int) -> tuple[str, ...]:
    """Addresses of all who have an open image open for writing, but for the clients that are known."""
    return tuple(str(watcher["addr"]) for watcher in image.watchers_list() if watcher["id"] not in known)
