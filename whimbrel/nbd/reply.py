"""The receiving half of a connection: takes replies in and says which requests they end.

"Simple reply message" and "Structured reply chunk message" of the protocol document. Payloads go straight into the
caller's buffers. Whatever the server may not say is a violation, and ends the connection.
"""

from __future__ import annotations

from typing import Final

from whimbrel.errors import Unavailable
from whimbrel.nbd import protocol as p
from whimbrel.nbd.fault import violation
from whimbrel.nbd.request import Request, clear
from whimbrel.nbd.transport import Transport

BRINGS_PAYLOAD: Final = frozenset({"read", "status"})
HEAD_BYTES: Final = 4096
"""Acknowledgements of 16 bytes each are taken in by the hundred."""
CHUNK_START_BYTES: Final = p.CHUNK.size + p.CHUNK_OFFSET.size


class ReplyReader:
    """Reads replies to the requests in ``pending``, which its owner fills by cookie and this class empties."""

    def __init__(self, transport: Transport, pending: dict[int, Request], *, structured: bool) -> None:
        self.pending = pending
        self.reads = 0
        """Requests in ``pending`` whose reply brings a payload."""
        self._transport = transport
        self._structured = structured
        self._head = bytearray(HEAD_BYTES)
        self._view = memoryview(self._head)
        self._start = 0
        self._end = 0

    def receive(self) -> Request | None:
        """Wait for one reply message; the request that it ends, or None if more of the same must follow.

        Raises Unavailable (stall, end of connection, violation).
        """
        while self._end - self._start < p.SIMPLE_REPLY.size:
            self._more()
        magic = p.UINT32.unpack_from(self._head, self._start)[0]
        if magic == p.SIMPLE_REPLY_MAGIC:
            return self._simple()
        if magic != p.CHUNK_MAGIC:
            raise self._lie("wrong magic in a reply", got=f"{magic:#x}")
        if not self._structured:
            raise self._lie("a structured reply, which nobody asked for")
        return self._chunk()

    def _simple(self) -> Request:
        _, error, cookie = p.SIMPLE_REPLY.unpack_from(self._head, self._start)
        self._start += p.SIMPLE_REPLY.size
        request = self._find(cookie)
        if request.operation in BRINGS_PAYLOAD:
            if self._structured and not error:
                raise self._lie("a simple reply to a request that needs a structured one", operation=request.operation)
            if not error and request.buffer is not None:
                self._fill(request.buffer)
        if error:
            request.error = (error, "")
        return self._finish(cookie, request)

    def _chunk(self) -> Request | None:
        while self._end - self._start < p.CHUNK.size:
            self._more()
        _, flags, kind, cookie, length = p.CHUNK.unpack_from(self._head, self._start)
        self._start += p.CHUNK.size
        request = self._find(cookie)
        if kind == p.CHUNK_OFFSET_DATA:
            self._data(request, length)
        elif kind == p.CHUNK_OFFSET_HOLE:
            self._hole(request, length)
        elif kind == p.CHUNK_NONE:
            if length or not flags & p.CHUNK_FLAG_DONE:
                raise self._lie("a chunk of type NONE that is not the empty last one", length=length)
        elif kind == p.CHUNK_BLOCK_STATUS:
            self._status(request, length)
        elif kind & p.CHUNK_ERROR_BIT:
            self._error(request, kind, length)
        else:
            raise self._lie("an unknown kind of chunk", kind=kind)
        if not flags & p.CHUNK_FLAG_DONE:
            return None
        if request.error is None and request.operation == "read" and not request.filled():
            raise self._lie("a read's chunks leave a gap or overlap", offset=request.offset, length=request.length)
        return self._finish(cookie, request)

    def _data(self, request: Request, length: int) -> None:
        if length <= p.CHUNK_OFFSET.size:
            raise self._lie("a data chunk without data", length=length)
        offset = p.CHUNK_OFFSET.unpack(self._take(p.CHUNK_OFFSET.size))[0]
        place = request.place(offset, length - p.CHUNK_OFFSET.size)
        if place is None:
            raise self._lie("data that was not asked for", operation=request.operation, offset=offset, length=length)
        self._fill(place)

    def _hole(self, request: Request, length: int) -> None:
        if length != p.CHUNK_HOLE.size:
            raise self._lie("a hole chunk of a wrong length", length=length)
        offset, size = p.CHUNK_HOLE.unpack(self._take(length))
        place = request.place(offset, size)
        if place is None:
            raise self._lie("a hole that was not asked for", operation=request.operation, offset=offset, length=size)
        clear(place)

    def _status(self, request: Request, length: int) -> None:
        sound = 4 < length <= p.MAX_STATUS_BYTES and (length - 4) % p.STATUS_DESCRIPTOR.size == 0
        if not sound or request.operation != "status":
            raise self._lie("a block status of a wrong length or not asked for", length=length)
        body = self._take(length)
        context = p.UINT32.unpack_from(body)[0]
        if request.descriptors is None:
            request.descriptors = {}
        if context in request.descriptors:
            raise self._lie("two block status chunks for one context", context=context)
        request.descriptors[context] = list(p.STATUS_DESCRIPTOR.iter_unpack(body[4:]))

    def _error(self, request: Request, kind: int, length: int) -> None:
        if not p.CHUNK_ERROR_HEAD.size <= length <= p.MAX_ERROR_BYTES:
            raise self._lie("an error chunk of a wrong length", length=length)
        body = self._take(length)
        code, text_bytes = p.CHUNK_ERROR_HEAD.unpack_from(body)
        text = body[p.CHUNK_ERROR_HEAD.size : p.CHUNK_ERROR_HEAD.size + text_bytes]
        if not code or len(text) != text_bytes:
            raise self._lie("an error chunk without an error, or cut short", kind=kind)
        if request.error is None:
            request.error = (code, text.decode("utf-8", errors="replace"))

    def _find(self, cookie: int) -> Request:
        request = self.pending.get(cookie)
        if request is None:
            raise self._lie("a reply with a cookie that is not in flight", cookie=cookie)
        return request

    def _finish(self, cookie: int, request: Request) -> Request:
        del self.pending[cookie]
        if request.operation in BRINGS_PAYLOAD:
            self.reads -= 1
        return request

    def _more(self) -> None:
        """Get some more bytes into the head buffer; few of them while a payload may follow, which is not for here."""
        have = self._end - self._start
        if self._start:
            self._view[:have] = self._view[self._start : self._end]
            self._start, self._end = 0, have
        want = HEAD_BYTES
        if self.reads:
            want = CHUNK_START_BYTES if self._structured else p.SIMPLE_REPLY.size
        self._end += self._transport.receive(self._view[have:want])

    def _take(self, length: int) -> bytes:
        data = bytearray(length)
        self._fill(memoryview(data))
        return bytes(data)

    def _fill(self, into: memoryview) -> None:
        early = min(self._end - self._start, len(into))
        if early:
            into[:early] = self._view[self._start : self._start + early]
            self._start += early
        if early < len(into):
            self._transport.receive_exactly(into[early:])

    def _lie(self, rule: str, **evidence: object) -> Unavailable:
        return violation(self._transport.address, rule, **evidence)
