"""A running server that nobody else may touch: Nova's lock, held while the images under it have none of their own.

An image that is imported has no exclusive lock, so Ceph would let a second QEMU write it. Cinder keeps its volume from
a second server, and Nova's lock keeps the project from every act by which Nova would open it a second time or ask it
for its blocks: start, rebuild, resize, shelve, live migration, a swapped volume. Administrators pass both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from drivers.openstack.connection import Connection
from drivers.openstack.locking import Locks, reason

FENCED = "whimbrel_fenced"
"""On a server: the migration that locks it. Written when it is made; gone when it was unlocked for good."""


class Fence:
    """Looks at the mark of a server that was just read, and locks it or unlocks it; by ``admin``, if there is one."""

    def __init__(self, connection: Connection, admin: Connection | None = None) -> None:
        self._connection = connection
        self._locks = Locks(admin or connection)

    def shut(self, server: Any) -> None:
        """Lock a server that is to be locked, and is not."""
        migration = server.metadata.get(FENCED)
        if migration and not server.is_locked:
            self._locks.lock(server, migration)
            server.is_locked, server.locked_reason = True, reason(migration)

    @contextmanager
    def passed(self, server: Any) -> Iterator[None]:
        """Unlocked for an act of ours. Who is killed inside leaves it open until the next look (``shut``)."""
        self.lift(server)
        try:
            yield
        finally:
            self.shut(server)

    def lift(self, server: Any) -> None:
        """Unlock it if it is locked by us; its mark stays."""
        migration = server.metadata.get(FENCED)
        if migration and server.is_locked:
            self._locks.unlock(server, migration)
            server.is_locked, server.locked_reason = False, None

    def remove(self, server: Any) -> None:
        """Unlock it for good; never locked is fine."""
        if FENCED not in server.metadata:
            return
        self.lift(server)
        with self._connection.using(f"removing the fence of server {server.name}") as conn:
            # a locked server refuses changes of its metadata, so the mark goes last, and whoever finds it goes on
            conn.compute.delete_server_metadata(server.id, keys=[FENCED])
