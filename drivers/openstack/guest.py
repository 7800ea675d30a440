"""What a guest tells through Nova: ``whimbrel.ports.guest.GuestPort``. Nova's API has no way to an agent."""

from __future__ import annotations

from contextlib import suppress

from drivers.openstack.connection import Connection
from drivers.openstack.servers import Servers
from whimbrel.errors import NotFound
from whimbrel.ports.guest import GuestFacts

CONSOLE_LINES = 200


class OpenStackGuest:
    """``GuestPort`` over one connection."""

    def __init__(self, connection: Connection, servers: Servers) -> None:
        self._connection = connection
        self._servers = servers

    def facts(self, ref: str) -> GuestFacts:
        """Nothing: no agent can be asked."""
        self._servers.get(ref)
        return GuestFacts()

    def quiesce(self, ref: str) -> bool:
        """False: nobody freezes file systems from outside."""
        self._servers.get(ref)
        return False

    def thaw(self, ref: str) -> None:
        """Nothing was frozen."""
        self._servers.get(ref)

    def console_tail(self, ref: str, max_bytes: int = 4096) -> str | None:
        """The end of the console's log; None for a VM that has never been on."""
        known = self._servers.just_seen(ref)
        if known is not None:  # asked again and again while a guest boots: Nova looks the server up by itself
            with suppress(NotFound):
                return self._console(known, max_bytes)
        server = self._servers.get(ref)
        if server is None:
            return None
        try:
            return self._console(server.id, max_bytes)
        except NotFound:  # a server that was not built has no console yet
            return None

    def _console(self, server: str, max_bytes: int) -> str | None:
        with self._connection.using(f"reading the console of server {server}") as conn:
            text = conn.compute.get_server_console_output(server, length=CONSOLE_LINES).get("output")
        return None if text is None else str(text).encode()[-max_bytes:].decode("utf-8", "replace")
