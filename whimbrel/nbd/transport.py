"""A byte stream to an NBD server that never waits for ever and never deadlocks on two full pipes.

Receiving blocks in the kernel with ``SO_RCVTIMEO``, so that a whole payload costs one system call. Sending never
blocks: when the pipe is full we wait for either direction, and let the caller take in what the server has to say
before we go on. A server that stops reading until its replies are taken therefore cannot stop us.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from collections.abc import Callable
from typing import Final, Protocol

from whimbrel.errors import InvalidPlan, PermissionDenied, Unavailable
from whimbrel.model.endpoint import NbdEndpoint

SOCKET_BUFFER_BYTES: Final = 4 << 20
"""For unix sockets, whose default of about 200 KiB costs a context switch per piece; TCP sizes itself."""

KEEPALIVE_IDLE_S: Final = 30
UNIX_PATH_BYTES: Final = 107


class Transport(Protocol):
    """An established byte stream. One thread at a time, save ``interrupt``."""

    address: str

    def send(self, header: bytes, data: memoryview | None, on_input: Callable[[], None]) -> None:
        """Send everything; ``on_input`` is called, and must receive something, when input waits and output cannot."""
        ...

    def receive(self, into: memoryview) -> int:
        """Wait for at least one byte; returns how many came, at most ``len(into)``."""
        ...

    def receive_exactly(self, into: memoryview) -> None:
        """Fill ``into``."""
        ...

    def patience(self, seconds: float) -> None:
        """From now on a silence of ``seconds`` is a stall."""
        ...

    def interrupt(self) -> None:
        """Wake whoever is blocked here, for good. Safe from any thread."""
        ...

    def close(self) -> None:
        """Give the descriptor back; only when no thread is inside."""
        ...


def address_of(endpoint: NbdEndpoint) -> str:
    """How messages name the server: ``unix:/path`` or ``host:port``, with the export's name if it has one."""
    place = f"unix:{endpoint.unix_path}" if endpoint.unix_path else f"{endpoint.host}:{endpoint.port}"
    return f"{place}/{endpoint.export}" if endpoint.export else place


def stalled(address: str, seconds: float) -> Unavailable:
    """The error for a server that kept silent for ``seconds`` while we waited for it."""
    return Unavailable(
        f"NBD server {address} stalls: not one byte in {seconds:g} s while something was asked of it",
        action="look whether the server hangs, its storage is slow, or it serves fewer clients at once than we connect",
        timeout_s=seconds,
    )


def gone(address: str, doing: str, cause: BaseException | None = None) -> Unavailable:
    """The error for a connection that ended while we were ``doing``."""
    why = f": {cause}" if cause is not None else ""
    return Unavailable(
        f"NBD server {address} closed the connection while {doing}{why}",
        action="look whether the server died or was restarted; a new connection is tried",
        cause=cause,
    )


def connect(endpoint: NbdEndpoint, timeout_s: float) -> socket.socket:
    """A connected blocking socket.

    Raises Unavailable, PermissionDenied, InvalidPlan (not exactly one place named, or a path too long).
    """
    address = address_of(endpoint)
    if (endpoint.unix_path is None) == (endpoint.host is None):
        raise InvalidPlan("an NBD endpoint needs either a unix path or a host", endpoint=address)
    if endpoint.unix_path is not None and len(os.fsencode(endpoint.unix_path)) > UNIX_PATH_BYTES:
        raise InvalidPlan(f"the path of a unix socket is longer than {UNIX_PATH_BYTES} bytes", endpoint=address)
    try:
        if endpoint.unix_path is not None:
            return _connect_unix(endpoint.unix_path, timeout_s)
        return _connect_tcp(str(endpoint.host), endpoint.port, timeout_s)
    except PermissionError as refused:
        raise PermissionDenied(
            f"cannot connect to NBD server {address}: {refused.strerror}",
            action="give the worker's user access to the socket",
            cause=refused,
        ) from refused
    except OSError as failed:
        raise Unavailable(
            f"cannot connect to NBD server {address}: {failed}",
            action="look whether the server runs and listens there, and whether a firewall is in between",
            cause=failed,
        ) from failed


def _connect_unix(path: str, timeout_s: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
        # Python's own timeout would make the socket non-blocking, and a full backlog an error at once.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(timeout_s))
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def _connect_tcp(host: str, port: int, timeout_s: float) -> socket.socket:
    sock = socket.create_connection((host, port), timeout=timeout_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    sock.settimeout(None)
    return sock


def _timeval(seconds: float) -> bytes:
    """The kernel's ``struct timeval``; at least a microsecond, for zero would mean for ever."""
    whole = int(seconds)
    return struct.pack("@ll", whole, max(int((seconds - whole) * 1e6), 0 if whole else 1))


class PlainTransport:
    """A socket without encryption."""

    def __init__(self, sock: socket.socket, address: str, timeout_s: float) -> None:
        self.address = address
        self._sock = sock
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN | select.POLLOUT)
        self._recv_into = sock.recv_into
        self._sendmsg = sock.sendmsg
        self.patience(timeout_s)

    def patience(self, seconds: float) -> None:
        """See Transport."""
        self._timeout_s = seconds
        with contextlib.suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(seconds))

    def detach(self) -> socket.socket:
        """The bare socket, to wrap it in TLS; this object must not be used any more."""
        return self._sock

    def send(self, header: bytes, data: memoryview | None, on_input: Callable[[], None]) -> None:
        """See Transport. Raises Unavailable."""
        parts: list[bytes | memoryview] = [header] if data is None else [header, data]
        total = len(header) if data is None else len(header) + len(data)
        try:
            sent = self._sendmsg(parts, (), socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError as failed:
            raise gone(self.address, "we sent a request", failed) from failed
        if sent != total:
            self._send_rest(header, data, sent, on_input)

    def _send_rest(self, header: bytes, data: memoryview | None, sent: int, on_input: Callable[[], None]) -> None:
        pieces = [memoryview(header)[sent:]]
        if data is not None:
            pieces.append(data[max(sent - len(header), 0) :])
        for piece in pieces:
            rest = piece
            while rest:
                try:
                    rest = rest[self._sock.send(rest, socket.MSG_DONTWAIT) :]
                except BlockingIOError:
                    self._wait_for_room(on_input)
                except OSError as failed:
                    raise gone(self.address, "we sent a request", failed) from failed

    def _wait_for_room(self, on_input: Callable[[], None]) -> None:
        ready = self._poll.poll(self._timeout_s * 1000)
        if not ready:
            raise stalled(self.address, self._timeout_s)
        if ready[0][1] & select.POLLIN:
            on_input()

    def receive(self, into: memoryview) -> int:
        """See Transport. Raises Unavailable."""
        return self._receive(into, 0)

    def receive_exactly(self, into: memoryview) -> None:
        """See Transport. Raises Unavailable."""
        rest = into
        while rest:
            rest = rest[self._receive(rest, socket.MSG_WAITALL) :]

    def _receive(self, into: memoryview, flags: int) -> int:
        try:
            count = self._recv_into(into, 0, flags)
        except BlockingIOError:
            raise stalled(self.address, self._timeout_s) from None
        except OSError as failed:
            raise gone(self.address, "we waited for a reply", failed) from failed
        if not count:
            raise gone(self.address, "we waited for a reply")
        return count

    def interrupt(self) -> None:
        """See Transport."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """See Transport."""
        with contextlib.suppress(OSError):
            self._sock.close()
