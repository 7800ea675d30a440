"""The byte stream under TLS with x509 certificates in QEMU's file layout.

"TLS" in the protocol document: after NBD_OPT_STARTTLS both sides start over inside TLS. PSK is left out: Python 3.11
has none.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from whimbrel.errors import AuthFailed, InvalidPlan, WhimbrelError
from whimbrel.model.endpoint import NbdEndpoint, TlsPaths
from whimbrel.nbd.transport import PlainTransport, gone, stalled

PIECE_BYTES: Final = 64 << 10
RECORD_BYTES: Final = 16 << 10


def client_context(paths: TlsPaths) -> ssl.SSLContext:
    """Verify the server against ``ca-cert.pem``; show ``client-cert.pem`` with ``client-key.pem`` where they exist.

    With ``paths.server_certificate`` the server is that very one, and ``ca-cert.pem`` is not asked.

    Raises AuthFailed if a file is missing, unreadable or no certificate.
    """
    directory = Path(paths.directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if paths.server_certificate is not None:
            context.load_verify_locations(cadata=paths.server_certificate)
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # whoever has signed it
        else:
            context.load_verify_locations(cafile=directory / "ca-cert.pem")
        certificate = directory / "client-cert.pem"
        if certificate.exists():
            # A key under a passphrase must fail: nobody is there to type it.
            context.load_cert_chain(certificate, directory / "client-key.pem", password=_no_passphrase)
    except (OSError, ValueError) as failed:
        raise AuthFailed(
            f"cannot load the TLS certificates in {directory}: {failed}",
            action="put ca-cert.pem there and, if the server asks for it, client-cert.pem with client-key.pem",
            cause=failed,
        ) from failed
    return context


def _no_passphrase() -> str:
    raise ValueError("the key is protected by a passphrase")


def secure(plain: PlainTransport, endpoint: NbdEndpoint, context: ssl.SSLContext, timeout_s: float) -> TlsTransport:
    """Take the stream over into TLS. Raises AuthFailed (either side refuses the other), Unavailable, InvalidPlan."""
    paths = endpoint.tls
    name = (paths.server_name if paths else None) or endpoint.host
    if name is None:
        raise InvalidPlan(
            f"TLS over a unix socket needs the name in the server's certificate ({plain.address})",
            action="give server_name beside the certificates' directory",
        )
    try:
        sock = context.wrap_socket(plain.detach(), server_hostname=name, do_handshake_on_connect=False)
        sock.setblocking(False)
    except (OSError, ValueError) as failed:
        raise gone(plain.address, "TLS was set up", failed) from failed
    transport = TlsTransport(sock, plain.address, timeout_s)
    try:
        transport.handshake()
    except ssl.SSLCertVerificationError as refused:
        transport.close()
        raise AuthFailed(
            f"the certificate of NBD server {plain.address} is not good for {name}: {refused.verify_message}",
            action="use the CA that signed the server's certificate, and a server_name that stands in it",
            cause=refused,
        ) from refused
    except ssl.SSLError as refused:
        transport.close()
        raise _refused_by_server(plain.address, refused) from refused
    except OSError as failed:
        transport.close()
        raise gone(plain.address, "TLS was set up", failed) from failed
    except WhimbrelError:
        transport.close()
        raise
    return transport


def _refused_by_server(address: str, refused: ssl.SSLError) -> AuthFailed:
    return AuthFailed(
        f"NBD server {address} and we cannot agree on TLS: {refused.reason or refused}",
        action="if the server verifies clients, give it a client certificate that its CA signed",
        cause=refused,
    )


class TlsTransport:
    """A Transport under TLS, non-blocking below: either call of OpenSSL may want either direction of the socket."""

    def __init__(self, sock: ssl.SSLSocket, address: str, timeout_s: float) -> None:
        self.address = address
        self._sock = sock
        self._poll = select.poll()
        self._timeout_s = timeout_s
        self._early = bytearray(RECORD_BYTES)
        self._early_view = memoryview(self._early)[:0]

    def patience(self, seconds: float) -> None:
        """See Transport."""
        self._timeout_s = seconds

    def handshake(self) -> None:
        """Make the connection secure; ssl.SSLError and OSError go to the caller. Raises Unavailable on a stall."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                self._sock.do_handshake()
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN)
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT)
            else:
                return
            if time.monotonic() > deadline:
                raise stalled(self.address, self._timeout_s)

    def send(self, header: bytes, data: memoryview | None, on_input: Callable[[], None]) -> None:
        """See Transport. Raises Unavailable, AuthFailed."""
        self._send_all(memoryview(header), on_input)
        if data is not None:
            self._send_all(data, on_input)

    def _send_all(self, data: memoryview, on_input: Callable[[], None]) -> None:
        rest = data
        while rest:
            # OpenSSL insists that a write it could not finish is tried again with the same bytes.
            piece = rest[:PIECE_BYTES]
            try:
                rest = rest[self._sock.send(piece) :]
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                self._wait_for_room(on_input)
            except OSError as failed:
                raise self._broken("we sent a request", failed) from failed

    def _wait_for_room(self, on_input: Callable[[], None]) -> None:
        """Wait for either direction; call ``on_input`` only once bytes of the server's own have come.

        A readable socket is not enough: TLS 1.3 sends session tickets that carry nothing for us, and waiting for a
        reply behind one would be a deadlock. Nor is it needed: decrypted bytes may wait inside OpenSSL.
        """
        if not self._early_view:
            if not self._sock.pending() and not self._wait(select.POLLIN | select.POLLOUT) & select.POLLIN:
                return
            try:
                count = self._sock.recv_into(self._early)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError as failed:
                raise self._broken("we sent a request", failed) from failed
            if not count:
                raise gone(self.address, "we sent a request")
            self._early_view = memoryview(self._early)[:count]
        on_input()

    def receive(self, into: memoryview) -> int:
        """See Transport. Raises Unavailable, AuthFailed."""
        if self._early_view:
            count = min(len(into), len(self._early_view))
            into[:count] = self._early_view[:count]
            self._early_view = self._early_view[count:]
            return count
        while True:
            try:
                count = self._sock.recv_into(into)
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN)
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT)
            except OSError as failed:
                raise self._broken("we waited for a reply", failed) from failed
            else:
                if not count:
                    raise gone(self.address, "we waited for a reply")
                return count

    def receive_exactly(self, into: memoryview) -> None:
        """See Transport. Raises Unavailable, AuthFailed."""
        rest = into
        while rest:
            rest = rest[self.receive(rest) :]

    def _broken(self, doing: str, failed: OSError) -> WhimbrelError:
        # In TLS 1.3 the server's verdict on our certificate comes after our handshake is over, as an alert.
        if isinstance(failed, ssl.SSLError) and "ALERT" in (failed.reason or ""):
            return _refused_by_server(self.address, failed)
        return gone(self.address, doing, failed)

    def _wait(self, events: int) -> int:
        self._poll.register(self._sock, events)
        ready = self._poll.poll(self._timeout_s * 1000)
        if not ready:
            raise stalled(self.address, self._timeout_s)
        return ready[0][1]

    def interrupt(self) -> None:
        """See Transport."""
        # SSLSocket.shutdown would drop the TLS state under a thread that is using it, and let it go on in clear text.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """See Transport."""
        with contextlib.suppress(OSError):
            self._sock.close()
