"""Listens on unix sockets and TCP ports, and serves every client in threads of its own."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import ssl
import stat
import threading
from pathlib import Path
from typing import Final

from whimbrel.errors import Conflict, Unavailable
from whimbrel.stream.admission import admit
from whimbrel.stream.connection import Accessed, Connection
from whimbrel.stream.handshake import Handshake
from whimbrel.stream.protect.change import Protection
from whimbrel.stream.statistics import Statistics
from whimbrel.stream.store import Store
from whimbrel.stream.wire import HANDSHAKE_S, Gone, PlainWire

BACKLOG: Final = 64

log = logging.getLogger(__name__)


def listen_unix(path: Path, mode: int = 0o600, client: tuple[int, int] | None = None) -> socket.socket:
    """A listening unix socket; see ``admit`` for who may connect. A socket that a dead server left is replaced.

    Raises Conflict if something lives there, Unavailable for what the system refuses.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear(path)
        sock.bind(str(path))
        admit(path, mode, client)
        sock.listen(BACKLOG)
    except OSError as failed:
        sock.close()
        raise Unavailable(f"cannot listen at {path}: {failed}", cause=failed) from failed
    except BaseException:
        sock.close()
        raise
    return sock


def listen_tcp(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one. Raises Unavailable."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as failed:
        raise Unavailable(f"cannot listen at {host}:{port}: {failed}", cause=failed) from failed


def _clear(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise Conflict(f"{path} is there and is no socket", action="give the server another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as failed:
            if failed.errno != errno.ENOENT:
                raise
            return
    raise Conflict(f"another server answers at {path}", action="end it first")


class Listener:
    """Accepts clients for one export on any number of sockets."""

    def __init__(
        self,
        store: Store,
        statistics: Statistics,
        accessed: Accessed,
        *,
        export: str = "",
        tls: ssl.SSLContext | None = None,
        protection: Protection | None = None,
    ) -> None:
        self._protection = protection
        self._store = store
        self._statistics = statistics
        self._accessed = accessed
        self._export = export
        self._tls = tls
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._wires: dict[threading.Thread, PlainWire | Connection] = {}
        self._accepting: list[threading.Thread] = []
        self._stopping = False

    @property
    def clients(self) -> int:
        """Connections that are open now."""
        return len(self._wires)

    def listen(self, sock: socket.socket) -> None:
        """Accept on a listening socket, which belongs to the listener from now on. TLS is for TCP only."""
        self._sockets.append(sock)
        thread = threading.Thread(target=self._accept, args=(sock,), name="nbd-accept", daemon=True)
        self._accepting.append(thread)
        thread.start()

    def stop(self) -> None:
        """Accept no more, and cut all clients off; returns when their threads have ended."""
        with self._lock:
            self._stopping = True
            open_now = dict(self._wires)
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            if sock.family == socket.AF_UNIX:
                with contextlib.suppress(OSError):
                    Path(sock.getsockname()).unlink()
        for each in open_now.values():
            each.stop() if isinstance(each, Connection) else each.interrupt()
        for thread in [*self._accepting, *open_now]:
            thread.join()
        for sock in self._sockets:
            sock.close()

    def _fence(self) -> None:
        """Wait until clients that have gone are done with.

        A client that lost its connection repeats on the new one what was not answered. Were the old requests still
        read and carried out meanwhile, an old write could land on top of a newer one.
        """
        with self._lock:
            others = [(thread, each) for thread, each in self._wires.items() if isinstance(each, Connection)]
        for thread, connection in others:
            if thread is not threading.current_thread() and connection.hung_up():
                connection.stop()
                thread.join()

    def _accept(self, sock: socket.socket) -> None:
        while not self._stopping:
            try:
                client, _ = sock.accept()
            except OSError as failed:
                if self._stopping or failed.errno in {errno.EINVAL, errno.EBADF}:
                    return
                log.warning("accept.failed", extra={"error": str(failed)})
                threading.Event().wait(0.1)
                continue
            wire = PlainWire(client)
            thread = threading.Thread(target=self._client, args=(wire, client), name="nbd-client", daemon=True)
            with self._lock:
                if self._stopping:
                    wire.close()
                    return
                self._wires[thread] = wire
            thread.start()

    def _client(self, wire: PlainWire, sock: socket.socket) -> None:
        tls = self._tls if sock.family != socket.AF_UNIX else None
        shake = Handshake(wire, self._export, self._store.size_bytes, tls)
        timer = threading.Timer(HANDSHAKE_S, shake.interrupt)
        timer.daemon = True
        timer.start()
        try:
            agreed = shake.run()
            timer.cancel()
            if agreed is None:
                shake.wire.close()
                return
            connection = Connection(
                shake.wire, agreed, self._store, self._statistics, self._accessed, protection=self._protection
            )
            with self._lock:
                self._wires[threading.current_thread()] = connection
                stopping = self._stopping
            if stopping:
                connection.stop()
            self._fence()
            connection.run()
        except Gone as gone:
            log.info("client.refused", extra={"reason": str(gone)})
            shake.wire.close()
        finally:
            timer.cancel()
            with self._lock:
                self._wires.pop(threading.current_thread(), None)
