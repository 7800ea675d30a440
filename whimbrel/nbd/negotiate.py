"""From a connected socket to an export: "Fixed newstyle negotiation" of the protocol document.

Order: greeting, NBD_OPT_STARTTLS, NBD_OPT_STRUCTURED_REPLY, NBD_OPT_SET_META_CONTEXT, NBD_OPT_GO. The older
NBD_OPT_EXPORT_NAME is left out: a server that does not know NBD_OPT_GO is refused.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from whimbrel.errors import AuthFailed, InvalidPlan, NotFound, Unsupported, WhimbrelError
from whimbrel.model.endpoint import NbdEndpoint
from whimbrel.nbd import protocol as p
from whimbrel.nbd.fault import option_fault, violation
from whimbrel.nbd.tls import client_context, secure
from whimbrel.nbd.transport import PlainTransport, Transport, address_of, connect, stalled

NAMES_IN_EVIDENCE: Final = 20


@dataclass(frozen=True, slots=True)
class Export:
    """What the server said about the export; sizes in bytes."""

    size_bytes: int
    flags: int
    min_block_bytes: int
    max_payload_bytes: int
    structured: bool
    contexts: dict[int, str]

    def has(self, flag: int) -> bool:
        """Whether the server offers this transmission flag."""
        return bool(self.flags & flag)


class Negotiation:
    """One handshake. After ``go`` the transport belongs to a lane; after an error it is closed."""

    def __init__(self, endpoint: NbdEndpoint, timeout_s: float) -> None:
        self._endpoint = endpoint
        self._address = address_of(endpoint)
        self._timeout_s = timeout_s
        # A server may drip bytes for ever without ever stalling; the handshake as a whole must end too.
        self._deadline = time.monotonic() + 2 * timeout_s
        self.transport: Transport = PlainTransport(connect(endpoint, timeout_s), self._address, timeout_s)

    def greet(self) -> None:
        """The greeting, and TLS if the endpoint asks for it.

        Raises Unsupported (oldstyle server, or no TLS there), AuthFailed, Unavailable.
        """
        magic, option_magic, flags = p.GREETING.unpack(self._read(p.GREETING.size))
        if magic != p.INIT_MAGIC:
            raise violation(self._address, "the greeting is not that of an NBD server", got=magic.hex())
        if option_magic != p.OPTION_MAGIC or not flags & p.FLAG_FIXED_NEWSTYLE:
            raise Unsupported(
                f"NBD server {self._address} speaks only the old handshake",
                action="use an NBD server with fixed newstyle negotiation (any since 2012)",
            )
        self._send(p.UINT32.pack(flags & (p.FLAG_FIXED_NEWSTYLE | p.FLAG_NO_ZEROES)))
        if self._endpoint.tls is not None:
            self._start_tls()

    def _start_tls(self) -> None:
        plain, paths = self.transport, self._endpoint.tls
        assert isinstance(plain, PlainTransport)
        assert paths is not None
        context = client_context(paths)
        self._ask(p.OPT_STARTTLS, b"")
        reply, text = self._reply(p.OPT_STARTTLS)
        if reply != p.REP_ACK:
            raise AuthFailed(
                f"NBD server {self._address} offers no TLS, and this endpoint must not be used without",
                action="turn TLS on at the server, or take the certificates out of the endpoint",
                nbd_reply=f"{reply:#x}",
                server_says=_text(text),
            )
        self.transport = secure(plain, self._endpoint, context, self._timeout_s)

    def structured_replies(self) -> bool:
        """Ask for structured replies; whether the server agrees."""
        self._ask(p.OPT_STRUCTURED_REPLY, b"")
        reply, text = self._reply(p.OPT_STRUCTURED_REPLY)
        if reply == p.REP_ACK:
            return True
        if reply in {p.REP_ERR_UNSUP, p.REP_ERR_POLICY, p.REP_ERR_INVALID}:
            return False
        raise option_fault(self._address, "ask for structured replies", reply, _text(text))

    def meta_contexts(self, names: Sequence[str]) -> dict[int, str]:
        """Select the contexts; those that the server has, by the id it gave them. Raises NotFound, Unavailable."""
        data = _string(self._endpoint.export) + p.UINT32.pack(len(names)) + b"".join(_string(name) for name in names)
        self._ask(p.OPT_SET_META_CONTEXT, data)
        found: dict[int, str] = {}
        for reply, body in self._replies(p.OPT_SET_META_CONTEXT):
            if reply == p.REP_ERR_UNSUP:
                return {}
            if reply != p.REP_META_CONTEXT:
                raise self._refused(f"open export {self._endpoint.export!r}", reply, _text(body))
            if len(body) < 4:
                raise violation(self._address, "a meta context without an id")
            number, name = p.UINT32.unpack_from(body)[0], _text(body[4:])
            if number in found or name in found.values() or name not in names:
                raise violation(self._address, "a meta context twice or not asked for", context=name)
            found[number] = name
        return found

    def go(self, *, structured: bool, contexts: dict[int, str]) -> Export:
        """Enter transmission. Raises NotFound, AuthFailed, PermissionDenied, Unsupported, Unavailable."""
        self._ask(p.OPT_GO, _string(self._endpoint.export) + struct.pack(">HH", 1, p.INFO_BLOCK_SIZE))
        size, flags = -1, 0
        minimum, maximum = 1, p.DEFAULT_MAX_PAYLOAD_BYTES
        for reply, body in self._replies(p.OPT_GO):
            if reply != p.REP_INFO:
                raise self._refused(f"open export {self._endpoint.export!r}", reply, _text(body))
            kind = int.from_bytes(body[:2], "big")
            if kind == p.INFO_EXPORT:
                if len(body) != p.EXPORT_INFO.size:
                    raise violation(self._address, "NBD_INFO_EXPORT of a wrong length", length=len(body))
                _, size, flags = p.EXPORT_INFO.unpack(body)
            elif kind == p.INFO_BLOCK_SIZE:
                minimum, maximum = self._block_sizes(body)
        if size < 0:
            raise violation(self._address, "NBD_OPT_GO was granted without NBD_INFO_EXPORT")
        self._check_size(size, minimum)
        return Export(size, flags, minimum, maximum, structured, contexts)

    def _block_sizes(self, body: bytes) -> tuple[int, int]:
        if len(body) != p.BLOCK_SIZE_INFO.size:
            raise violation(self._address, "NBD_INFO_BLOCK_SIZE of a wrong length", length=len(body))
        _, minimum, preferred, maximum = p.BLOCK_SIZE_INFO.unpack(body)
        # "Size constraints": the minimum is a power of 2 up to 64 KiB; the maximum a multiple of it.
        sound = minimum and not minimum & (minimum - 1) and minimum <= 1 << 16 and maximum >= max(minimum, 512)
        if not sound:
            raise violation(
                self._address, "impossible block sizes", minimum=minimum, preferred=preferred, maximum=maximum
            )
        # 0xffffffff means no limit; a request of gigabytes would only spoil latency and pacing.
        largest = min(maximum, p.DEFAULT_MAX_PAYLOAD_BYTES)
        return minimum, largest - largest % minimum

    def _check_size(self, size: int, minimum: int) -> None:
        if size == 0 or size % minimum:
            raise Unsupported(
                f"NBD export {self._address} has a size of {size} bytes, which is no disk of {minimum}-byte blocks",
                action="look at what stands behind the export",
                size_bytes=size,
            )
        if size > p.MAX_SIZE_BYTES:
            raise violation(self._address, "an export larger than 2^63 - 1 bytes", size_bytes=size)

    def list_exports(self) -> list[str]:
        """The names that the server tells with NBD_OPT_LIST, in its order. Raises PermissionDenied, Unsupported..."""
        self._ask(p.OPT_LIST, b"")
        names = []
        for reply, body in self._replies(p.OPT_LIST):
            if reply != p.REP_SERVER:
                raise option_fault(self._address, "list the exports", reply, _text(body))
            length = int.from_bytes(body[:4], "big")
            if len(body) < 4 + length:
                raise violation(self._address, "an export's name longer than its message")
            names.append(_text(body[4 : 4 + length]))
        return names

    def abort(self) -> None:
        """Leave without an export, politely."""
        self._ask(p.OPT_ABORT, b"")

    def _refused(self, what: str, reply: int, text: str) -> WhimbrelError:
        fault = option_fault(self._address, what, reply, text, export=self._endpoint.export)
        if not isinstance(fault, NotFound):
            return fault
        try:
            names = self.list_exports()
        except WhimbrelError:
            return fault
        shown = ", ".join(repr(name) for name in names[:NAMES_IN_EVIDENCE]) or "none"
        more = f" and {len(names) - NAMES_IN_EVIDENCE} more" if len(names) > NAMES_IN_EVIDENCE else ""
        fault.action = f"use one of the server's exports: {shown}{more}"
        fault.evidence["exports"] = shown + more
        return fault

    def _ask(self, option: int, data: bytes) -> None:
        self._send(p.OPTION_HEADER.pack(p.OPTION_MAGIC, option, len(data)) + data)

    def _replies(self, option: int) -> Iterator[tuple[int, bytes]]:
        """The replies to one option up to its NBD_REP_ACK; an error reply is the last one too."""
        for _ in range(p.MAX_OPTION_REPLIES):
            reply, body = self._reply(option)
            if reply == p.REP_ACK:
                return
            yield reply, body
            if reply & p.REP_ERROR_BIT:
                return
        raise violation(self._address, "endless replies to an option", option=p.OPTION_NAMES[option])

    def _reply(self, option: int) -> tuple[int, bytes]:
        magic, answered, reply, length = p.OPTION_REPLY_HEADER.unpack(self._read(p.OPTION_REPLY_HEADER.size))
        if magic != p.OPTION_REPLY_MAGIC:
            raise violation(self._address, "wrong magic in an option's reply", got=f"{magic:#x}")
        if answered != option:
            name = p.OPTION_NAMES[option]
            raise violation(self._address, "a reply to another option than asked", asked=name, got=answered)
        if length > p.MAX_OPTION_REPLY_BYTES:
            raise violation(self._address, "an absurdly long option reply", length=length)
        return reply, self._read(length)

    def _read(self, length: int) -> bytes:
        data = bytearray(length)
        rest = memoryview(data)
        while rest:
            if time.monotonic() > self._deadline:
                raise stalled(self._address, self._timeout_s)
            rest = rest[self.transport.receive(rest) :]
        return bytes(data)

    def _send(self, data: bytes) -> None:
        self.transport.send(data, None, self._unasked)

    def _unasked(self) -> None:
        raise violation(self._address, "the server talks on instead of listening")


def negotiate(
    endpoint: NbdEndpoint, *, timeout_s: float, structured: bool, contexts: Sequence[str] = ()
) -> tuple[Transport, Export]:
    """Connect and enter transmission on ``endpoint.export``.

    ``contexts`` are asked for only if the server grants structured replies; those it lacks are absent from the
    result. Raises Unavailable, AuthFailed, PermissionDenied, NotFound, Unsupported, InvalidPlan.
    """
    names = tuple(dict.fromkeys(contexts))
    for name in (endpoint.export, *names):
        if len(name.encode()) > p.MAX_STRING_BYTES:
            raise InvalidPlan("an NBD name is longer than 4096 bytes", endpoint=address_of(endpoint), name=name)
    dialogue = Negotiation(endpoint, timeout_s)
    try:
        dialogue.greet()
        granted = structured and dialogue.structured_replies()
        found = dialogue.meta_contexts(names) if granted and names else {}
        return dialogue.transport, dialogue.go(structured=granted, contexts=found)
    except BaseException:
        dialogue.transport.close()
        raise


def list_exports(endpoint: NbdEndpoint, *, timeout_s: float = 30.0) -> list[str]:
    """The names of the server's exports (``endpoint.export`` is ignored).

    Raises Unavailable, AuthFailed, PermissionDenied (the server does not tell), Unsupported.
    """
    dialogue = Negotiation(endpoint, timeout_s)
    try:
        dialogue.greet()
        names = dialogue.list_exports()
        dialogue.abort()
        return names
    finally:
        dialogue.transport.close()


def _string(text: str) -> bytes:
    raw = text.encode()
    return p.UINT32.pack(len(raw)) + raw


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", errors="replace")
