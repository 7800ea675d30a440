"""A VM's server by the VM's ref: for questions that are asked again and again, of one server and nothing else."""

from __future__ import annotations

import threading
import time
from typing import Any

from drivers.openstack import inventory
from drivers.openstack.connection import Connection
from whimbrel.errors import NotFound

FRESH_S = 10.0
"""So long what was just seen is acted on without another look, where seconds count."""


class Servers:
    """Remembers which server a ref has become; what it says about one is asked anew each time. Thread-safe."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._ids: dict[str, str] = {}
        self._seen: dict[str, float] = {}

    def get(self, ref: str) -> Any | None:
        """The server now; None for a VM that is announced only. Raises NotFound, Conflict."""
        with self._lock:
            known = self._ids.get(ref, ref)
        found = self._ask(known)
        if found is not None and ref in {found.id, inventory.Inventory.ref_of(found)}:
            self.became(ref, str(found.id))
            return found
        found = inventory.read(self._connection).find(ref)[1]
        if found is not None:
            self.became(ref, str(found.id))
            return found
        with self._lock:
            self._ids.pop(ref, None)
        return None

    def just_seen(self, ref: str) -> str | None:
        """Id of the server that the ref was found to be a moment ago."""
        with self._lock:
            recent = time.monotonic() - self._seen.get(ref, -FRESH_S) < FRESH_S
            return self._ids.get(ref) if recent else None

    def became(self, ref: str, server: str) -> None:
        """The ref is the server of this id, now."""
        with self._lock:
            self._ids[ref], self._seen[ref] = server, time.monotonic()

    def _ask(self, server: str) -> Any | None:
        try:
            with self._connection.using(f"looking for server {server}") as conn:
                found = conn.compute.get_server(server)
        except NotFound:
            return None
        return found if found.status not in inventory.GONE else None
