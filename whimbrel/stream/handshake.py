"""The server's side of "Fixed newstyle negotiation" in the protocol document, for one export.

With TLS configured nothing but NBD_OPT_STARTTLS and NBD_OPT_ABORT is answered before it, and whatever was agreed on
before it is forgotten ("TLS", mode FORCEDTLS).
"""

from __future__ import annotations

import ssl
import struct
from dataclasses import dataclass, field
from typing import Final

from whimbrel.nbd import protocol as p
from whimbrel.stream.wire import Gone, PlainWire, Wire

MAX_OPTION_BYTES: Final = 64 << 10
MAX_OPTIONS: Final = 1000
PREFERRED_BLOCK_BYTES: Final = 64 << 10
CONTEXTS: Final = {p.BASE_ALLOCATION: 1, p.WHIMBREL_LOCAL: 2}
FLAGS: Final = (
    p.TRANSMISSION_HAS_FLAGS
    | p.TRANSMISSION_SEND_FLUSH
    | p.TRANSMISSION_SEND_FUA
    | p.TRANSMISSION_SEND_TRIM
    | p.TRANSMISSION_SEND_WRITE_ZEROES
    | p.TRANSMISSION_SEND_DF
    | p.TRANSMISSION_CAN_MULTI_CONN
    | p.TRANSMISSION_SEND_CACHE
)


@dataclass(slots=True)
class Agreed:
    """What client and server agreed on."""

    structured: bool = False
    contexts: set[int] = field(default_factory=set)


