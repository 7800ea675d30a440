"""A VM's server by the VM's ref: for questions that are asked again and again, of one server and nothing else."""

from __future__ import annotations

import threading
from typing import Any

from drivers.openstack import inventory
from drivers.openstack.connection import Connection
from whimbrel.errors import NotFound


class Servers:
    """Remembers which server a ref has become; what it says about one is asked anew each time. Thread-safe."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._ids: dict[str, str] = {}

    def get(self, ref: str) -> Any | None:
        """The server now; None for a VM that is announced only. Raises NotFound, Conflict."""
        with self._lock:
            known = self._ids.get(ref, ref)
        found = self._ask(known)
        if found is not None and ref in {found.id, inventory.Inventory.ref_of(found)}:
            return found
        found = inventory.read(self._connection).find(ref)[1]
        with self._lock:
            if found is not None:
                self._ids[ref] = str(found.id)
            else:
                self._ids.pop(ref, None)
        return found

    def remembered(self, ref: str) -> str | None:
        """Id of the server that the ref has become when it was last seen; another may have come since."""
        with self._lock:
            return self._ids.get(ref)

    def became(self, ref: str, server: str) -> None:
        """An announced VM has become the server of this id."""
        with self._lock:
            self._ids[ref] = server

    def _ask(self, server: str) -> Any | None:
        try:
            with self._connection.using(f"looking for server {server}") as conn:
                found = conn.compute.get_server(server)
        except NotFound:
            return None
        return found if found.status not in inventory.GONE else None
