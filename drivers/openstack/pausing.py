"""A server that is paused while the snapshots of its disks are taken, because Cinder takes one at a time.

The pause is marked on the server before it begins, and ended by whoever finds it. It does not outlast ``LIMIT_S``: the
guest then goes on, and what was taken by then is no instant and has to go before the next attempt, some time later.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from drivers.openstack import vms
from drivers.openstack.connection import Connection, settled
from whimbrel.model.vm import Power

PAUSED = "whimbrel_paused"
"""On a server that was paused for a point: the point's key and when it was paused, or that this took too long."""
LATE = "late"
LIMIT_S = 30.0
"""A guest's clocks and sessions bear this; Cinder is quicker by far, unless it is in trouble."""
REST_S = 120.0
"""So long the guest is left alone afterwards."""


class Pauses:
    """Looks at the mark of a server that was just read."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def begin(self, server: Any, key: str) -> None:
        """Pause it for this point. Raises NotReady."""
        with self._connection.using(f"pausing {server.name} for a snapshot of all its disks") as conn:
            self._mark(conn, server, f"{key} {datetime.now(UTC).isoformat()}")
            conn.compute.pause_server(server.id)
            settled(
                lambda: True if vms.power_of(conn.compute.get_server(server.id)) is Power.PAUSED else None,
                f"server {server.name} is being paused",
            )

    def end(self, server: Any | None, key: str | None = None) -> None:
        """Let it go on, also after an attempt that was killed; with ``key`` only if it was paused for that point."""
        held = _held(server)
        if server is None or held is None or key not in {None, held[0]}:
            return
        with self._connection.using(f"letting {server.name} go on after its snapshots") as conn:
            self._let_go(conn, server)
            conn.compute.delete_server_metadata(server.id, keys=[PAUSED])

    def is_late(self, server: Any | None, key: str) -> bool:
        """Whether it was let go before all snapshots of this point were there."""
        return _held(server) == (key, LATE)

    def end_if_too_long(self, server: Any | None, key: str) -> bool:
        """Let it go on once it has been paused for this point longer than it may be; whether that was so."""
        held = _held(server)
        if server is None or held is None or held[0] != key or held[1] == LATE:
            return False
        paused_s = (datetime.now(UTC) - datetime.fromisoformat(held[1])).total_seconds()
        if paused_s < LIMIT_S:
            return False
        with self._connection.using(f"letting {server.name} go on without its snapshots") as conn:
            # first the mark: what Cinder takes after the guest has gone on must never pass for the point
            self._mark(conn, server, f"{key} {LATE}")
            self._let_go(conn, server)
        return True

    @staticmethod
    def _mark(conn: Any, server: Any, text: str) -> None:
        conn.compute.set_server_metadata(server.id, **{PAUSED: text})
        server.metadata[PAUSED] = text

    @staticmethod
    def _let_go(conn: Any, server: Any) -> None:
        if vms.power_of(conn.compute.get_server(server.id)) is Power.PAUSED:
            conn.compute.unpause_server(server.id)


def _held(server: Any | None) -> tuple[str, str] | None:
    """The point's key, and since when or ``LATE``."""
    text = server.metadata.get(PAUSED) if server is not None else None
    if text is None:
        return None
    key, _, when = str(text).partition(" ")
    return key, when or datetime.now(UTC).isoformat()