class Handshake:
    """One client's way from the connection to transmission. ``wire`` is replaced when TLS begins."""

    def __init__(self, wire: PlainWire, export: str, size_bytes: int, tls: ssl.SSLContext | None) -> None:
        self.wire: Wire = wire
        self._plain = wire
        self._export = export.encode()
        self._size_bytes = size_bytes
        self._tls = tls
        self._secured = False
        self._no_zeroes = False
        self.agreed = Agreed()

    def run(self) -> Agreed | None:
        """The agreement once the client asks for transmission; None if it leaves. Raises Gone."""
        greeting = p.GREETING.pack(p.INIT_MAGIC, p.OPTION_MAGIC, p.FLAG_FIXED_NEWSTYLE | p.FLAG_NO_ZEROES)
        self.wire.send(greeting)
        (flags,) = p.UINT32.unpack(self._read(p.UINT32.size))
        if flags & ~(p.FLAG_FIXED_NEWSTYLE | p.FLAG_NO_ZEROES) or not flags & p.FLAG_FIXED_NEWSTYLE:
            raise Gone("the client sets flags that nobody knows")
        self._no_zeroes = bool(flags & p.FLAG_NO_ZEROES)
        for _ in range(MAX_OPTIONS):
            magic, option, length = p.OPTION_HEADER.unpack(self._read(p.OPTION_HEADER.size))
            if magic != p.OPTION_MAGIC or length > MAX_OPTION_BYTES:
                raise Gone("the client does not speak the protocol")
            data = self._read(length)
            if option == p.OPT_ABORT:
                self._reply(option, p.REP_ACK)
                return None
            if self._tls is not None and not self._secured and option != p.OPT_STARTTLS:
                if option == p.OPT_EXPORT_NAME:
                    return None
                self._reply(option, p.REP_ERR_TLS_REQD, b"this server speaks TLS only")
            elif self._answer(option, data):
                return self.agreed
        raise Gone("the client negotiates without end")

    def interrupt(self) -> None:
        """Cut the client off; from any thread."""
        self.wire.interrupt()

    def _answer(self, option: int, data: bytes) -> bool:
        """Answer one option; True if transmission begins."""
        if option == p.OPT_EXPORT_NAME:
            return self._export_name(data)
        if option in {p.OPT_GO, p.OPT_INFO}:
            return self._info(option, data) and option == p.OPT_GO
        if option in {p.OPT_LIST_META_CONTEXT, p.OPT_SET_META_CONTEXT}:
            self._meta_context(option, data)
        elif option == p.OPT_STARTTLS:
            self._start_tls(data)
        elif option in {p.OPT_STRUCTURED_REPLY, p.OPT_LIST}:
            if data:
                self._reply(option, p.REP_ERR_INVALID, b"this option takes no data")
                return False
            if option == p.OPT_STRUCTURED_REPLY:
                self.agreed.structured = True
            else:
                self._reply(option, p.REP_SERVER, p.UINT32.pack(len(self._export)) + self._export)
            self._reply(option, p.REP_ACK)
        else:
            self._reply(option, p.REP_ERR_UNSUP)
        return False

    def _export_name(self, name: bytes) -> bool:
        if not self._known(name):
            raise Gone("the client wants an export that does not exist")
        tail = b"" if self._no_zeroes else bytes(p.EXPORT_NAME_ZEROES)
        self.wire.send(p.EXPORT_NAME_REPLY.pack(self._size_bytes, FLAGS) + tail)
        return True

    def _info(self, option: int, data: bytes) -> bool:
        name, rest = _counted(data)
        if name is None or len(rest) < 2 or len(rest) != 2 + 2 * int.from_bytes(rest[:2], "big"):
            self._reply(option, p.REP_ERR_INVALID, b"malformed request")
            return False
        if not self._known(name):
            self._reply(option, p.REP_ERR_UNKNOWN, b"no such export")
            return False
        self._reply(option, p.REP_INFO, p.EXPORT_INFO.pack(p.INFO_EXPORT, self._size_bytes, FLAGS))
        sizes = p.BLOCK_SIZE_INFO.pack(p.INFO_BLOCK_SIZE, 1, PREFERRED_BLOCK_BYTES, p.DEFAULT_MAX_PAYLOAD_BYTES)
        self._reply(option, p.REP_INFO, sizes)
        self._reply(option, p.REP_ACK)
        return True

    def _meta_context(self, option: int, data: bytes) -> None:
        queries = self._queries(data)
        name, _ = _counted(data)
        if queries is None or not self.agreed.structured:
            self._reply(option, p.REP_ERR_INVALID, b"malformed request, or no structured replies")
            return
        if name is None or not self._known(name):
            self._reply(option, p.REP_ERR_UNKNOWN, b"no such export")
            return
        listing = option == p.OPT_LIST_META_CONTEXT
        if listing:
            wanted = [context for context in CONTEXTS if not queries or any(_matches(q, context) for q in queries)]
        else:
            wanted = [context for context in CONTEXTS if context.encode() in queries]
            self.agreed.contexts = {CONTEXTS[context] for context in wanted}
        for context in wanted:
            number = 0 if listing else CONTEXTS[context]
            self._reply(option, p.REP_META_CONTEXT, p.UINT32.pack(number) + context.encode())
        self._reply(option, p.REP_ACK)

    def _queries(self, data: bytes) -> list[bytes] | None:
        name, rest = _counted(data)
        if name is None or len(rest) < 4:
            return None
        count, rest = int.from_bytes(rest[:4], "big"), rest[4:]
        found = []
        for _ in range(min(count, MAX_OPTION_BYTES)):
            query, rest = _counted(rest)
            if query is None:
                return None
            found.append(query)
        return None if rest else found

    def _start_tls(self, data: bytes) -> None:
        if self._tls is None or self._secured or data:
            refusal = p.REP_ERR_POLICY if self._tls is None else p.REP_ERR_INVALID
            self._reply(p.OPT_STARTTLS, refusal, b"no TLS here, or again, or with data")
            return
        self._reply(p.OPT_STARTTLS, p.REP_ACK)
        self.wire = self._plain.secure(self._tls)
        self._secured = True
        self.agreed = Agreed()

    def _known(self, name: bytes) -> bool:
        # "Default export": a client that names none gets the only one.
        return name in {b"", self._export}

    def _reply(self, option: int, reply: int, data: bytes = b"") -> None:
        self.wire.send(p.OPTION_REPLY_HEADER.pack(p.OPTION_REPLY_MAGIC, option, reply, len(data)) + data)

    def _read(self, length: int) -> bytes:
        data = bytearray(length)
        self.wire.receive_exactly(memoryview(data))
        return bytes(data)


def _counted(data: bytes) -> tuple[bytes | None, bytes]:
    """A string with its length in front, and what follows; None if it is cut short."""
    if len(data) < 4:
        return None, b""
    (length,) = struct.unpack_from(">I", data)
    if len(data) < 4 + length:
        return None, b""
    return data[4 : 4 + length], data[4 + length :]


def _matches(query: bytes, context: str) -> bool:
    """A query may be a whole context, or a namespace with a colon at its end."""
    return context.encode() == query or (query.endswith(b":") and context.encode().startswith(query))
