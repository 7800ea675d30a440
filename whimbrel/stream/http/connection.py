"""One HTTP client: a thread reads its requests and has their data fetched, another answers them in order.

librbd takes any answer but the bytes, and a refused connection, for an I/O error that its guest gets; silence it bears.
So an answer waits until its bytes are here, for as long as that takes, and nothing of it is sent before.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from email.utils import formatdate
from queue import SimpleQueue
from typing import Final

import h11

from whimbrel.errors import WhimbrelError
from whimbrel.stream.connection import Accessed
from whimbrel.stream.fetcher import Fetcher
from whimbrel.stream.http.answers import Answer, Resource, answer_to
from whimbrel.stream.http.reader import Reader, is_object
from whimbrel.stream.http.requests import Malformed, Requests
from whimbrel.stream.http.statistics import HttpStatistics
from whimbrel.stream.http.traffic import SLICE_BYTES, Traffic
from whimbrel.stream.store import Store

RECEIVE_BYTES: Final = 64 << 10
PIECE_BYTES: Final = 4 << 20
"""What is waited for and sent at once; an RBD object of the usual size."""
WAITING_REQUESTS: Final = 64
STRANGER_S: Final = 30.0
"""So long a connection may last without a request that has the token."""
DRAIN_S: Final = 2.0
ASK_S: Final = 0.1
RETRY_S: Final = 0.5
PAUSE_HOLD_S: Final = 10.0
"""A reader that only looks like bulk is held by a pause for so long per request: it may be a guest after all."""
BULK_BUFFER_BYTES: Final = 128 << 10
KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 6))

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Service:
    """What the connections of a server share."""

    disk: Resource
    store: Store
    fetcher: Fetcher
    accessed: Accessed
    traffic: Traffic
    statistics: HttpStatistics


@dataclass(slots=True)
class _Arrival:
    """Waits for the chunks of a range."""

    event: threading.Event = field(default_factory=threading.Event)
    error: WhimbrelError | None = None

    def arrive(self, error: WhimbrelError | None) -> None:
        self.error = error
        self.event.set()


@dataclass(slots=True)
class _Pending:
    """A request that has not been answered yet."""

    answer: Answer
    reply: h11.Connection
    came_at: float
    bulk: bool = False
    missed: bool = False
    first: _Arrival | None = None
    """Of the first piece of the body."""


class _Over(Exception):
    """The client has gone, or the server ends."""


class HttpConnection:
    """Serves one client until it leaves: ``run`` in a thread of the caller's, ``stop`` from any."""

    def __init__(self, sock: socket.socket, service: Service, *, known_bulk: bool = False) -> None:
        self._sock = sock
        self._service = service
        self._reader = Reader(service.disk.size_bytes, known_bulk=known_bulk)
        self._queue: SimpleQueue[_Pending | None] = SimpleQueue()
        self._room = threading.Semaphore(WAITING_REQUESTS)
        self._over = threading.Event()
        self._writer = threading.Thread(target=self._write, name="http-answer", daemon=True)
        self._stranger = True
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        sock.settimeout(None)

    @property
    def bulk(self) -> bool:
        """Whether the client counts as bulk now."""
        return self._reader.bulk

    @property
    def stranger(self) -> bool:
        """Whether it is served, though no request with the token has come yet."""
        return self._stranger and not self._over.is_set()

    def stop(self) -> None:
        """Cut the client off."""
        self._over.set()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        """Serve; returns when the client has left, a request ended the connection, or ``stop`` was called."""
        self._writer.start()
        try:
            self._patience(STRANGER_S)
            self._read()
        except OSError as gone:
            log.info("client.gone", extra={"reason": type(gone).__name__})
            self._over.set()
        finally:
            self._queue.put(None)
            self._writer.join()
            self._linger()
            self._sock.close()

    # The reading thread

    def _read(self) -> None:
        requests = Requests()
        while not self._over.is_set():
            data = self._sock.recv(RECEIVE_BYTES)
            if not data:
                # Whoever has hung up is not waited for with what is not here yet.
                self._over.set()
                return
            try:
                for asked in requests.feed(data):
                    answer = answer_to(asked, self._service.disk)
                    self._enqueue(answer, asked.reply)
                    if answer.close:
                        return
            except Malformed as bad:
                self._enqueue(Answer(bad.status, [(b"Content-Length", b"0")], close=True), bad.reply)
                return

    def _enqueue(self, answer: Answer, reply: h11.Connection) -> None:
        pending = _Pending(answer, reply, time.monotonic())
        if answer.status >= 400:
            self._service.statistics.refuse()
        elif self._stranger:
            self._stranger = False
            self._patience(0)
        if answer.body is not None:
            self._begin(pending, *answer.body)
        while not self._room.acquire(timeout=ASK_S):
            if self._over.is_set():
                return
        self._queue.put(pending)

    def _begin(self, pending: _Pending, start: int, end: int) -> None:
        service = self._service
        was_bulk, pending.bulk = self._reader.bulk, self._reader.note(start, end)
        if pending.bulk and not was_bulk:
            # Little in the kernel's buffer, so that bulk can be held back; a guest's requests get what they ask for.
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BULK_BUFFER_BYTES)
        pending.first = self._want(start, min(end, start + PIECE_BYTES), bulk=pending.bulk)
        pending.missed = not pending.first.event.is_set()
        service.statistics.asked(bulk=pending.bulk, missed=pending.missed)
        if not pending.bulk:
            service.accessed(start, end - start, "read", pending.came_at)
            service.fetcher.statistics.asked(reading=True, missed=pending.missed)

    def _want(self, start: int, end: int, *, bulk: bool) -> _Arrival:
        """Have a range fetched."""
        store, arrival = self._service.store, _Arrival()
        missing = store.missing(start, end - start)
        if bulk and missing:
            self._service.fetcher.expect(missing[0], missing[-1] + 1)
        store.when_local(missing, arrival.arrive, demand=not bulk)
        return arrival

    def _patience(self, seconds: float) -> None:
        """How long ``recv`` waits (0: for ever). Not ``settimeout``, which would hold for sending too."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(seconds), 0))

    def _linger(self) -> None:
        """Let the client read the last answer: closing with unread bytes of it would destroy that (RFC 9112, 9.6)."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
            self._patience(DRAIN_S)
            until = time.monotonic() + DRAIN_S
            while not self._over.is_set() and time.monotonic() < until and self._sock.recv(RECEIVE_BYTES):
                pass

    # The answering thread

    def _write(self) -> None:
        try:
            while (pending := self._queue.get()) is not None:
                self._answer(pending)
                self._room.release()
        except (OSError, _Over) as gone:
            log.info("client.gone", extra={"reason": type(gone).__name__})
            self.stop()

    def _answer(self, pending: _Pending) -> None:
        answer, reply = pending.answer, pending.reply
        if answer.body is not None:
            self._wait(pending, *_piece(*answer.body), pending.first)
            self._note_latency(pending)
        date = (b"Date", formatdate(usegmt=True).encode())
        closing = [(b"Connection", b"close")] if answer.close else []
        head = reply.send(
            h11.Response(status_code=answer.status, headers=[date, *answer.headers, *closing], reason=b"")
        )
        assert head is not None
        if answer.body is None:
            self._sock.sendall(head)
        else:
            self._send_body(pending, head, *answer.body)

    def _note_latency(self, pending: _Pending) -> None:
        if pending.missed and not pending.bulk:
            assert pending.answer.body is not None
            whole = is_object(*pending.answer.body)
            statistics = self._service.statistics, self._service.fetcher.statistics
            latency = statistics[0].whole_object_latency if whole else statistics[1].miss_latency
            latency.note(time.monotonic() - pending.came_at)

    def _wait(self, pending: _Pending, start: int, end: int, arrival: _Arrival | None = None) -> None:
        """Return when the bytes are here and may be sent. Raises _Over."""
        traffic, held_s = self._service.traffic, 0.0
        arrival = arrival or self._want(start, end, bulk=pending.bulk)
        while not self._over.is_set() or arrival.event.is_set():
            if pending.bulk and traffic.paused and not self._over.is_set():
                if held_s >= PAUSE_HOLD_S and not self._reader.known_bulk:
                    pending.bulk = False
                    arrival = self._want(start, end, bulk=False)
                    continue
                began = time.monotonic()
                traffic.wait_resumed(ASK_S)
                held_s += time.monotonic() - began
            elif arrival.event.wait(ASK_S):
                if arrival.error is None:
                    return
                self._over.wait(RETRY_S)
                arrival = self._want(start, end, bulk=pending.bulk)
        raise _Over

    def _send_body(self, pending: _Pending, head: bytes, start: int, end: int) -> None:
        first, traffic = True, self._service.traffic
        while start < end:
            stop = _piece(start, end)[1]
            if not first:
                self._wait(pending, start, stop)
            step = SLICE_BYTES if pending.bulk else stop - start
            for at in range(start, stop, step):
                data = self._read_disk(at, min(at + step, stop))
                if pending.bulk:
                    traffic.wait_turn(len(data), self._over.is_set)
                    self._sock.sendall(head + data if first else data)
                else:
                    with traffic.demand():
                        self._send_all(head if first else b"", data)
                self._service.statistics.sent(len(data), bulk=pending.bulk)
                self._service.fetcher.statistics.add(read_bytes=len(data))
                first = False
            start = stop

    def _send_all(self, head: bytes, data: bytes | bytearray) -> None:
        """Head and body in one segment where they fit, without copying the body."""
        sent = self._sock.sendmsg([head, data])
        if sent < len(head) + len(data):
            whole = memoryview(head[sent:]) if sent < len(head) else memoryview(data)[sent - len(head) :]
            self._sock.sendall(whole)
            if sent < len(head):
                self._sock.sendall(data)

    def _read_disk(self, start: int, end: int) -> bytearray:
        """Local bytes; a cache that cannot be read is tried again, like a source that is away. Raises _Over."""
        buffer, statistics = bytearray(end - start), self._service.statistics
        while True:
            try:
                self._service.store.read(start, memoryview(buffer))
            except WhimbrelError as error:
                statistics.error = f"{error.code}: {error.message}"
                if self._over.wait(RETRY_S):
                    raise _Over from error
            else:
                statistics.error = None
                return buffer


def _piece(start: int, end: int) -> tuple[int, int]:
    return start, min(end, start + PIECE_BYTES)
