"""The HTTP side of a streaming server: accepts readers on a socket that others may hold besides.

The listening socket is never shut down here, only closed: whoever holds it too keeps it, and clients that come while
no server runs wait in its backlog.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Final

from whimbrel.stream.connection import Accessed
from whimbrel.stream.fetcher import Fetcher
from whimbrel.stream.http.answers import Resource
from whimbrel.stream.http.connection import HttpConnection, Service
from whimbrel.stream.http.statistics import HttpStatistics
from whimbrel.stream.http.traffic import Traffic
from whimbrel.stream.store import Store

MOST_STRANGERS: Final = 64
"""Connections without a good request yet; the oldest makes room for a new one."""
SELF: Final = "self"

log = logging.getLogger(__name__)


class HttpFront:
    """Serves from construction until ``stop``."""

    def __init__(
        self,
        disk: Resource,
        store: Store,
        fetcher: Fetcher,
        *,
        accessed: Accessed,
        bulk_from: Iterable[str],
        sock: socket.socket,
    ) -> None:
        self.traffic = Traffic(paused=fetcher.paused)
        self.statistics = HttpStatistics()
        self._service = Service(disk, store, fetcher, accessed, self.traffic, self.statistics)
        self._bulk_from = frozenset(bulk_from)
        self._sock = sock
        self._sock.setblocking(False)
        self.address, self.port = sock.getsockname()[:2]
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._connections: dict[threading.Thread, HttpConnection] = {}
        self._stopping = False
        self._accepting = threading.Thread(target=self._accept, name="http-accept", daemon=True)
        self._accepting.start()

    @property
    def clients(self) -> int:
        """Connections that are open now."""
        return len(self._connections)

    def lend(self, to: Callable[[socket.socket], None]) -> None:
        """Show the listening socket to somebody who keeps a copy of it."""
        to(self._sock)

    def stop(self) -> None:
        """Accept no more, and cut all clients off; returns when their threads have ended."""
        with self._lock:
            self._stopping = True
        os.eventfd_write(self._wake, 1)
        self._accepting.join()
        with self._lock:
            open_now = dict(self._connections)
        for connection in open_now.values():
            connection.stop()
        for thread in open_now:
            thread.join()
        self._sock.close()
        os.close(self._wake)

    def report(self) -> dict[str, object]:
        """For the status."""
        with self._lock:
            now = list(self._connections.values())
        return {
            "address": self.address,
            "port": self.port,
            "connections": len(now),
            "bulk_connections": sum(connection.bulk for connection in now),
            **self.statistics.report(),
        }

    def _accept(self) -> None:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while not self._stopping:
            poll.poll()
            if self._stopping:
                return
            try:
                client, peer = self._sock.accept()
            except BlockingIOError:
                continue
            except OSError as failed:
                log.warning("accept.failed", extra={"error": str(failed)})
                threading.Event().wait(0.1)
                continue
            self._serve(client, str(peer[0]))

    def _serve(self, client: socket.socket, peer: str) -> None:
        try:
            ours = SELF in self._bulk_from and peer == client.getsockname()[0]
            connection = HttpConnection(client, self._service, known_bulk=ours or peer in self._bulk_from)
        except OSError as gone:
            log.info("client.gone", extra={"reason": type(gone).__name__})
            client.close()
            return
        thread = threading.Thread(target=self._run, args=(connection,), name="http-client", daemon=True)
        with self._lock:
            self._connections[thread] = connection
            strangers = [each for each in self._connections.values() if each.stranger]
        if len(strangers) > MOST_STRANGERS:
            strangers[0].stop()
        thread.start()

    def _run(self, connection: HttpConnection) -> None:
        try:
            connection.run()
        finally:
            with self._lock, contextlib.suppress(KeyError):
                del self._connections[threading.current_thread()]
