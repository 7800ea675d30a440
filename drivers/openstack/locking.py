"""Nova's lock, as the fence of a server that is off: nobody but an administrator starts it until it is unlocked.

Whose lock it is, is said in its reason (microversion 2.73). Where Nova knows none, a mark in the server's metadata
says it; metadata of a locked server cannot be written, so the mark comes before the lock and goes after it.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

from openstack import utils

from drivers.openstack.connection import Connection
from whimbrel.errors import Conflict, NotFound

REASONS_SINCE = "2.73"
LOCKED = "whimbrel_locked"
"""On a server whose lock can have no reason: the migration that has locked it."""
REASON = re.compile(r"^whimbrel migration ([0-9a-f]{10}):")


def reason(migration: str) -> str:
    """What the owner of the server is told; at most 255 characters."""
    return f"whimbrel migration {migration}: the VM is being moved; confirm the migration or roll it back"


def owner(server: Any) -> str | None:
    """The migration that has locked the server; None when it is not locked, or by somebody else."""
    if not server.is_locked:
        return None
    if server.locked_reason is not None:
        found = REASON.match(server.locked_reason)
        return found.group(1) if found else None
    mark = (server.metadata or {}).get(LOCKED)
    return str(mark) if mark else None


def stranger(server: Any) -> str:
    """In words, who else has locked it; empty when nobody has."""
    if not server.is_locked or owner(server) is not None:
        return ""
    return f"the server is locked{f': {server.locked_reason}' if server.locked_reason else ''}"


class Locks:
    """Locking and unlocking; each may come twice."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def lock(self, server: Any, migration: str) -> None:
        """A server that is locked already, by whomever, stays as it is. Raises NotFound."""
        if server.is_locked:
            return
        with self._connection.using(f"locking server {server.name}") as conn:
            if utils.supports_microversion(conn.compute, REASONS_SINCE):
                conn.compute.lock_server(server.id, locked_reason=reason(migration))
            else:
                conn.compute.set_server_metadata(server.id, **{LOCKED: migration})
                conn.compute.lock_server(server.id)

    def unlock(self, server: Any, migration: str) -> None:
        """Another's lock stays. A server that is gone is fine."""
        with suppress(NotFound), self._connection.using(f"unlocking server {server.name}") as conn:
            if owner(server) == migration:
                conn.compute.unlock_server(server.id)
        if (server.metadata or {}).get(LOCKED) == migration:
            # somebody may have locked it for a reason of their own
            with suppress(NotFound, Conflict), self._connection.using(f"clearing server {server.name}") as conn:
                conn.compute.delete_server_metadata(server.id, keys=[LOCKED])
