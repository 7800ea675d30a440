"""A client's byte stream as the server sees it: one thread receives, any thread sends whole messages.

OpenSSL's connection may not be used by two threads at once, and Python 3.11 does not guard it; under TLS the socket
therefore never blocks inside OpenSSL, and a lock is held for each call but not while waiting.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from pathlib import Path
from typing import Final, Protocol

from whimbrel.errors import AuthFailed

SOCKET_BUFFER_BYTES: Final = 1 << 20
TLS_PIECE_BYTES: Final = 64 << 10
HANDSHAKE_S: Final = 30.0


class Gone(Exception):
    """The client is no longer there."""


class Wire(Protocol):
    """An established stream."""

    def receive_exactly(self, into: memoryview) -> None:
        """Fill ``into``. Raises Gone."""
        ...

    def send(self, *parts: bytes | memoryview) -> None:
        """Send the parts as one message. Raises Gone."""
        ...

    def hung_up(self) -> bool:
        """Whether the peer has gone, even if bytes of it are still to be read; from any thread."""
        ...

    def interrupt(self) -> None:
        """Wake whoever is blocked here, for good; from any thread."""
        ...

    def close(self) -> None:
        """Give the descriptor back; only when no thread is inside."""
        ...


class PlainWire:
    """Without encryption."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._send_lock = threading.Lock()
        if sock.family == socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.settimeout(None)

    def receive_exactly(self, into: memoryview) -> None:
        """See Wire."""
        rest = into
        while rest:
            try:
                count = self._sock.recv_into(rest, 0, socket.MSG_WAITALL)
            except OSError as failed:
                raise Gone(str(failed)) from failed
            if not count:
                raise Gone("the connection ended")
            rest = rest[count:]

    def send(self, *parts: bytes | memoryview) -> None:
        """See Wire."""
        total = sum(len(part) for part in parts)
        with self._send_lock:
            try:
                sent = self._sock.sendmsg(parts)
                for part in parts if sent < total else ():
                    if sent < len(part):
                        self._sock.sendall(memoryview(part)[sent:])
                        sent = 0
                    else:
                        sent -= len(part)
            except OSError as failed:
                raise Gone(str(failed)) from failed

    def hung_up(self) -> bool:
        """See Wire."""
        return _hung_up(self._sock)

    def interrupt(self) -> None:
        """See Wire."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """See Wire."""
        with contextlib.suppress(OSError):
            self._sock.close()

    def secure(self, context: ssl.SSLContext) -> TlsWire:
        """The same connection under TLS; this object must not be used any more. Raises Gone."""
        try:
            self._sock.settimeout(HANDSHAKE_S)
            sock = context.wrap_socket(self._sock, server_side=True)
        except OSError as failed:
            self.close()
            raise Gone(f"TLS was not agreed on: {failed}") from failed
        return TlsWire(sock)


class TlsWire:
    """Under TLS; see the module."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock
        self._ssl_lock = threading.Lock()
        self._send_lock = threading.Lock()
        sock.setblocking(False)

    def receive_exactly(self, into: memoryview) -> None:
        """See Wire."""
        rest = into
        while rest:
            try:
                with self._ssl_lock:
                    count = self._sock.recv_into(rest)
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN)
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT)
            except (OSError, ValueError) as failed:
                raise Gone(str(failed)) from failed
            else:
                if not count:
                    raise Gone("the connection ended")
                rest = rest[count:]

    def send(self, *parts: bytes | memoryview) -> None:
        """See Wire."""
        with self._send_lock:
            for part in parts:
                rest = memoryview(part)
                while rest:
                    rest = rest[self._send_some(rest[:TLS_PIECE_BYTES]) :]

    def _send_some(self, piece: memoryview) -> int:
        # OpenSSL wants an unfinished write tried again with the same bytes; nobody else writes meanwhile.
        while True:
            try:
                with self._ssl_lock:
                    return self._sock.send(piece)
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN)
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT)
            except (OSError, ValueError) as failed:
                raise Gone(str(failed)) from failed

    def _wait(self, events: int) -> None:
        poll = select.poll()
        poll.register(self._sock, events)
        # The other thread may take what this one waits for (records carry both directions), so look again in time.
        poll.poll(100)

    def hung_up(self) -> bool:
        """See Wire."""
        return _hung_up(self._sock)

    def interrupt(self) -> None:
        """See Wire."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """See Wire."""
        with contextlib.suppress(OSError):
            self._sock.close()


def _hung_up(sock: socket.socket) -> bool:
    poll = select.poll()
    try:
        poll.register(sock, select.POLLRDHUP)
    except ValueError:  # closed by us
        return True
    return bool(poll.poll(0))


def server_context(directory: Path, *, verify_peer: bool) -> ssl.SSLContext:
    """Show ``server-cert.pem`` with ``server-key.pem`` (QEMU's layout); clients must show one of ``ca-cert.pem``'s.

    Raises AuthFailed if a file is missing or no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(directory / "server-cert.pem", directory / "server-key.pem", password=_no_passphrase)
        if verify_peer:
            context.load_verify_locations(cafile=directory / "ca-cert.pem")
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as failed:
        raise AuthFailed(
            f"cannot load the server's TLS certificates in {directory}: {failed}",
            action="put server-cert.pem, server-key.pem and ca-cert.pem there, without a passphrase",
            cause=failed,
        ) from failed
    return context


def _no_passphrase() -> str:
    raise ValueError("the key is protected by a passphrase")
