"""A client's bytes, cut into requests; h11 knows HTTP/1.1 (RFC 9112).

h11 reads the next request of a connection only after the answer to the one before. librbd sends several at once, and
their data may be fetched side by side, so each request is read by a parser of its own, which gets what the one before
left over, and formats this request's answer later.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import h11

MAX_HEAD_BYTES: Final = 16 << 10
MAX_BODY_BYTES: Final = 64 << 10
"""A body has no meaning for GET and HEAD, but may come."""


class Malformed(Exception):
    """Not HTTP, or more of it than anybody needs: answer with ``status``, and close."""

    def __init__(self, status: int, reply: h11.Connection) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    method: bytes
    target: bytes
    headers: dict[bytes, bytes]
    """By lower-case name; of a repeated one the last."""
    reply: h11.Connection
    """Formats the answer."""
    last: bool
    """Whether nothing may follow on this connection."""


class Requests:
    """Fed with what arrives; not thread-safe."""

    def __init__(self) -> None:
        self._parser = _fresh()
        self._head: h11.Request | None = None
        self._body_bytes = 0
        self._over = False

    def feed(self, data: bytes) -> Iterator[Asked]:
        """The requests that are complete now. After one that is ``last`` everything is ignored. Raises Malformed."""
        if self._over or not data:
            return
        self._parser.receive_data(data)
        while not self._over and (asked := self._next()) is not None:
            yield asked

    def _next(self) -> Asked | None:
        parser = self._parser
        while True:
            try:
                event = parser.next_event()
            except h11.RemoteProtocolError as error:
                raise self._malformed(error.error_status_hint) from error
            match event:
                case h11.Request():
                    self._head = event
                    if parser.they_are_waiting_for_100_continue:
                        return self._asked(event, last=True)
                case h11.Data():
                    self._body_bytes += len(event.data)
                    if self._body_bytes > MAX_BODY_BYTES:
                        raise self._malformed(413)
                case h11.EndOfMessage():
                    assert self._head is not None
                    return self._asked(self._head, last=parser.their_state is not h11.DONE)
                case _:
                    return None

    def _asked(self, head: h11.Request, *, last: bool) -> Asked:
        parser, self._head, self._body_bytes = self._parser, None, 0
        self._over = last
        if not last:
            self._parser = _fresh()
            if rest := parser.trailing_data[0]:
                self._parser.receive_data(rest)
        return Asked(head.method, head.target, dict(head.headers), parser, last)

    def _malformed(self, status: int) -> Malformed:
        self._over = True
        return Malformed(status, self._parser)


def _fresh() -> h11.Connection:
    return h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
